"""What a teacher knows of a task: its logits on every split, computed once and cached, or read from a file.

Symbols: N examples, C classes, V augmented views, M members of an ensemble.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.measure import accuracy, expected_calibration_error, predict
from metasearch.models import NetworkSpec
from metasearch.objective import needed_features, teacher_features
from metasearch.records import EpochReport
from metasearch.taps import RULES
from metasearch.tasks import Split, Task
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.teachers.cache import Saved, cache_key, cache_path, read_cache, write_cache
from metasearch.teachers.opening import TeacherNetwork, normalisation_for, open_teacher
from metasearch.teachers.recipe import default_teacher
from metasearch.teachers.source import TeacherMember, TeacherSource

VIEWS = 4
"""Augmented views of the train split whose teacher logits are kept for students trained with augmentation."""

SPLITS = ("train", "validation", "test")
LABEL_MARGIN = 10.0
"""The logit of the predicted class where only labels are known; the others are 0. With 10 classes its probability is
0.9996 at temperature 1, so that a student sees the label and next to nothing else."""
FEATURE_GROUPS = ("attention", "hint", "embedding")
"""What the names of features begin with, before a point; each group is made and kept on its own."""
MOST_NUMBERS = 4_000_000
"""Numbers in one batch of inputs, so that large images do not take all memory."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's knowledge of one task: logits, and how good it is.

    logits: `train` (1, N, C); `views` (V, N, C) on the augmented views, empty where none were asked for; `validation`
    and `test` (N, C). metrics: val_accuracy, test_accuracy; val_ece unless it gives labels alone; parameters and macs,
    of all members, where they are known. seed: of its training and of the views. labels_only: whether the logits say
    which class is predicted, by a margin of LABEL_MARGIN, and nothing else. features: those that were asked for, by
    split and name (`train.hint`, `views.embedding`), (V, N, ...) each; of the first member that shows any.
    N in `train` and `views` counts the train split, then the unlabelled inputs.
    """

    spec: str
    seed: int
    logits: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    labels_only: bool = False
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def teaching(self, split: str, *, loss: str) -> dict[str, Tensor]:
        """Return what a loss reads of the teacher on `train` or `views`, (V, N, ...) each, by name.

        Raises InputError where the teacher was not asked for it, or has it not.
        """
        if len(self.logits[split]) == 0:
            raise InputError("augment", "needs the teacher's logits on augmented views: teacher_for(..., views=True)")
        prefix = f"{split}."
        own = {name.removeprefix(prefix): values for name, values in self.features.items() if name.startswith(prefix)}
        return {"logits": self.logits[split], **{name: own[name] for name in needed_features(loss, available=own)}}

    @property
    def feature_names(self) -> set[str]:
        """The features that a loss may read, such as `hint`."""
        return {name.partition(".")[2] for name in self.features}


@dataclass(frozen=True)
class _Known:
    """One member's logits by split (and `views`), its counts, its features, and whether it gives labels alone."""

    logits: Mapping[str, Tensor]
    counts: Mapping[str, int | None]
    labels_only: bool = False
    features: Mapping[str, Tensor] = field(default_factory=dict)


def teacher_for(
    task: Task,
    source: TeacherSource | NetworkSpec | str | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    views: bool = False,
    features: Collection[str] = (),
    progress: Callable[[EpochReport], None] | None = None,
) -> Teacher:
    """Return the task's teacher: opened, or trained (member i with seed + i), or read from the cache.

    source: None for the default teacher. views: whether logits on augmented views are needed. features: the
    losses whose features are needed, where the teacher shows them. progress: called after every training epoch.
    Raises InputError for a teacher that does not fit the task, NotFoundError for a missing file.
    """
    source = TeacherSource.of(default_teacher(task) if source is None else source).absolute()
    views = views and bool(task.augmentation)
    _check_views(source, views=views)
    known = [
        _read_logits(member, task)
        if member.is_logits
        else _network_logits(
            member,
            task,
            source.normalisation,
            seeds=(seed + index, seed),
            device=torch.device(device),
            views=views,
            groups=() if source.labels_only else _groups_of(features),
            names=source.features,
            progress=progress,
        )
        for index, member in enumerate(source.members)
    ]
    shares = [member.share for member in source.members]
    logits = {
        name: ensemble_logits([k.logits[name] for k in known], shares, mean=source.mean)
        for name in (*SPLITS, *(["views"] if views else []))
    }
    only_labels = all(k.labels_only for k in known)
    metrics: dict[str, float] = {
        "val_accuracy": accuracy(logits["validation"], task.validation.labels),
        "test_accuracy": accuracy(logits["test"], task.test.labels),
    }
    if not only_labels:
        metrics["val_ece"] = expected_calibration_error(logits["validation"], task.validation.labels)
    for name in ("parameters", "macs"):
        counts = [k.counts.get(name) for k in known]
        if None not in counts:
            metrics[name] = sum(count for count in counts if count is not None)
    if source.labels_only or only_labels:
        logits = {name: label_logits(tensor.argmax(dim=-1), task.classes) for name, tensor in logits.items()}
    logits = {"views": torch.empty(0)} | logits | {"train": logits["train"][None]}
    shown = next((k.features for k in known if k.features), {})
    return Teacher(str(source), seed, logits, metrics, source.labels_only or only_labels, shown)


