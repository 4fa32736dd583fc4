"""A small task that a small network learns in a second, and a teacher for it that needs no training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metasearch.tasks.prepared import fingerprint, fit_normalisation
from metasearch.tasks.task import Augmentation, Split, Task
from metasearch.teachers import Teacher

CLASSES = 3


def synthetic_task(
    *,
    counts: tuple[int, int, int] = (120, 60, 60),
    shape: tuple[int, ...] = (1, 8, 8),
    augmentation: Augmentation | None = None,
    noise: float = 0.35,
    seed: int = 0,
    sorted_by_class: bool = False,
) -> Task:
    """Return a task of three classes, each a fixed random pattern under noise. counts: of train, validation, test.

    noise: its standard deviation, where that of the patterns is 1.
    """
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(CLASSES, *shape))

    def split(count: int) -> Split:
        labels = np.arange(count) % CLASSES
        labels = np.sort(labels) if sorted_by_class else rng.permutation(labels)
        values = patterns[labels] + noise * rng.normal(size=(count, *shape))
        if len(shape) == 1:
            return Split(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels))
        grey = np.clip(128 + 40 * values, 0, 255).astype(np.uint8)
        return Split(torch.from_numpy(grey), torch.from_numpy(labels))

    splits = {name: split(count) for name, count in zip(("train", "validation", "test"), counts, strict=True)}
    names = tuple(f"class {index}" for index in range(CLASSES))
    return Task(
        name="synthetic",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=names,
        normalisation=fit_normalisation(splits["train"]),
        augmentation=augmentation or Augmentation(),
        fingerprint=fingerprint(splits, names),
    )


def knowing_teacher(task: Task, *, views: int = 0) -> Teacher:
    """Return a teacher that is sure of the right class on every split, and on `views` views of the train split."""

    def logits(split: Split) -> Tensor:
        return 6.0 * torch.nn.functional.one_hot(split.labels, task.classes).float()

    train = logits(task.train)
    return Teacher(
        spec="none",
        seed=0,
        logits={
            "train": train[None],
            "views": train.expand(views, -1, -1) if views else torch.empty(0),
            "validation": logits(task.validation),
            "test": logits(task.test),
        },
        metrics={"val_accuracy": 1.0},
    )


def with_augmentation(task: Task, augmentation: Augmentation) -> Task:
    """Return the same data under another augmentation."""
    return replace(task, augmentation=augmentation)
