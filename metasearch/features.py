"""Features of a task: numbers by which tasks are compared, statistics and the results of cheap learners (landmarkers).

Always there, finite, of the train split unless said otherwise:

    log_examples, log_unlabelled   log(1 + count)
    log_classes, log_channels, log_height, log_width   log; of a vector: its length as channels, height and width 1
    is_image                1 for images, 0 for vectors
    balance                 entropy of the classes over log(classes): 1 where all are equally frequent
    pixel_mean, pixel_std, pixel_skewness, pixel_kurtosis   of image values in [0, 1], of normalised vectors; the last
                            two are the third and fourth standardized moment, 0 where nothing varies
    linear_probe_accuracy   of logistic regression, on validation
    one_nn_accuracy         of the nearest neighbour, on validation

With a teacher, of the validation split:

    teacher_accuracy        in [0, 1]
    teacher_entropy         mean entropy of its predictions over log(classes), in [0, 1]

Landmarkers (Pfahringer, Bensusan and Giraud-Carrier, 2000) see at most 1,000 train and 500 validation inputs, images
averaged over an 8 x 8 grid, and at most 256 numbers an input, by a random projection.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metasearch.errors import StorageError
from metasearch.folders import cache_folder
from metasearch.tasks import Task
from metasearch.tasks.task import Split
from metasearch.teachers import Teacher

VERSION = 1
"""Part of a cache file's name: changes with what a feature means."""
MOST_TRAIN, MOST_VALIDATION = 1000, 500
GRID = 8
MOST_NUMBERS = 256

Floats = npt.NDArray[np.float64]


def task_features(task: Task, teacher: Teacher | None = None, *, seed: int = 0) -> dict[str, float]:
    """Return the features of a task by name; those that need no teacher are cached by the task's fingerprint.

    seed: of the subsets and the projection. Raises StorageError if the cache cannot be written.
    """
    path = cache_folder() / "features" / f"{task.fingerprint[:32]}-{seed}-{VERSION}.json"
    features = _read(path)
    if features is None:
        features = statistics(task, seed=seed) | landmarkers(task, seed=seed)
        _write(path, features)
    return features if teacher is None else features | teacher_features(task, teacher)


def statistics(task: Task, *, seed: int) -> dict[str, float]:
    """Return what counting gives, and the moments of at most MOST_TRAIN train inputs."""
    channels, height, width = task.input_shape if task.is_image else (*task.input_shape, 1, 1)
    shares = np.bincount(task.train.labels.numpy(), minlength=task.classes) / len(task.train)
    inputs = _subset(task.train, MOST_TRAIN, seed).inputs
    values = (inputs.double() / 255 if task.is_image else task.normalisation(inputs).double()).numpy().ravel()
    mean, std = float(values.mean()), float(values.std())
    standardized = (values - mean) / std if std > 0 else np.zeros_like(values)
    return {
        "log_examples": math.log1p(len(task.train)),
        "log_unlabelled": math.log1p(0 if task.unlabelled is None else len(task.unlabelled)),
        "log_classes": math.log(task.classes),
        "log_channels": math.log(channels),
        "log_height": math.log(height),
        "log_width": math.log(width),
        "is_image": float(task.is_image),
        "balance": _entropy(shares[None]) / math.log(task.classes),
        "pixel_mean": mean,
        "pixel_std": std,
        "pixel_skewness": float((standardized**3).mean()),
        "pixel_kurtosis": float((standardized**4).mean()),
    }


def landmarkers(task: Task, *, seed: int) -> dict[str, float]:
    """Return the validation accuracy of a linear probe and of the nearest neighbour, trained on a subset."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, validation = _subset(task.train, MOST_TRAIN, seed), _subset(task.validation, MOST_VALIDATION, seed)
    inputs, others = _reduced(task, train.inputs, seed), _reduced(task, validation.inputs, seed)
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    # a number that is constant in the subset says nothing of the validation inputs either
    scale = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), 1 / np.maximum(std, 1e-12), 0.0)
    inputs, others = (inputs - mean) * scale, (others - mean) * scale
    labels, expected = train.labels.numpy(), validation.labels.numpy()
    nearest = KNeighborsClassifier(n_neighbors=1).fit(inputs, labels).predict(others)
    if len(np.unique(labels)) == 1:  # logistic regression refuses it
        linear = np.full_like(expected, labels[0])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a landmark need not be the optimum
            linear = LogisticRegression(C=0.1, max_iter=50).fit(inputs, labels).predict(others)
    return {
        "linear_probe_accuracy": float((linear == expected).mean()),
        "one_nn_accuracy": float((nearest == expected).mean()),
    }


def teacher_features(task: Task, teacher: Teacher) -> dict[str, float]:
    """Return how good and how sure a teacher is on the validation split."""
    probabilities = teacher.logits["validation"].double().softmax(dim=-1).cpu().numpy()
    entropy = _entropy(probabilities) / math.log(task.classes)
    return {"teacher_accuracy": float(teacher.metrics["val_accuracy"]), "teacher_entropy": entropy}


def _subset(split: Split, most: int, seed: int) -> Split:
    """Return at most `most` examples drawn without replacement, in their order: files are mapped, not read whole."""
    if len(split) <= most:
        return split
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), most, replace=False))
    return Split(split.inputs[chosen], split.labels[chosen])


def _reduced(task: Task, inputs: Tensor, seed: int) -> Floats:
    """Return inputs (N, ...) as (N, D) float64, D at most MOST_NUMBERS."""
    values = task.normalisation(inputs)
    if task.is_image:
        _, _, height, width = values.shape
        values = torch.nn.functional.adaptive_avg_pool2d(values, (min(GRID, height), min(GRID, width)))
    flat: Floats = values.flatten(1).double().numpy()
    if flat.shape[1] > MOST_NUMBERS:
        directions = np.random.default_rng(seed).normal(size=(flat.shape[1], MOST_NUMBERS))
        flat = flat @ directions / math.sqrt(MOST_NUMBERS)
    return flat


def _entropy(probabilities: Floats) -> float:
    """Return the mean entropy, in nats, of distributions (N, C)."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return float(-(probabilities * logs).sum(axis=1).mean())


def _read(path: Path) -> dict[str, float] | None:
    """Return what `_write` wrote; None where it is not there, or damaged and to be made again."""
    try:
        features: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return features


def _write(path: Path, features: dict[str, float]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(features), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        hint = "METASEARCH_HOME names another place"
        raise StorageError(f"{path.parent}: the task's features cannot be written ({error}); {hint}") from error