def check_teacher(source: TeacherSource, task: Task, *, views: bool) -> set[str]:
    """Raise what `teacher_for` would raise for a teacher that is not there or does not fit, without training any.

    Returns the names of the features that it can show, such as `hint`.
    """
    source = source.absolute()
    _check_views(source, views=views and bool(task.augmentation))
    names: set[str] = set()
    for member in source.members:
        if member.is_logits:
            _read_logits(member, task)
            continue
        normalisation, features = source.normalisation, source.features
        network = open_teacher(member, task, normalisation=normalisation, train=False, features=features)
        if not names and not source.labels_only:
            names = set(_features(network, task.train.inputs[:1], FEATURE_GROUPS))
    return names


def ensemble_logits(logits: Sequence[Tensor], shares: Sequence[float], *, mean: str) -> Tensor:
    """Return the logits (..., C) of an ensemble of M members.

    mean `logits`: sum_m share_m * logits_m; `probabilities`: log sum_m share_m * softmax(logits_m), whose softmax is
    the mean of the members' probabilities. Shares are divided by their sum; a single member is returned as it is.
    """
    if len(logits) == 1:
        return logits[0]
    weights = torch.tensor(shares, dtype=torch.float32) / sum(shares)
    stacked = torch.stack(list(logits), dim=-1)  # (..., C, M)
    if mean == "logits":
        return stacked @ weights
    return (stacked.log_softmax(dim=-2) + weights.log()).logsumexp(dim=-1)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """Return logits (..., classes) that say which class each label names and nothing else. labels: (...), int64."""
    return LABEL_MARGIN * torch.nn.functional.one_hot(labels, classes).float()


def _groups_of(losses: Collection[str]) -> list[str]:
    """Return the groups of features that the losses read."""
    every = dict.fromkeys(FEATURE_GROUPS)
    read = {group for loss in losses for group in needed_features(loss, available=every)}
    return [group for group in FEATURE_GROUPS if group in read]


def _check_views(source: TeacherSource, *, views: bool) -> None:
    for member in source.members:
        if views and member.is_logits:
            raise InputError(
                member.place, "has no logits of augmented images: needs --augment none, or augment: false in the space"
            )


def _network_logits(
    member: TeacherMember,
    task: Task,
    normalisation: str,
    *,
    seeds: tuple[int, int],
    device: torch.device,
    views: bool,
    groups: Sequence[str],
    names: tuple[str, ...],
    progress: Callable[[EpochReport], None] | None,
) -> _Known:
    """Return a network's logits and features, from the cache where they are.

    seeds: of training, and of the views. groups: of FEATURE_GROUPS, those that are needed. names: of the values that
    are its features, empty for those of its layers.
    """
    seed, view_seed = seeds
    normalised = replace(task, normalisation=normalisation_for(normalisation, task))
    key = cache_key(normalised, member, seed=seed)
    opened: list[TeacherNetwork] = []

    def network() -> TeacherNetwork:
        if not opened:
            opened.append(
                open_teacher(
                    member,
                    task,
                    normalisation=normalisation,
                    seed=seed,
                    device=device,
                    features=names,
                    progress=progress,
                )
            )
        return opened[0]

    def cached(part: str, make: Callable[[], Saved]) -> Saved:
        path = cache_path(key, part=part)
        return read_cache(path) or write_cache(path, *make())

    def augmented(inputs: Tensor) -> dict[str, Tensor]:
        return {"views": _logits(network(), inputs, "augmented train")}

    seen = f"views{VIEWS}-{view_seed}"
    kept, counts = cached("", lambda: _split_logits_of(network(), task))
    logits = dict(kept)
    if views:
        logits |= cached(seen, lambda: (_shown(augmented, task, views=VIEWS, seed=view_seed), {}))[0]
    shown: dict[str, Tensor] = {}
    splits = [("train", 0, ""), *([("views", VIEWS, f"-{seen}")] if views else [])]
    for split, count, suffix in splits:
        paths = {
            group: cache_path(key, part=f"features-{group}{suffix}", found_by=(str(RULES), *names)) for group in groups
        }
        found = {group: saved[0] for group, path in paths.items() if (saved := read_cache(path)) is not None}
        if missing := [group for group in groups if group not in found]:
            made = _shown(lambda inputs: _features(network(), inputs, missing), task, views=count, seed=view_seed)
            for group in missing:
                found[group] = {name: values for name, values in made.items() if _group(name) == group}
                write_cache(paths[group], found[group], {})
        shown |= {f"{split}.{name}": values for tensors in found.values() for name, values in tensors.items()}
    return _Known(logits, counts, features=shown)


