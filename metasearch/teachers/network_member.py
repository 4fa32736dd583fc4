"""What a teacher that is a network says of a task: asked once, then read from the cache.

Symbols: N examples, C classes, V augmented views.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.initial import SourceNetwork
from metasearch.measure import predict
from metasearch.objective import teacher_features
from metasearch.records import EpochReport
from metasearch.taps import RULES
from metasearch.tasks import Task
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.teachers.cache import Saved, cache_key, cache_path, read_cache, write_cache
from metasearch.teachers.opening import TeacherNetwork, normalisation_for, open_teacher
from metasearch.teachers.source import TeacherMember, TeacherSource

VIEWS = 4
"""Augmented views of the train split whose teacher logits are kept for students trained with augmentation."""

SPLITS = ("train", "validation", "test")
FEATURE_GROUPS = ("attention", "hint", "embedding")
"""What the names of features begin with, before a point; each group is made and kept on its own."""
MOST_NUMBERS = 4_000_000
"""Numbers in one batch of inputs, so that large images do not take all memory."""


@dataclass(frozen=True)
class Known:
    """One member's logits by split (and `views`), its counts, its features, and whether it gives labels alone."""

    logits: Mapping[str, Tensor]
    counts: Mapping[str, int | None]
    labels_only: bool = False
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class NetworkMember:
    """A member of a teacher that is a network, opened only if the cache does not hold what it is asked.

    source: the teacher that it is a member of. seed: of its training. view_seed: of the augmented views, one for all
    members. progress: called after every epoch of its training.
    """

    member: TeacherMember
    task: Task
    source: TeacherSource
    seed: int
    view_seed: int
    device: torch.device
    progress: Callable[[EpochReport], None] | None = None

    def known(self, *, views: bool, groups: Sequence[str]) -> Known:
        """Return its logits, on augmented views, too, where `views`, and its features of the groups."""
        kept, counts = self._kept("", self._split_logits)
        logits, features = dict(kept), self._features("train", groups, views=0)
        if views:
            logits |= self._kept(self._seen, lambda: (self._shown(self._view_logits, views=VIEWS), {}))[0]
            features |= self._features("views", groups, views=VIEWS)
        return Known(logits, counts, features=features)

    def source_network(self) -> SourceNetwork:
        """Return the network itself, of one of our families, for students to start from."""
        module, spec = self._network.module, self.member.spec
        assert module is not None
        assert spec is not None
        normalisation = normalisation_for(self.source.normalisation, self.task)
        return SourceNetwork(spec, copy.deepcopy(module).cpu(), self.task.class_names, normalisation)

    @cached_property
    def _key(self) -> str:
        normalisation = normalisation_for(self.source.normalisation, self.task)
        return cache_key(replace(self.task, normalisation=normalisation), self.member, seed=self.seed)

    @cached_property
    def _network(self) -> TeacherNetwork:
        return open_teacher(
            self.member,
            self.task,
            normalisation=self.source.normalisation,
            seed=self.seed,
            device=self.device,
            features=self.source.features,
            progress=self.progress,
        )

    @property
    def _seen(self) -> str:
        """The views that it is asked of, as a part of a file's name."""
        return f"views{VIEWS}-{self.view_seed}"

    def _kept(self, part: str, make: Callable[[], Saved]) -> Saved:
        path = cache_path(self._key, part=part)
        return read_cache(path) or write_cache(path, *make())

    def _split_logits(self) -> Saved:
        task, network = self.task, self._network
        inputs = {"train": task.taught.inputs, "validation": task.validation.inputs, "test": task.test.inputs}
        tensors = {name: _logits(network, values, name) for name, values in inputs.items()}
        return tensors, {"parameters": network.parameters, "macs": network.macs}

    def _view_logits(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"views": _logits(self._network, inputs, "augmented train")}

    def _features(self, split: str, groups: Sequence[str], *, views: int) -> dict[str, Tensor]:
        """Return the features of the groups by split and name; those that the cache lacks are made in one pass."""
        suffix = f"-{self._seen}" if views else ""
        found_by = (str(RULES), *self.source.features)
        paths = {group: cache_path(self._key, part=f"features-{group}{suffix}", found_by=found_by) for group in groups}
        found = {group: saved[0] for group, path in paths.items() if (saved := read_cache(path)) is not None}
        if missing := [group for group in groups if group not in found]:
            made = self._shown(lambda inputs: show_features(self._network, inputs, missing), views=views)
            for group in missing:
                found[group] = {name: values for name, values in made.items() if _group(name) == group}
                write_cache(paths[group], found[group], {})
        return {f"{split}.{name}": values for tensors in found.values() for name, values in tensors.items()}

    def _shown(self, show: Callable[[Tensor], dict[str, Tensor]], *, views: int) -> dict[str, Tensor]:
        """Return what `show` says of every taught input, by name: (V, N, ...) of the views, (1, N, ...) without any.

        Filled in place: the parts and the whole at once would take twice the memory.
        """
        task = self.task
        inputs = task.taught.inputs
        whole: dict[str, Tensor] = {}
        for view in range(max(1, views)):
            choices = (
                view_choices(task.augmentation, count=len(inputs), view=view, seed=self.view_seed) if views else None
            )
            for part in torch.split(torch.arange(len(inputs)), 4096):
                seen = inputs[part] if choices is None else apply_choices(inputs[part], choices[part])
                for name, values in show(seen).items():
                    if name not in whole:
                        whole[name] = torch.empty(max(1, views), len(inputs), *values.shape[1:], dtype=values.dtype)
                    whole[name][view, part] = values
        return whole


def show_features(network: TeacherNetwork, inputs: Tensor, groups: Collection[str]) -> dict[str, Tensor]:
    """Return the network's features (N, ...) of the groups by name, none where it shows none."""
    batch_size = network.batch or _batch_size(inputs)
    shown = teacher_features(network.features, inputs, batch_size=batch_size)
    return {name: values for name, values in shown.items() if _group(name) in groups}


def _group(name: str) -> str:
    return name.partition(".")[0]


def _logits(network: TeacherNetwork, inputs: Tensor, name: str) -> Tensor:
    logits = predict(network.logits, inputs, device=network.device, batch_size=_batch_size(inputs))
    check_finite(logits, network.place, name)
    return logits


def _batch_size(inputs: Tensor) -> int:
    return max(16, min(256, MOST_NUMBERS // math.prod(inputs.shape[1:])))


def check_finite(logits: Tensor, place: str, name: str) -> None:
    """Raise InputError that counts the examples of a split with logits that are not finite."""
    bad = int((~logits.isfinite()).any(dim=1).sum())
    if bad:
        raise InputError(place, f"must give finite logits, but does not for {bad} of {len(logits)} on {name}")
