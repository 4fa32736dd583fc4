"""Which choices of a space a task and its teacher permit: found before the search, so that no trial fails by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from metasearch.configuration import Configuration
from metasearch.errors import InputError
from metasearch.initial import MISSING, TEACHER_SLICE
from metasearch.meta.policy_network import PolicyNetwork, unusable
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.module_network import deployable, require_int8
from metasearch.objective import FEATURE_LOSSES, needed_features
from metasearch.parameters import LEARNED_POLICIES, NETWORK, Value
from metasearch.search.fixing import fix
from metasearch.search.settings import Setting, in_order
from metasearch.search.space import Space
from metasearch.tasks import Task

FAMILY, INIT, RANDOM = "student.family", "student.init", "random"
MOST_DRAWN = 1000
"""Configurations drawn until one has the family that is tried; the rarest choice of a space comes more often."""

Narrowed = tuple[Space, list[str]]
"""A space without some choices, and a line for each reason with the choices that it rules out."""


def possible_with_task(space: Space, task: Task) -> Narrowed:
    """Return the space without the choices that the task rules out.

    These are families that cannot take its inputs or, a user's own, cannot be stored in int8 where nothing else is
    offered; and standardized logits where there are two classes. Raises InputError with the reason where none is left.
    """
    reasons: dict[Value, str] = {}
    for family in _choices(space, "student.family"):
        try:
            _try_family(space, str(family), task)
        except InputError as error:
            reasons[family] = error.rule
    space, lines = _without(space, "student.family", reasons)
    if task.classes == 2 and True in _choices(space, "logit_standardization"):
        reason = "logit_standardization needs three classes or more"
        space, more = _without(space, "logit_standardization", {True: reason})
        lines += more
    return space, lines


def possible_with_teacher(space: Space, features: Iterable[str]) -> Narrowed:
    """Return the space without the losses for which the teacher lacks the features.

    features: the names of those that it has. Raises InputError where no loss is left.
    """
    available = dict.fromkeys(features)
    reasons: dict[Value, str] = {}
    for loss in _choices(space, "loss"):
        try:
            needed_features(str(loss), available=available)
        except InputError as error:
            reasons[loss] = error.rule
    return _without(space, "loss", reasons)


def possible_with_initial(space: Space, families: Mapping[str, str]) -> Narrowed:
    """Return the space without the initialisations that are not to be had, or not by a student of its families.

    families: of the network that each one starts from, by its name, for those that are to be had. One condition serves
    all choices: they are asked for where student.family is that of the first choice, and choices of another family are
    left out. Raises InputError with the reason where a space insists on one that cannot be.
    """
    setting = next(setting for setting in space.settings if setting.path == INIT)
    families_then = dict(setting.when).get(FAMILY, _choices(space, FAMILY))
    offered = [family for family in _choices(space, FAMILY) if family in families_then]
    reasons: dict[Value, str] = {}
    of_one = next((families[str(c)] for c in _choices(space, INIT) if families.get(str(c)) in offered), "")
    for init in map(str, _choices(space, INIT)):
        if init in families and families[init] != of_one:
            wanted = of_one or " or ".join(map(str, offered))
            reasons[init] = f"starts from a network of family {families[init]}, not {wanted}"
        elif init not in families and init != RANDOM:
            reasons[init] = MISSING[init]
    space, lines = _without(space, INIT, reasons)
    left = _choices(space, INIT)
    others = [family for family in offered if family != of_one]
    if left in ((), (RANDOM,)) or not others:
        return space, lines
    if RANDOM not in left:
        space, more = _without(space, FAMILY, dict.fromkeys(others, f"student.init starts from a {of_one}"))
        return space, lines + more
    return _where_family(space, of_one), [*lines, f"{INIT} is chosen where {FAMILY} is {of_one}, as its start is"]


def possible_with_policy_network(space: Space, network: PolicyNetwork | None) -> Narrowed:
    """Return the space without the policies of kind network that the one given, if any, cannot say.

    Raises InputError with the reason where such a policy has no other kind.
    """
    lines: list[str] = []
    for name in LEARNED_POLICIES:
        path = f"{name}.kind"
        if not any(setting.path == path and NETWORK in setting.choices for setting in space.settings):
            continue
        if reason := unusable(network, name, optimizers=tuple(map(str, _choices(space, "optimizer")))):
            space, more = _without(space, path, {NETWORK: reason})
            lines += more
    return space, lines


def possible_with_source(space: Space, *, there: bool) -> Narrowed:
    """Return the space without joint training where no source task is there.

    Raises InputError where the space insists on a source, or has no weight for one that is there.
    """
    setting = next(setting for setting in space.settings if setting.path == "source_weight")
    low, high = setting.bounds()
    if there and high == 0:
        raise InputError("--source", f"needs a space that gives source_weight a value above 0: {space.name} has none")
    if there or high == 0:
        return space, []
    if low > 0:
        raise InputError("parameters.source_weight", "needs a source task: --source TASK", low)
    fixed = fix(space, {"source_weight": 0.0, "target_weight": 1.0}, place=f"space {space.name}")
    return fixed, ["source_weight is 0: there is no --source TASK"]


def needs_network(space: Space) -> bool:
    """Return whether a trial of the space may start from the teacher's weights."""
    return TEACHER_SLICE in _choices(space, INIT)


def feature_losses(space: Space) -> tuple[str, ...]:
    """Return the losses that a trial of the space may have and that read the teacher's features."""
    return tuple(loss for loss in FEATURE_LOSSES if loss in _choices(space, "loss"))


def needs_views(space: Space) -> bool:
    """Return whether a trial of the space may train on augmented views."""
    return True in _choices(space, "augment")


def _try_family(space: Space, family: str, task: Task) -> None:
    """Build the family as a random configuration of the space has it; raise its InputError if it refuses."""
    rng = np.random.default_rng(0)
    drawn = (space.configuration(space.sample(rng)) for _ in range(MOST_DRAWN))
    config = next((config for config in drawn if config["student.family"] == family), None)
    if config is None:
        return
    c = Configuration.of(config)
    spec = NetworkSpec(family, width=round(c.width(0.0)), depth=c.depth)
    network = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
    if family not in FAMILIES and _choices(space, "quantize") == ("int8",):
        require_int8(deployable(network, normalisation=task.normalisation, input_shape=task.input_shape))


def _where_family(space: Space, family: str) -> Space:
    """Return the space in which an initialisation is chosen for students of one family only."""
    settings = [
        replace(s, when=(*((p, v) for p, v in s.when if p != FAMILY), (FAMILY, (family,)))) if s.path == INIT else s
        for s in space.settings
    ]
    return replace(space, settings=in_order(settings, f"space {space.name}"))


def _choices(space: Space, path: str) -> tuple[Value, ...]:
    """Return the choices of a setting, none where its conditions can never hold."""
    by_path = {setting.path: setting for setting in space.settings}
    setting = by_path[path]
    return setting.choices if _reachable(setting, by_path) else ()


def _reachable(setting: Setting, by_path: Mapping[str, Setting]) -> bool:
    return all(
        not set(permitted).isdisjoint(by_path[path].choices) and _reachable(by_path[path], by_path)
        for path, permitted in setting.when
    )


def _without(space: Space, path: str, reasons: Mapping[Value, str]) -> Narrowed:
    of_rule: dict[str, list[str]] = {}
    for value, rule in reasons.items():
        of_rule.setdefault(rule, []).append(str(value))
    lines = [f"{path} leaves out {', '.join(values)}: {rule}" for rule, values in of_rule.items()]
    return (space.without({path: reasons}) if reasons else space), lines
