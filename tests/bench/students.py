"""One small student, trained with one loss at one learning rate, and how the rate is chosen: what the studies share.

A case is a task with few training images for the student, and the same with more for the teacher: the two have the
test split in common, and the student's training and validation images are among the teacher's task's.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn

from metasearch.folders import cache_folder
from metasearch.measure import accuracy, predict
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import FEATURE_LOSSES, DistillationObjective, needed_features, teacher_features
from metasearch.policies import Policy
from metasearch.taps import Tap
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.tasks.task import UNLABELLED
from metasearch.tasks.unlabelled import Mixing, mixtures
from metasearch.teachers import train_teacher
from metasearch.training import Schedule, TrainingData, train

CPU = torch.device("cpu")
STUDENT = NetworkSpec("convnet", width=6, depth=2)
TEACHER = NetworkSpec("convnet", width=24, depth=6)
ALPHA, BATCH = 0.9, 32
CROSS_ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Case:
    """A task with few training images for the student, and the same with more for the teacher."""

    student: TaskSource
    teacher: TaskSource


@dataclass(frozen=True)
class Trial:
    """One training of the student.

    unlabelled: how many of the teacher's images it sees without their labels. mixed: how many mixtures of its own
    images, which the teacher names, or, with `mixed_labels`, the labels of the two in their shares.
    """

    case: Case
    loss: str
    steps: int
    temperature: float
    rate: float = 0.0
    seed: int = 0
    weight: float = 1.0
    standardized: bool = False
    unlabelled: int = 0
    mixed: int = 0
    mixed_labels: bool = False


@dataclass(frozen=True)
class Outcome:
    """Accuracies on validation and test, at the best epoch on validation."""

    val: float
    test: float


@dataclass(frozen=True)
class Chosen:
    """A row's learning rate, and the test accuracies of the seeds at it."""

    rate: float
    tests: list[float]


def choose(pool: Pool, rows: Sequence[Trial], *, rates: Sequence[float], seeds: int, chosen_by: int) -> list[Chosen]:
    """Return for each row the rate with the best mean validation accuracy over `chosen_by` seeds, run with all seeds.

    rows: trials without rate and seed.
    """
    found: dict[Trial, Outcome] = {}

    def run(trials: list[Trial]) -> None:
        found.update(zip(trials, pool.map(fit, trials, chunksize=1), strict=True))

    run([replace(row, rate=rate, seed=seed) for row in rows for rate in rates for seed in range(chosen_by)])

    def validated(row: Trial) -> float:
        return mean(found[replace(row, seed=seed)].val for seed in range(chosen_by))

    best = [max((replace(row, rate=rate) for rate in rates), key=validated) for row in rows]
    run([replace(row, seed=seed) for row in best for seed in range(chosen_by, seeds)])
    return [Chosen(row.rate, [found[replace(row, seed=seed)].test for seed in range(seeds)]) for row in best]


def prepare(case: Case) -> None:
    """Train the teacher of a case, unless it was trained before, so that the workers find it."""
    if not teacher_file(case).exists():
        print(f"training the teacher of {case.teacher.text} ...")
        task = load_task(case.teacher)
        torch.save(train_teacher(task, TEACHER, seed=0, device=CPU).state_dict(), teacher_file(case))


def teacher_file(case: Case) -> Path:
    """Return where the weights of a case's teacher lie."""
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{load_task(case.teacher).fingerprint[:16]}-{TEACHER.width}-{TEACHER.depth}.pt"


def teacher_network(case: Case) -> nn.Module:
    """Return a case's teacher, which `prepare` has trained."""
    task = load_task(case.teacher)
    network = build_network(TEACHER, input_shape=task.input_shape, classes=task.classes, seed=0)
    network.load_state_dict(torch.load(teacher_file(case), weights_only=True))
    return network.eval()


def fit(trial: Trial) -> Outcome:
    """Train one student; return its accuracies at the best epoch."""
    task, loss = load_task(trial.case.student), "kd" if trial.loss == CROSS_ENTROPY else trial.loss
    data = _data(task, trial, loss)
    epochs = max(1, round(trial.steps * BATCH / len(data.labels)))
    objective = DistillationObjective(
        loss,
        0.0 if trial.loss == CROSS_ENTROPY else ALPHA,
        task.input_shape,
        feature_weight=trial.weight,
        standardized=trial.standardized,
        shapes={name: tuple(values.shape[2:]) for name, values in data.teaching.items()},
        seed=trial.seed,
    )
    schedule = Schedule(
        learning_rate=Policy("one_cycle", {"peak": trial.rate}),
        temperature=Policy("constant", {"value": trial.temperature}),
        epochs=epochs,
        batch_size=BATCH,
        weight_decay=1e-4,
    )
    model = build_network(STUDENT, input_shape=task.input_shape, classes=task.classes, seed=trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    best, best_val = model, -1.0
    for trained, report in train(
        model, data, objective=objective, schedule=schedule, generator=generator, stage="distill"
    ):
        if report.val_accuracy > best_val:
            best, best_val = copy.deepcopy(trained), report.val_accuracy
    test_logits = predict(best, task.test.inputs, prepare=task.normalisation)
    return Outcome(best_val, accuracy(test_logits, task.test.labels))


def _data(task: Task, trial: Trial, loss: str) -> TrainingData:
    inputs, labels = task.train.inputs, task.train.labels
    if trial.unlabelled:
        extra = load_task(trial.case.teacher).train.inputs[: trial.unlabelled]
        inputs = torch.cat([inputs, extra])
        labels = torch.cat([labels, torch.full((len(extra),), UNLABELLED)])
    if trial.mixed:
        return _mixed_data(task, trial)
    teacher, normalise = teacher_network(trial.case), load_task(trial.case.teacher).normalisation
    teaching: dict[str, Tensor] = {"logits": predict(teacher, inputs, prepare=normalise)[None]}
    if loss in FEATURE_LOSSES:
        tap = Tap.of(teacher, task.input_shape)
        features = teacher_features(lambda batch: tap.read(teacher, normalise(batch)), inputs)
        teaching |= {name: features[name][None] for name in needed_features(loss, available=features)}
    return TrainingData(task, inputs, labels, teaching)


def _mixed_data(task: Task, trial: Trial) -> TrainingData:
    """Return the student's own images and mixtures of them, all with the teacher's logits or with mixed labels."""
    inputs, labels = task.train.inputs, task.train.labels
    mixing = Mixing.draw(trial.mixed, examples=len(labels), seed=trial.seed)
    with tempfile.TemporaryDirectory() as scratch:
        mixed = torch.from_numpy(np.array(mixtures(inputs.numpy(), mixing, file=Path(scratch) / "mixed.npy")))
    every = torch.cat([inputs, mixed])
    if trial.mixed_labels:
        shares = torch.eye(task.classes)[labels].numpy()
        logits = torch.from_numpy(np.concatenate([shares, mixing.of(shares, slice(None))])).clamp_min(1e-4).log()
    else:
        normalise = load_task(trial.case.teacher).normalisation
        logits = predict(teacher_network(trial.case), every, prepare=normalise)
    without = torch.full((len(mixed),), UNLABELLED)
    return TrainingData(task, every, torch.cat([labels, without]), {"logits": logits[None]})
