"""What each distillation loss gains over plain cross-entropy, and what unlabelled images add.

Every loss has the same steps, and its learning rate (and weight, where it has one) is chosen on the validation split,
by the mean over the seeds; cross-entropy is also given its best epoch on validation. The test split is read for the
chosen ones alone. The teacher has seen more images than the student, and the table says how many.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.measure import accuracy, count_parameters, predict
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective, needed_features, teacher_features
from metasearch.policies import Policy
from metasearch.taps import Tap
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.tasks.task import UNLABELLED
from metasearch.teachers import train_teacher
from metasearch.training import Schedule, TrainingData, train
from tests.bench.job import data_root
from tests.bench.sides import SLOTS, Verdict, conditions, print_table

CPU = torch.device("cpu")
STUDENT = NetworkSpec("convnet", width=6, depth=2)
TEACHER = NetworkSpec("convnet", width=24, depth=6)
RATES = (0.012, 0.025, 0.05, 0.1, 0.2)
WEIGHTS = {"at": (1.0, 10.0), "hint": (1.0, 10.0), "rkd": (1.0, 10.0)}
TEMPERATURE, ALPHA, BATCH = 4.0, 0.9, 32
STEPS, QUICK_STEPS = 600, 30
SEEDS, QUICK_SEEDS = 5, 2
TARGET = 0.03
"""By how much kd must beat cross-entropy on the test split, on every task."""


@dataclass(frozen=True)
class Case:
    """A task with few training images for the student, and the same with more for the teacher."""

    student: TaskSource
    teacher: TaskSource


@dataclass(frozen=True)
class Trial:
    """One training of the student."""

    case: Case
    loss: str
    rate: float
    seed: int
    steps: int
    weight: float = 1.0
    standardized: bool = False
    unlabelled: int = 0

    def setting(self) -> Trial:
        """Return what is chosen on validation: everything but the seed."""
        return replace(self, seed=0)

    @property
    def name(self) -> str:
        """The row of the table that it belongs to."""
        return self.loss + (" standardized" if self.standardized else "")


@dataclass(frozen=True)
class Outcome:
    """Accuracies at the last epoch, and at the best on validation."""

    last_val: float
    last_test: float
    best_val: float
    best_test: float


def run(*, quick: bool) -> Verdict:
    """Measure and print one table a task; judge kd against cross-entropy."""
    root = data_root()
    cases = [Case(TaskSource("digits", max_train=200), TaskSource("digits"))]
    if root is not None:
        place = str(root)
        for name in ("usps", "fashion_mnist"):
            few, many = (TaskSource(name, data_root=place, max_train=count, image_size=16) for count in (500, 6_000))
            cases.append(Case(few, many))
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if quick else (STEPS, SEEDS)
    gains = []
    for case in cases[:1] if quick else cases:
        prepare(case)
        outcomes = run_all(_trials(case, steps=steps, seeds=seeds))
        gains.append(_show(case, outcomes, steps))
    text = f"kd over cross-entropy, test accuracy, by task: {', '.join(f'{gain:+.4f}' for gain in gains)}"
    met = None if quick or root is None else all(gain >= TARGET for gain in gains)
    return Verdict("distillation", met, f"{text} (target: at least {TARGET:+})")


def _trials(case: Case, *, steps: int, seeds: int) -> list[Trial]:
    rows: list[dict[str, Any]] = [
        {"loss": "cross-entropy"},
        *({"loss": loss} for loss in ("kd", "hard", "dkd", "dist")),
    ]
    rows += [{"loss": "kd", "standardized": True}]
    rows += [{"loss": loss, "weight": weight} for loss, weights in WEIGHTS.items() for weight in weights]
    return [
        Trial(case=case, rate=rate, seed=seed, steps=steps, **row)
        for row in rows
        for rate in RATES
        for seed in range(seeds)
    ]


def run_all(trials: list[Trial]) -> dict[Trial, Outcome]:
    """Run the trials, as many at once as there are slots, one thread each."""
    with multiprocessing.get_context("spawn").Pool(SLOTS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return dict(zip(trials, pool.map(fit, trials, chunksize=5), strict=True))


def best_by_validation(outcomes: dict[Trial, Outcome], *, at_best_epoch: bool) -> tuple[Trial, list[float]]:
    """Return the setting with the best mean validation accuracy, and its test accuracies over the seeds."""
    by_setting: dict[Trial, list[Outcome]] = {}
    for trial, outcome in outcomes.items():
        by_setting.setdefault(trial.setting(), []).append(outcome)

    def validated(setting: Trial) -> float:
        return mean(o.best_val if at_best_epoch else o.last_val for o in by_setting[setting])

    best = max(by_setting, key=validated)
    return best, [o.best_test if at_best_epoch else o.last_test for o in by_setting[best]]


def _show(case: Case, outcomes: dict[Trial, Outcome], steps: int) -> float:
    rows, tests = [], {}
    for name in dict.fromkeys(trial.name for trial in outcomes):
        own = {trial: outcome for trial, outcome in outcomes.items() if trial.name == name}
        chosen, accuracies = best_by_validation(own, at_best_epoch=name == "cross-entropy")
        tests[name] = mean(accuracies)
        rows.append((name, f"{chosen.rate:g}", f"{chosen.weight:g}", f"{tests[name]:.4f}", f"{stdev(accuracies):.4f}"))
    task, teacher = load_task(case.student), load_task(case.teacher)
    network = build_network(STUDENT, input_shape=task.input_shape, classes=task.classes, seed=0)
    teacher_logits = predict(_teacher(case), task.test.inputs, prepare=teacher.normalisation)
    notes = [
        conditions(),
        f"student {STUDENT}, {count_parameters(network):,} parameters, {len(task.train)} images; "
        f"teacher {TEACHER}, {len(teacher.train):,} images, test {accuracy(teacher_logits, task.test.labels):.4f}",
        f"{steps} steps of {BATCH}, AdamW, one cycle; T {TEMPERATURE:g}, alpha {ALPHA:g}; rate of {len(RATES)} and "
        "weight chosen on validation; cross-entropy at its best epoch on validation; at, hint and rkd stand beside kd",
    ]
    header = ("loss", "rate", "weight", "test accuracy", "deviation over seeds")
    print_table(f"Distillation losses on {case.student.text}", header, rows, notes)
    return tests["kd"] - tests["cross-entropy"]


def prepare(case: Case) -> None:
    """Train the teacher of a case, unless it was trained before, so that the workers find it."""
    if not _teacher_file(case).exists():
        print(f"training the teacher of {case.teacher.text} ...")
        task = load_task(case.teacher)
        torch.save(train_teacher(task, TEACHER, seed=0, device=CPU).state_dict(), _teacher_file(case))


def _teacher_file(case: Case) -> Path:
    from metasearch.folders import cache_folder

    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{load_task(case.teacher).fingerprint[:16]}-{TEACHER.width}-{TEACHER.depth}.pt"


def _teacher(case: Case) -> nn.Module:
    task = load_task(case.teacher)
    network = build_network(TEACHER, input_shape=task.input_shape, classes=task.classes, seed=0)
    network.load_state_dict(torch.load(_teacher_file(case), weights_only=True))
    return network.eval()


def fit(trial: Trial) -> Outcome:
    """Train one student and measure it after every epoch."""
    task, loss = load_task(trial.case.student), "kd" if trial.loss == "cross-entropy" else trial.loss
    data = _data(task, trial, loss)
    epochs = max(1, round(trial.steps * BATCH / len(data.labels)))
    objective = DistillationObjective(
        loss,
        0.0 if trial.loss == "cross-entropy" else ALPHA,
        task.input_shape,
        feature_weight=trial.weight,
        standardized=trial.standardized,
        shapes={name: tuple(values.shape[2:]) for name, values in data.teaching.items()},
        seed=trial.seed,
    )
    schedule = Schedule(
        learning_rate=Policy("one_cycle", {"peak": trial.rate}),
        temperature=Policy("constant", {"value": TEMPERATURE}),
        epochs=epochs,
        batch_size=BATCH,
        weight_decay=1e-4,
    )
    model = build_network(STUDENT, input_shape=task.input_shape, classes=task.classes, seed=trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    best_val, best = -1.0, model
    for trained, report in train(
        model, data, objective=objective, schedule=schedule, generator=generator, stage="distill"
    ):
        if report.val_accuracy > best_val:
            best_val, best = report.val_accuracy, copy.deepcopy(trained)
    last_val, last_test = (_accuracy(model, task, split) for split in ("validation", "test"))
    return Outcome(last_val, last_test, best_val, _accuracy(best, task, "test"))


def _data(task: Task, trial: Trial, loss: str) -> TrainingData:
    inputs, labels = task.train.inputs, task.train.labels
    if trial.unlabelled:
        extra = load_task(trial.case.teacher).train.inputs[: trial.unlabelled]
        inputs = torch.cat([inputs, extra])
        labels = torch.cat([labels, torch.full((len(extra),), UNLABELLED)])
    teacher, normalise = _teacher(trial.case), load_task(trial.case.teacher).normalisation
    teaching: dict[str, Tensor] = {"logits": predict(teacher, inputs, prepare=normalise)[None]}
    if loss in WEIGHTS:
        tap = Tap.of(teacher, task.input_shape)
        features = teacher_features(lambda batch: tap.read(teacher, normalise(batch)), inputs)
        teaching |= {name: features[name][None] for name in needed_features(loss, available=features)}
    return TrainingData(task, inputs, labels, teaching)


def _accuracy(model: nn.Module, task: Task, split: str) -> float:
    part = getattr(task, split)
    return accuracy(predict(model, part.inputs, prepare=task.normalisation), part.labels)


def run_unlabelled(*, quick: bool) -> Verdict:
    """Measure 100 labelled Fashion-MNIST images with and without 2,000 unlabelled ones, at equal steps."""
    root = data_root()
    if root is None:
        return Verdict("unlabelled", None, "skipped: no FashionMNIST/raw in METASEARCH_DATA or shared/data")
    few, many = (TaskSource("fashion_mnist", data_root=os.fspath(root), max_train=count) for count in (100, 6_000))
    case = Case(few, many)
    prepare(case)
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if quick else (2 * STEPS, SEEDS)
    trials = [
        Trial(case=case, loss=loss, rate=rate, seed=seed, steps=steps, unlabelled=extra)
        for loss, extra in (("cross-entropy", 0), ("kd", 0), ("kd", 2_000))
        for rate in RATES
        for seed in range(seeds)
    ]
    outcomes = run_all(trials)
    rows, tests = [], []
    for loss, extra in (("cross-entropy", 0), ("kd", 0), ("kd", 2_000)):
        own = {t: o for t, o in outcomes.items() if (t.loss, t.unlabelled) == (loss, extra)}
        chosen, accuracies = best_by_validation(own, at_best_epoch=loss == "cross-entropy")
        tests.append(accuracies)
        rows.append((loss, str(extra), f"{chosen.rate:g}", f"{mean(accuracies):.4f}", f"{stdev(accuracies):.4f}"))
    header = ("loss", "unlabelled", "rate", "test accuracy", "deviation over seeds")
    print_table("Unlabelled images, 100 labelled ones of Fashion-MNIST", header, rows, [conditions()])
    gains = [with_extra - without for without, with_extra in zip(tests[1], tests[2], strict=True)]
    text = f"kd gains {mean(gains):+.4f} (deviation over seeds {stdev(gains):.4f}) by 2,000 unlabelled images"
    return Verdict("unlabelled", None if quick else mean(gains) > 0, text)
