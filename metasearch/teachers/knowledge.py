"""What a teacher knows of a task: its logits on every split, computed once and cached, or read from a file.

Symbols: N examples, C classes, V augmented views, M members of an ensemble.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.measure import accuracy, expected_calibration_error, predict
from metasearch.models import NetworkSpec
from metasearch.records import EpochReport
from metasearch.tasks import Split, Task
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.teachers.cache import cache_path, read_cache, write_cache
from metasearch.teachers.opening import TeacherNetwork, normalisation_for, open_teacher
from metasearch.teachers.recipe import default_teacher
from metasearch.teachers.source import TeacherMember, TeacherSource

VIEWS = 4
"""Augmented views of the train split whose teacher logits are kept for students trained with augmentation."""

SPLITS = ("train", "validation", "test")
LABEL_MARGIN = 10.0
"""The logit of the predicted class where only labels are known; the others are 0. With 10 classes its probability is
0.9996 at temperature 1, so that a student sees the label and next to nothing else."""
MOST_NUMBERS = 4_000_000
"""Numbers in one batch of inputs, so that large images do not take all memory."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's knowledge of one task: logits, and how good it is.

    logits: `train` (1, N, C); `views` (V, N, C) on the augmented views, empty where none were asked for; `validation`
    and `test` (N, C). metrics: val_accuracy, test_accuracy; val_ece unless it gives labels alone; parameters and macs,
    of all members, where they are known. seed: of its training and of the views. labels_only: whether the logits say
    which class is predicted, by a margin of LABEL_MARGIN, and nothing else.
    """

    spec: str
    seed: int
    logits: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    labels_only: bool = False


@dataclass(frozen=True)
class _Known:
    """One member's logits by split (and `views`), its counts, and whether it gives labels alone."""

    logits: Mapping[str, Tensor]
    counts: Mapping[str, int | None]
    labels_only: bool = False


def teacher_for(
    task: Task,
    source: TeacherSource | NetworkSpec | str | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    views: bool = False,
    progress: Callable[[EpochReport], None] | None = None,
) -> Teacher:
    """Return the task's teacher: opened, or trained (member i with seed + i), or read from the cache.

    source: None for the default teacher. views: whether logits on augmented views are needed. progress: called after
    every training epoch. Raises InputError for a teacher that does not fit the task, NotFoundError for a missing file.
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
    return Teacher(str(source), seed, logits, metrics, labels_only=source.labels_only or only_labels)


def check_teacher(source: TeacherSource, task: Task, *, views: bool) -> None:
    """Raise what `teacher_for` would raise for a teacher that is not there or does not fit, without training any."""
    source = source.absolute()
    _check_views(source, views=views and bool(task.augmentation))
    for member in source.members:
        if member.is_logits:
            _read_logits(member, task)
        else:
            open_teacher(member, task, normalisation=source.normalisation, train=False)


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
    progress: Callable[[EpochReport], None] | None,
) -> _Known:
    """Return a network's logits, from the cache where they are. seeds: of its training, and of the views."""
    seed, view_seed = seeds
    normalised = replace(task, normalisation=normalisation_for(normalisation, task))
    path = cache_path(normalised, member, seed=seed)
    views_path = cache_path(normalised, member, seed=seed, part=f"views{VIEWS}-{view_seed}")
    kept, seen = read_cache(path), read_cache(views_path) if views else ({}, {})
    if kept is None or seen is None:
        network = open_teacher(member, task, normalisation=normalisation, seed=seed, device=device, progress=progress)
        if kept is None:
            tensors = {name: _logits(network, getattr(task, name).inputs, name) for name in SPLITS}
            kept = write_cache(path, tensors, {"parameters": network.parameters, "macs": network.macs})
        if seen is None:
            stacked = torch.stack([_view_logits(network, task, view, seed=view_seed) for view in range(VIEWS)])
            seen = write_cache(views_path, {"views": stacked}, {})
    return _Known({**kept[0], **seen[0]}, kept[1])


def _logits(network: TeacherNetwork, inputs: Tensor, name: str) -> Tensor:
    batch_size = max(16, min(256, MOST_NUMBERS // math.prod(inputs.shape[1:])))
    logits = predict(network.logits, inputs, device=network.device, batch_size=batch_size)
    _check_finite(logits, network.place, name)
    return logits


def _view_logits(network: TeacherNetwork, task: Task, view: int, *, seed: int) -> Tensor:
    choices = view_choices(task.augmentation, count=len(task.train), view=view, seed=seed)
    parts = torch.split(torch.arange(len(task.train)), 4096)
    name = f"augmented train (view {view})"
    return torch.cat([_logits(network, apply_choices(task.train.inputs[part], choices[part]), name) for part in parts])


def _read_logits(member: TeacherMember, task: Task) -> _Known:
    """Return what an .npz file says of the three splits; integers (N,) are labels, floats (N, C) are logits.

    Raises InputError if it is damaged, lacks a split, or has other rows or classes than the task.
    """
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