def _split_logits_of(network: TeacherNetwork, task: Task) -> Saved:
    inputs = {"train": task.taught.inputs, "validation": task.validation.inputs, "test": task.test.inputs}
    tensors = {name: _logits(network, values, name) for name, values in inputs.items()}
    return tensors, {"parameters": network.parameters, "macs": network.macs}


def _shown(show: Callable[[Tensor], dict[str, Tensor]], task: Task, *, views: int, seed: int) -> dict[str, Tensor]:
    """Return what `show` says of every taught input, by name: (V, N, ...) of augmented views, (1, N, ...) without any.

    Filled in place: the parts and the whole at once would take twice the memory.
    """
    inputs = task.taught.inputs
    whole: dict[str, Tensor] = {}
    for view in range(max(1, views)):
        choices = view_choices(task.augmentation, count=len(inputs), view=view, seed=seed) if views else None
        for part in torch.split(torch.arange(len(inputs)), 4096):
            seen = inputs[part] if choices is None else apply_choices(inputs[part], choices[part])
            for name, values in show(seen).items():
                if name not in whole:
                    whole[name] = torch.empty(max(1, views), len(inputs), *values.shape[1:], dtype=values.dtype)
                whole[name][view, part] = values
    return whole


def _features(network: TeacherNetwork, inputs: Tensor, groups: Collection[str]) -> dict[str, Tensor]:
    """Return the network's features (N, ...) of the groups by name, none where it shows none."""
    batch_size = network.batch or _batch_size(inputs)
    shown = teacher_features(network.features, inputs, batch_size=batch_size)
    return {name: values for name, values in shown.items() if _group(name) in groups}


def _group(name: str) -> str:
    return name.partition(".")[0]


def _logits(network: TeacherNetwork, inputs: Tensor, name: str) -> Tensor:
    logits = predict(network.logits, inputs, device=network.device, batch_size=_batch_size(inputs))
    _check_finite(logits, network.place, name)
    return logits


def _batch_size(inputs: Tensor) -> int:
    return max(16, min(256, MOST_NUMBERS // math.prod(inputs.shape[1:])))


def _read_logits(member: TeacherMember, task: Task) -> _Known:
    """Return what an .npz file says of the three splits; integers (N,) are labels, floats (N, C) are logits.

    Raises InputError if it is damaged, lacks a split, or has other rows or classes than the task.
    """
    if task.unlabelled is not None:
        raise InputError(member.place, "has no logits of unlabelled images: needs a network for --unlabelled")
    try:
        with np.load(member.text, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            member.place, f"cannot be read as an .npz archive without pickled objects ({error})"
        ) from error
    if set(arrays) != set(SPLITS):
        raise InputError(member.place, f"must have exactly the arrays {', '.join(SPLITS)}", sorted(arrays))
    labels = {name: array.dtype.kind in "iu" for name, array in arrays.items()}
    if len(set(labels.values())) > 1:
        raise InputError(member.place, "must have labels for every split or logits for every split", str(labels))
    logits = {name: _split_logits(arrays[name], getattr(task, name), task.classes, member, name) for name in SPLITS}
    return _Known(logits, {}, labels_only=labels["train"])


def _split_logits(array: np.ndarray, split: Split, classes: int, member: TeacherMember, name: str) -> Tensor:
    place, only_labels = f"{member.place}: {name}", array.dtype.kind in "iu"
    if not (only_labels or array.dtype.kind == "f"):
        raise InputError(place, "must be floats (logits) or integers (labels)", str(array.dtype))
    wanted = (len(split),) if only_labels else (len(split), classes)
    if array.shape != wanted:
        raise InputError(
            place, f"must have shape {wanted}: a row an example, in the task's order", f"shape={array.shape}"
        )
    if not only_labels:
        logits = torch.from_numpy(array.astype(np.float32))
        _check_finite(logits, member.place, name)
        return logits
    if array.min() < 0 or array.max() >= classes:
        raise InputError(place, f"must have labels in 0..{classes - 1}", f"{array.min()}..{array.max()}")
    return label_logits(torch.from_numpy(array.astype(np.int64)), classes)


def _check_finite(logits: Tensor, place: str, name: str) -> None:
    bad = int((~logits.isfinite()).any(dim=1).sum())
    if bad:
        raise InputError(place, f"must give finite logits, but does not for {bad} of {len(logits)} on {name}")
