"""What is to be known of a task's data before a search: balance, broken and repeated examples, statistics.

Symbols: N examples of a split, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np

from metasearch.tasks.advice import advice_on
from metasearch.tasks.duplicates import digests
from metasearch.tasks.findings import Conflicts, Constants, Place, Repeats, TaskCheck
from metasearch.tasks.prepared import channel_moments, chunks
from metasearch.tasks.raw import Array
from metasearch.tasks.splits import SPLITS
from metasearch.tasks.task import Task


def check_task(task: Task) -> TaskCheck:
    """Return what is to be known of a task's data; splits that are memory-mapped are read chunk by chunk.

    Inputs are the same where their bytes at rest are, told by a 128-bit digest. Files that were skipped as corrupt are
    those that the task's provenance names.
    """
    repeats, conflicts = _repeated(task)
    mean, std = channel_moments(task.train.inputs.numpy()) if task.is_image else (np.empty(0), np.empty(0))
    counts = {name: _class_counts(task, name) for name in SPLITS}
    of_train = counts["train"].values()
    corrupt, corrupt_count = _corrupt_files(task)
    found = TaskCheck(
        task=task.name,
        input_shape=task.input_shape,
        counts=counts,
        imbalance=max(of_train) / max(1, min(of_train)),
        channel_mean=tuple((mean / 255).tolist()),
        channel_std=tuple((std / 255).tolist()),
        constant_features=() if task.is_image else _constant_features(task),
        constants=tuple(_constant_images(task)) if task.is_image else (),
        repeats=repeats,
        conflicts=conflicts,
        corrupt=corrupt,
        corrupt_count=corrupt_count,
        unlabelled=0 if task.unlabelled is None else len(task.unlabelled),
        advice=(),
    )
    return replace(found, advice=tuple(advice_on(found)))


def _repeated(task: Task) -> tuple[tuple[Repeats, ...], Conflicts | None]:
    first: dict[str, dict[bytes, int]] = {name: {} for name in SPLITS}
    earliest: dict[bytes, Place] = {}
    conflicting: dict[bytes, tuple[Place, Place]] = {}
    pairs = [(name, name) for name in SPLITS] + [(later, earlier) for earlier, later in combinations(SPLITS, 2)]
    equal: dict[tuple[str, str], list[tuple[int, int]]] = {pair: [] for pair in pairs}
    for at, name in enumerate(SPLITS):
        split = getattr(task, name)
        for position, (digest, label) in enumerate(
            zip(digests(split.inputs.numpy()), split.labels.tolist(), strict=True)
        ):
            for other in SPLITS[: at + 1]:
                if digest in first[other]:
                    equal[name, other].append((position, first[other][digest]))
            first[name].setdefault(digest, position)
            place = (name, position, task.class_names[label])
            known = earliest.setdefault(digest, place)
            if known[2] != place[2]:
                conflicting.setdefault(digest, (known, place))
    repeats = tuple(Repeats(split, of, len(found), found[0]) for (split, of) in pairs if (found := equal[split, of]))
    return repeats, Conflicts(len(conflicting), next(iter(conflicting.values()))) if conflicting else None


def _class_counts(task: Task, name: str) -> dict[str, int]:
    counts = np.bincount(getattr(task, name).labels.numpy(), minlength=task.classes)
    return dict(zip(task.class_names, counts.tolist(), strict=True))


def _constant_images(task: Task) -> Iterable[Constants]:
    for name in SPLITS:
        images = getattr(task, name).inputs.numpy()
        parts = [_without_variation(images[part]) for part in chunks(images, len(images))]
        if len(positions := np.flatnonzero(np.concatenate(parts))):
            yield Constants(name, len(positions), int(positions[0]))


def _without_variation(images: Array) -> Array:
    flat = images.reshape(*images.shape[:2], -1)
    return np.asarray((flat.max(axis=2) == flat.min(axis=2)).all(axis=1))


def _constant_features(task: Task) -> tuple[str, ...]:
    vectors = task.train.inputs.numpy()
    names = task.provenance.get("notes", {}).get("columns", range(vectors.shape[1]))
    constant = vectors.max(axis=0) == vectors.min(axis=0)
    return tuple(str(name) for name, found in zip(names, constant, strict=True) if found)


def _corrupt_files(task: Task) -> tuple[tuple[str, ...], int]:
    notes = [task.provenance.get(key, {}) for key in ("notes", "unlabelled")]
    names = tuple(name for note in notes for name in note.get("corrupt_files", ()))
    return names, sum(note.get("corrupt_files_skipped", 0) for note in notes)
