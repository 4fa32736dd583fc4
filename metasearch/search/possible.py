"""Which choices of a space a task and its teacher permit: found before the search, so that no trial fails by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from metasearch.configuration import Configuration
from metasearch.errors import InputError
from metasearch.meta.policy_network import PolicyNetwork, unusable
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.module_network import deployable, require_int8
from metasearch.objective import FEATURE_LOSSES, needed_features
from metasearch.parameters import LEARNED_POLICIES, NETWORK, Value
from metasearch.search.settings import Setting
from metasearch.search.space import Space
from metasearch.tasks import Task

MOST_DRAWN = 1000
"""Configurations drawn until one has the family that is tried; the rarest choice of a space comes more often."""

Narrowed = tuple[Space, list[str]]
"""A space without some choices, and a line for each of them."""


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
    lines = [f"{path} leaves out {value}: {rule}" for value, rule in reasons.items()]
    return (space.without({path: reasons}) if reasons else space), lines
