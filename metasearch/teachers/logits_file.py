"""A teacher of whom a file holds the logits, or the labels that it predicts.

Symbols: N examples, C classes.
"""

from __future__ import annotations

import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.tasks import Split, Task
from metasearch.teachers.network_member import SPLITS, Known, check_finite
from metasearch.teachers.source import TeacherMember

LABEL_MARGIN = 10.0
"""The logit of the predicted class where only labels are known; the others are 0. With 10 classes its probability is
0.9996 at temperature 1, so that a student sees the label and next to nothing else."""


def read_logits(member: TeacherMember, task: Task) -> Known:
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
    return Known(logits, {}, labels_only=labels["train"])


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
        check_finite(logits, member.place, name)
        return logits
    if array.min() < 0 or array.max() >= classes:
        raise InputError(place, f"must have labels in 0..{classes - 1}", f"{array.min()}..{array.max()}")
    return label_logits(torch.from_numpy(array.astype(np.int64)), classes)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """Return logits (..., classes) that say which class each label names and nothing else. labels: (...), int64."""
    return LABEL_MARGIN * torch.nn.functional.one_hot(labels, classes).float()
