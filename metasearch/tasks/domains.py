"""Domains: the related tasks into which a labelled data set is cut, for episodes and for searches alike.

Symbols: N examples of a domain, K classes, D domains; images (C, H, W) uint8 at rest, vectors (F,) float32 at rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.tasks.prepared import fingerprint
from metasearch.tasks.splits import HELD_OUT, SPLITS
from metasearch.tasks.task import Augmentation, Normalisation, Split, Task

SEPARATOR = "/"
"""Between the group and the rest of a class name, as in ALPHABET/CHARACTER."""

Groups = Mapping[str, Sequence[int]]
"""Group name -> the positions of its classes."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Examples of a few classes, and in which split of their source each lies.

    inputs: (N, C, H, W) uint8 or (N, F) float32. labels: (N,) int64 in 0..K-1. splits: (N,) int64, positions in SPLITS.
    normalisation: of the whole source, so that all its domains are fed alike. teacher_logits: (N, K), what a teacher of
    these K classes says of each example, or None.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    splits: Tensor
    normalisation: Normalisation
    augmentation: Augmentation = field(default_factory=Augmentation)
    teacher_logits: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise InputError(f"domain {self.name}", "needs at least two classes", len(self.class_names))
        if len(self.inputs) != len(self.labels) or len(self.inputs) != len(self.splits):
            sizes = f"inputs={len(self.inputs)}, labels={len(self.labels)}, splits={len(self.splits)}"
            raise InputError(f"domain {self.name}", "must have one label and one split an input", sizes)
        expected = (len(self.labels), len(self.class_names))
        if self.teacher_logits is not None and tuple(self.teacher_logits.shape) != expected:
            rule = f"the teacher's logits must have shape {expected}"
            raise InputError(f"domain {self.name}", rule, f"shape={tuple(self.teacher_logits.shape)}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) or (F,)."""
        return tuple(self.inputs.shape[1:])

    @cached_property
    def rows_of_class(self) -> tuple[Tensor, ...]:
        """The positions of the examples of each class, K tensors of int64."""
        return tuple(torch.nonzero(self.labels == label)[:, 0] for label in range(len(self.class_names)))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 hex digest over the bytes of its splits and the class names, as that of its task."""
        return fingerprint(self._splits(), self.class_names)

    def task(self) -> Task:
        """Return the domain as a task of its own; each example stays in the split in which its source has it.

        Raises InputError where a split has no example of the domain.
        """
        splits = self._splits()
        return Task(
            name=self.name,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            class_names=self.class_names,
            normalisation=self.normalisation,
            augmentation=self.augmentation,
            fingerprint=self.fingerprint,
            provenance={"domain": self.name},
        )

    def _splits(self) -> dict[str, Split]:
        rows = {name: torch.nonzero(self.splits == index)[:, 0] for index, name in enumerate(SPLITS)}
        return {name: Split(self.inputs[positions], self.labels[positions]) for name, positions in rows.items()}


def whole_domain(task: Task, *, name: str | None = None) -> Domain:
    """Return all examples of a task, those of its three splits one after the other, as one domain."""
    splits: list[Split] = [getattr(task, split) for split in SPLITS]
    lengths = torch.tensor([len(split) for split in splits])
    return Domain(
        name=task.name if name is None else name,
        inputs=torch.cat([split.inputs for split in splits]),
        labels=torch.cat([split.labels for split in splits]),
        class_names=task.class_names,
        splits=torch.repeat_interleave(torch.arange(len(SPLITS)), lengths),
        normalisation=task.normalisation,
        augmentation=task.augmentation,
    )


def groups_of_size(class_names: Sequence[str], size: int) -> dict[str, list[int]]:
    """Return consecutive groups of `size` classes, named FIRST..LAST; a class left over joins the group before it."""
    if not 2 <= size <= len(class_names):
        rule = f"the classes of a group must be at least 2 and at most the {len(class_names)} there are"
        raise InputError("classes", rule, size)
    starts = [start for start in range(0, len(class_names), size) if start == 0 or start + 1 < len(class_names)]
    ends = [*starts[1:], len(class_names)]
    return {
        f"{class_names[start]}..{class_names[end - 1]}": list(range(start, end))
        for start, end in zip(starts, ends, strict=True)
    }


def random_groups(class_names: Sequence[str], count: int, *, seed: int) -> dict[str, list[int]]:
    """Return `count` groups, named 1, 2, ..., into which the classes are dealt at random, as evenly as they go."""
    if not 1 <= count <= len(class_names) // 2:
        rule = f"{len(class_names)} classes make at least 1 and at most {len(class_names) // 2} groups of two or more"
        raise InputError("random", rule, count)
    order = np.random.default_rng(seed).permutation(len(class_names))
    return {str(index + 1): sorted(order[index::count].tolist()) for index in range(count)}


def named_groups(
    class_names: Sequence[str], group_of: Mapping[str, str] | None = None, *, place: str = "groups"
) -> dict[str, list[int]]:
    """Return the classes of each group, groups in the order of their names.

    group_of: class name -> group; without it the group is what stands before the last / of the class name.
    place: for the message of the InputError where a class has no group.
    """
    if group_of is None:
        group_of = {name: name.rpartition(SEPARATOR)[0] for name in class_names if SEPARATOR in name}
        rule = f"a class name must say its group before a {SEPARATOR}, as in GROUP{SEPARATOR}NAME; those that do not"
    else:
        rule = "must give a group to every class; those without"
    if missing := [name for name in class_names if name not in group_of]:
        raise InputError(place, rule, missing[:5])
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(class_names):
        groups.setdefault(group_of[name], []).append(position)
    return dict(sorted(groups.items()))


def cut_by_class(domain: Domain, groups: Groups) -> tuple[Domain, ...]:
    """Return one domain a group, named DOMAIN#GROUP, with the examples of its classes in their order."""
    return tuple(_sub_domain(domain, name, sorted(classes), None) for name, classes in groups.items())


def cut_by_example(domain: Domain, group_of: Sequence[str]) -> tuple[Domain, ...]:
    """Return one domain a group of examples, named DOMAIN#GROUP, in the order of the groups' names.

    group_of: one group an example, in the domain's order. The classes of a domain are those that its examples have.
    Raises InputError for another number of groups and for a group of one class.
    """
    if len(group_of) != len(domain.labels):
        rule = f"must give one group to each of the {len(domain.labels)} examples"
        raise InputError(f"domain {domain.name}", rule, len(group_of))
    of_example = np.asarray(group_of, dtype=np.str_)
    domains = []
    for name in sorted(set(group_of)):
        rows = torch.from_numpy(np.flatnonzero(of_example == name))
        domains.append(_sub_domain(domain, name, sorted(set(domain.labels[rows].tolist())), rows))
    return tuple(domains)


def _sub_domain(domain: Domain, group: str, classes: list[int], rows: Tensor | None) -> Domain:
    """Return the rows (all, where None) whose class is among `classes`, relabelled by the position in it."""
    new_label = torch.full((len(domain.class_names),), -1)
    new_label[classes] = torch.arange(len(classes))
    rows = torch.arange(len(domain.labels)) if rows is None else rows
    rows = rows[new_label[domain.labels[rows]] >= 0]
    return replace(
        domain,
        name=f"{domain.name}#{group}",
        inputs=domain.inputs[rows],
        labels=new_label[domain.labels[rows]],
        class_names=tuple(domain.class_names[index] for index in classes),
        splits=domain.splits[rows],
        teacher_logits=None if domain.teacher_logits is None else domain.teacher_logits[rows][:, classes],
    )


def joined(domains: Sequence[Domain], *, name: str = "joined") -> Domain:
    """Return the classes of several domains of one shape and normalisation as one domain, for episodes across them."""
    if len({(domain.input_shape, domain.normalisation) for domain in domains}) != 1:
        raise InputError(name, "domains to be joined must have one input shape and one normalisation", len(domains))
    offsets = np.cumsum([0, *(len(domain.class_names) for domain in domains)])
    return replace(
        domains[0],
        name=name,
        inputs=torch.cat([domain.inputs for domain in domains]),
        labels=torch.cat([domain.labels + int(start) for domain, start in zip(domains, offsets[:-1], strict=True)]),
        class_names=tuple(class_name for domain in domains for class_name in domain.class_names),
        splits=torch.cat([domain.splits for domain in domains]),
        teacher_logits=None,  # a teacher of one domain knows nothing of another's classes
    )


@dataclass(frozen=True, eq=False)
class DomainSplit:
    """Domains to learn from, to choose by and to judge by; each in one of the three."""

    train: tuple[Domain, ...]
    validation: tuple[Domain, ...]
    test: tuple[Domain, ...]


def split_domains(domains: Sequence[Domain], *, seed: int, held_out: float = HELD_OUT) -> DomainSplit:
    """Return the domains dealt out at random: `held_out` of them to test, as many to validation, at least one each.

    Raises InputError for fewer than three domains.
    """
    if len(domains) < 3:
        rule = "needs at least three tasks: to learn from, to choose by and to judge by"
        raise InputError("family", rule, [domain.name for domain in domains])
    order = np.random.default_rng(seed).permutation(len(domains)).tolist()
    held = min(max(1, round(len(domains) * held_out)), (len(domains) - 1) // 2)
    test, validation, train = order[:held], order[held : 2 * held], order[2 * held :]
    chosen = [tuple(domains[index] for index in sorted(part)) for part in (train, validation, test)]
    return DomainSplit(*chosen)
