"""The last of the four steps: a student, meta-learned or random, trained on the target task, and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from metasearch.meta.artefacts import Artefact
from metasearch.models import build_network
from metasearch.objective import DistillationObjective
from metasearch.policies import constant, cosine
from metasearch.tasks import Task
from metasearch.teachers import Teacher
from metasearch.training import Schedule, TrainingData, train, validation_accuracy

BATCH = 32


@dataclass(frozen=True)
class FineTuning:
    """How students are trained on the target. alpha: of the teacher's part, where there is one."""

    epochs: int = 10
    rate: float = 5e-3
    alpha: float = 0.9
    temperature: float = 4.0


@dataclass(frozen=True, eq=False)
class Target:
    """What came of the target task: validation accuracy in [0, 1], before training and after each epoch, by start.

    student: the one that began with the meta-learned weights, trained.
    """

    student: nn.Module
    meta_learned: tuple[float, ...]
    random: tuple[float, ...]


def fine_tune_on(task: Task, artefact: Artefact, *, teacher: Teacher | None, settings: FineTuning, seed: int) -> Target:
    """Return both students' accuracies over the same batches of the same training.

    Raises InputError for a task of another input shape, TrialFailure where a training diverges.
    """
    learned = artefact.student_for(task, seed=seed)
    random = build_network(artefact.spec, input_shape=task.input_shape, classes=task.classes, seed=seed)
    curves = [tuple(_curve(model, task, teacher, settings, seed)) for model in (learned, random)]
    return Target(learned, *curves)


def _curve(model: nn.Module, task: Task, teacher: Teacher | None, settings: FineTuning, seed: int) -> list[float]:
    device = torch.device("cpu")
    data = TrainingData.without_teacher(task, device=device)
    alpha = 0.0
    if teacher is not None:
        inputs, labels = task.taught.inputs, task.taught.labels
        data, alpha = TrainingData(task, inputs, labels, teacher.teaching("train", loss="kd")), settings.alpha
    accuracies = [validation_accuracy(model, task, device=device)]
    for _, report in train(
        model,
        data,
        objective=DistillationObjective("kd", alpha, task.input_shape),
        schedule=Schedule(
            partial(cosine, start=settings.rate),
            partial(constant, value=settings.temperature),
            epochs=settings.epochs,
            batch_size=BATCH,
        ),
        generator=torch.Generator().manual_seed(seed),
        stage="fine_tune",
    ):
        accuracies.append(report.val_accuracy)
    return accuracies
