"""How a teacher is trained where its weights are not given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metasearch.distill import distillation_loss
from metasearch.models import NetworkSpec
from metasearch.policies import Policy
from metasearch.records import EpochReport
from metasearch.tasks import Task
from metasearch.teachers.networks import build_teacher
from metasearch.training import OfLogits, Schedule, TrainingData, train

RECIPE = 1
"""Raised whenever the training below changes, so that cached teachers of the old recipe are not taken for new ones."""


def default_teacher(task: Task) -> NetworkSpec:
    """Return the spec of the teacher trained where none is named: wide enough to be worth learning from."""
    return NetworkSpec("convnet", width=24, depth=6) if task.is_image else NetworkSpec("mlp", width=64, depth=3)


def train_teacher(
    task: Task,
    network: NetworkSpec | str,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[EpochReport], None] | None = None,
) -> nn.Module:
    """Return a network trained with labels alone, by AdamW under a one-cycle rate, with the task's augmentation.

    network: a spec, or the spelling of another architecture. Long enough for 150,000 examples seen, within 10 to 30
    epochs; no label smoothing, which makes a teacher's logits worth less to a student (Mueller et al. 2019, section 5).
    """
    epochs = min(max(round(150_000 / len(task.train)), 10), 30)
    schedule = Schedule(
        learning_rate=Policy("one_cycle", {"peak": 0.004}),
        temperature=Policy("constant", {"value": 1.0}),
        epochs=epochs,
        batch_size=min(128, max(16, len(task.train) // 20)),
        weight_decay=0.02,
    )
    model = build_teacher(str(network), input_shape=task.input_shape, classes=task.classes, seed=seed).to(device)
    data = TrainingData.without_teacher(task, device=device, views=epochs if task.augmentation else 0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    objective = OfLogits(_cross_entropy)
    for _, report in train(model, data, objective=objective, schedule=schedule, generator=generator, stage="teacher"):
        if progress is not None:
            progress(report)
    return model.eval()


def _cross_entropy(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return distillation_loss(student_logits, teacher_logits, labels, temperature=temperature, alpha=0.0)
