"""What a FAMILY text may say, and the domains that it names.

    FAMILY   TASK[@RULE],TASK[@RULE],...     a TASK without a rule is one domain, as it is
    RULE     groups                          by what stands before the / of a class name: omniglot@groups
             groups:FILE                     by a JSON, YAML or CSV mapping of class name to group
             classes:SIZE                    SIZE classes each, in their order: cifar10@classes:2
             random:COUNT                    COUNT groups of classes, dealt at random by the seed
             column:NAME                     by the values of a column of a table: task, which is then no input
             column:FILE                     by a text file, one group a line, in the order of the source's examples
    TASK     TASK@RULE#DOMAIN                one domain of a family is a TASK like any other: omniglot@groups#Greek

A comma that no new TASK follows (a registered name, or a prefix and a colon) belongs to the TASK before it, as in
`npz:TRAIN.npz,TEST.npz,usps`.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.errors import InputError, NotFoundError
from metasearch.functions import first_line
from metasearch.spelling import hint
from metasearch.tasks.raw import Request
from metasearch.tasks.registered import REGISTERED
from metasearch.tasks.sources import (
    PREFIXES,
    PYTHON_PREFIX,
    absolute_argument,
    existing,
    find_source,
    paths_of_argument,
)
from metasearch.tasks.splits import SPLITS, choose_splits

if TYPE_CHECKING:
    from metasearch.tasks.domains import Domain
    from metasearch.tasks.task_source import TaskSource

RULES = {"groups": "groups[:FILE]", "classes": "classes:SIZE", "random": "random:COUNT", "column": "column:NAME|FILE"}
"""The rules, and how they are spelled."""


@dataclass(frozen=True)
class Member:
    """A TASK of a family, and the rule that cuts it. rule: a key of RULES, or "". domain: one that it makes, or ""."""

    task: str
    rule: str = ""
    argument: str = ""
    domain: str = ""

    def __str__(self) -> str:
        rule = f"@{self.rule}{':' if self.argument else ''}{self.argument}" if self.rule else ""
        return f"{self.task}{rule}{'#' if self.domain else ''}{self.domain}"


@dataclass(frozen=True)
class Family:
    """Tasks that are related; as text, what `parse_family` read."""

    members: tuple[Member, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.members))


def parse_family(text: str) -> Family:
    """Return the family that a text names. Raises InputError for a rule or a number that is none."""
    return Family(tuple(parse_member(item) for item in _items(text)))


def parse_member(text: str) -> Member:
    """Return one TASK[@RULE][#DOMAIN] of a family. Raises InputError for a rule or a number that is none."""
    task, at, cut = text.rpartition("@")
    rule, _, domain = cut.partition("#")
    rule, colon, argument = rule.partition(":")
    if not at or (rule not in RULES and ":" in task):  # a path may hold an @
        return Member(text)
    known = ", ".join(RULES.values())
    if rule not in RULES:
        raise InputError("family", f"after the @ must stand one of {known} {hint(rule, RULES)}", text)
    if bool(colon) != bool(argument) or (rule != "groups" and not argument) or not task:
        raise InputError("family", f"must be spelled TASK@RULE, with a rule of {known}", text)
    if rule in ("classes", "random") and not argument.isdecimal():
        raise InputError("family", f"{RULES[rule]} needs a whole number", text)
    return Member(task, rule, argument, domain)


def is_domain(text: str) -> bool:
    """Return whether a TASK text names a domain of a family: TASK@RULE#DOMAIN."""
    return bool(_member_or_none(text).domain)


def absolute_member(text: str, data_root: Path) -> str:
    """Return a TASK text, of a whole data set or of a domain, with the paths in it made absolute."""
    member = _member_or_none(text)
    task = absolute_argument(member.task, data_root)
    argument = member.argument
    if argument and _names_a_file(member):
        argument = str(existing(argument, data_root))
    return str(replace(member, task=task, argument=argument))


def paths_of_family(text: str) -> list[str]:
    """Return the files and folders that a FAMILY text, or a TASK alone, names, as it spells them."""
    paths: list[str] = []
    for member in map(_member_or_none, _items(text)):
        paths += paths_of_argument(member.task)
        paths += [member.argument] if member.argument and _names_a_file(member) else []
    return paths


def load_family(family: Family | str, *, source: TaskSource | None = None) -> tuple[Domain, ...]:
    """Return the domains of a family, of one input shape, named so that each name is a TASK of its own.

    source: data_root, image_size, seed and the like, for every TASK; its text is not read.
    Raises InputError and NotFoundError as `load_task` does, for a rule that does not fit the data, for a family of one
    task and for tasks of different shapes.
    """
    from metasearch.tasks.task_source import TaskSource

    family = parse_family(family) if isinstance(family, str) else family
    source = source or TaskSource("")
    domains = [domain for member in family.members for domain in load_member(member, source)]
    if len(domains) < 2:
        raise InputError(f"family {family}", "needs at least two tasks", [domain.name for domain in domains])
    shapes = {domain.input_shape: domain.name for domain in domains}
    if len(shapes) > 1:
        rule = "its tasks must have one input shape; an image_size makes those of images equal but for their channels"
        raise InputError(f"family {family}", rule, {name: str(shape) for shape, name in shapes.items()})
    return tuple(domains)


def load_member(member: Member, source: TaskSource, *, prepare: bool = True) -> tuple[Domain, ...]:
    """Return the domains of one TASK of a family, or the one of them that it names. prepare: as of `load_task`."""
    from metasearch.tasks import domains as cut
    from metasearch.tasks.prepare import load_task

    whole = replace(source, text=member.task, max_train=None, augment=None, unlabelled=None)
    task = load_task(whole, prepare=prepare)
    name = str(replace(member, domain=""))
    domain = cut.whole_domain(task, name=name)
    if not member.rule:
        return (domain,)
    if member.rule == "column":
        if member.argument in (columns := _columns(task.provenance)):
            domain, groups = _taken_column(domain, columns.index(member.argument))
        else:
            groups = _groups_of_examples(member, whole)
        found = cut.cut_by_example(domain, groups)
    else:
        names = task.class_names
        classes = {
            "groups": lambda: cut.named_groups(names, *_mapping(member, whole.root()), place=name),
            "classes": lambda: cut.groups_of_size(names, int(member.argument)),
            "random": lambda: cut.random_groups(names, int(member.argument), seed=source.seed),
        }[member.rule]()
        found = cut.cut_by_class(domain, classes)
    if not member.domain:
        return found
    by_name = {domain.name: domain for domain in found}
    if str(member) not in by_name:
        raise NotFoundError(f"{member}: no such domain {hint(str(member), by_name, most=3)}")
    return (by_name[str(member)],)


def _items(text: str) -> list[str]:
    """Return the TASK[@RULE] texts of a FAMILY text."""
    items: list[str] = []
    for piece in text.split(","):
        if items and not _begins_a_task(piece):
            items[-1] += f",{piece}"
        else:
            items.append(piece)
    return items


def _begins_a_task(piece: str) -> bool:
    name = piece.partition("@")[0]
    prefix, colon, _ = piece.partition(":")
    return name in REGISTERED or (bool(colon) and prefix in (*PREFIXES, PYTHON_PREFIX.removesuffix(":")))


def _member_or_none(text: str) -> Member:
    """Return the member that a text names, the text itself as a TASK where it has no rule."""
    cut = text.rpartition("@")[2]
    return parse_member(text) if cut.partition("#")[0].partition(":")[0] in RULES else Member(text)


def _names_a_file(member: Member) -> bool:
    """Return whether the argument of a rule is a file; a table's column is none."""
    return member.rule == "groups" or (member.rule == "column" and not member.task.startswith("table:"))


def _mapping(member: Member, data_root: Path) -> tuple[dict[str, str], ...]:
    """Return the mapping of a groups:FILE, nothing for groups."""
    return (read_mapping(existing(member.argument, data_root)),) if member.argument else ()


def read_mapping(path: Path) -> dict[str, str]:
    """Return class name -> group, of a .json, .yaml or .yml file that is a mapping, or a CSV file of two columns.

    A mapping may also go from group to a list of its classes. Raises InputError for another layout, and for a class
    that is given twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        suffix = path.suffix.lower()
        if suffix == ".json":
            read: Any = json.loads(text)
        elif suffix in (".yaml", ".yml"):
            read = yaml.safe_load(text)
        else:
            read = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, ValueError, csv.Error, yaml.YAMLError) as error:
        raise InputError(str(path), f"cannot be read as a mapping of class to group ({first_line(error)})") from error
    pairs = list(_pairs(read, path))
    groups = dict(pairs)
    if len(groups) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise InputError(str(path), "gives a class twice", twice[:5])
    return groups


def _pairs(read: Any, path: Path) -> Sequence[tuple[str, str]]:
    if isinstance(read, dict):
        if all(isinstance(value, list) for value in read.values()):
            return [(str(name), str(group)) for group, names in read.items() for name in names]
        return [(str(name), str(group)) for name, group in read.items()]
    if isinstance(read, list) and all(isinstance(row, list) and len(row) == 2 for row in read):
        return [(str(name).strip(), str(group).strip()) for name, group in read]
    raise InputError(str(path), "must be a mapping of class to group, or rows of two", type(read).__name__)


def _columns(provenance: Any) -> list[str]:
    """Return the names of a table's columns but the label, nothing for other tasks."""
    return list(provenance.get("notes", {}).get("columns", ()))


def _taken_column(domain: Domain, column: int) -> tuple[Domain, list[str]]:
    """Return the domain without a column of its inputs, and the column's values as text."""
    keep = [index for index in range(domain.inputs.shape[1]) if index != column]
    scale, shift = domain.normalisation.scale, domain.normalisation.shift
    normalisation = replace(
        domain.normalisation, scale=tuple(scale[index] for index in keep), shift=tuple(shift[index] for index in keep)
    )
    groups = [f"{value:g}" for value in domain.inputs[:, column].tolist()]
    return replace(domain, inputs=domain.inputs[:, keep].contiguous(), normalisation=normalisation), groups


def _groups_of_examples(member: Member, source: TaskSource) -> list[str]:
    """Return the group of each example of a loaded task, from a file in the order of the source.

    The source is read a second time: a loaded task is shuffled, and only the labels say how.
    """
    path = existing(member.argument, source.root())
    try:
        groups = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read as one group a line ({error})") from error
    if source.text.startswith(PYTHON_PREFIX):
        return groups
    kind, argument = find_source(source.text)
    request = Request(argument, source.root(), source.image_size, source.download, source.skip_corrupt)
    with tempfile.TemporaryDirectory() as scratch:
        raw = kind.read(request, kind.locate(request), Path(scratch))
        chosen, _ = choose_splits(source.text, raw, max_train=None, seed=source.seed)
    parts = [part for part in (raw.train, raw.validation, raw.test) if part is not None]
    if len(groups) != (count := sum(map(len, parts))):
        raise InputError(str(path), f"must have one line for each of the {count} examples", len(groups))
    starts = {id(part): sum(map(len, parts[:index])) for index, part in enumerate(parts)}
    return [
        groups[starts[id(part)] + position]
        for part, positions in (chosen[name] for name in SPLITS)
        for position in positions.tolist()
    ]
