"""Short trainings of small students, whose validation loss is what policies are learned by.

Symbols: N training examples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metasearch.errors import InputError
from metasearch.measure import predict
from metasearch.meta.policy_network import policy_features
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective
from metasearch.tasks import Split, Task
from metasearch.tasks.prepared import fingerprint
from metasearch.tasks.splits import SPLITS, choose, equal_counts
from metasearch.training import Schedule, TrainingData, laid_out

Value = Callable[[float], float]
"""A policy: from progress in [0, 1] to its value."""
MOST_VALIDATION = 500
DIVERGED_LOSS = 10.0
"""In units of log K, the loss of guessing: the most that a diverged training counts."""


@dataclass(frozen=True)
class ShortTraining:
    """How the students of the inner trainings are made and trained, on the CPU; alpha is 0 without a teacher."""

    student: NetworkSpec
    optimizer: str = "adamw"
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-4
    alpha: float = 0.0


@dataclass(frozen=True, eq=False)
class PolicyTask:
    """A task that is to be learnt in so many steps. teacher_logits: (N, K) on the train split, or None."""

    task: Task
    steps: int
    teacher_logits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("steps", "must be at least 1", self.steps)

    @cached_property
    def features(self) -> dict[str, float]:
        """What the policy network is told of it."""
        return policy_features(self.task, steps=self.steps)

    @cached_property
    def data(self) -> TrainingData:
        """The train split with what the teacher says of it, zeros without one."""
        plain = TrainingData.without_teacher(self.task, device=torch.device("cpu"))
        return plain if self.teacher_logits is None else replace(plain, teaching={"logits": self.teacher_logits[None]})


def few_examples(task: Task, *, examples: int, seed: int) -> Task:
    """Return the task with so many training examples, balanced over the classes, and at most MOST_VALIDATION others."""
    rng = np.random.default_rng(seed)
    splits = {name: getattr(task, name) for name in SPLITS}
    for name, count in (("train", examples), ("validation", MOST_VALIDATION)):
        split: Split = splits[name]
        kept = choose(split.labels.numpy(), count, counts_rule=equal_counts, classes=task.classes, rng=rng)
        positions = torch.from_numpy(kept)
        splits[name] = Split(split.inputs[positions], split.labels[positions])
    return replace(
        task,
        train=splits["train"],
        validation=splits["validation"],
        fingerprint=fingerprint(splits, task.class_names),
        unlabelled=None,
    )


def outer_loss(
    task: PolicyTask, learning_rate: Value, temperature: Value, *, training: ShortTraining, seed: int
) -> tuple[float, float]:
    """Return cross-entropy on the validation split, and accuracy, after a training under two policies.

    seed: of the student's first weights and of the order of examples. A diverged training counts DIVERGED_LOSS log K.
    """
    model = _trained(task, learning_rate, temperature, training, seed)
    validation, classes = task.task.validation, task.task.classes
    logits = predict(model, validation.inputs, prepare=task.task.normalisation)
    loss = float(functional.cross_entropy(logits, validation.labels))
    most = DIVERGED_LOSS * math.log(classes)
    accuracy = float((logits.argmax(dim=1) == validation.labels).double().mean())
    return (min(loss, most), accuracy) if math.isfinite(loss) else (most, 1 / classes)


def _trained(
    task: PolicyTask, learning_rate: Value, temperature: Value, training: ShortTraining, seed: int
) -> nn.Module:
    """Return a student after `task.steps` optimizer steps, as `metasearch.training` takes them.

    That loop validates after every epoch, which costs more here than the training: an epoch is a few steps long.
    """
    model = build_network(training.student, input_shape=task.task.input_shape, classes=task.task.classes, seed=seed)
    model = laid_out(model)
    model.train()
    objective = DistillationObjective("kd", training.alpha, task.task.input_shape)
    schedule = Schedule(
        learning_rate,
        temperature,
        epochs=1,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    optimizer = schedule.new_optimizer(model)
    batch_at, examples = task.data.epoch(0), len(task.data.labels)
    batch_size = min(training.batch_size, examples)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(task.steps):
        if len(order) < batch_size:
            order = torch.randperm(examples, generator=generator)
        indices, order = order[:batch_size], order[batch_size:]
        progress = step / task.steps
        inputs, teaching = batch_at(indices)
        loss = objective(model, inputs, teaching, task.data.labels[indices], temperature=temperature(progress))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        optimizer.step()
    return model
