"""The training loop: epochs over one split, with an objective and policies, yielding after every epoch.

Symbols: N examples, B batch, C classes, V augmented views, p progress in [0, 1] over all optimizer steps of the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from metasearch.errors import InputError, TrialFailure
from metasearch.hypergradient import Hypergradient
from metasearch.measure import accuracy, count_macs, predict
from metasearch.records import EpochReport
from metasearch.tasks import Task
from metasearch.tasks.augment import Choices, apply_choices, view_choices

Teaching = Mapping[str, Tensor]
"""What the teacher says of a batch, by name: `logits` (B, C), and the features that an objective asks for."""


class Objective(Protocol):
    """What training makes small."""

    def attach(self, model: nn.Module) -> list[nn.Parameter]:
        """Get ready for a network, new or reshaped; return parameters of the objective's own to train beside it."""

    def __call__(
        self, model: nn.Module, inputs: Tensor, teaching: Teaching, labels: Tensor, *, temperature: float
    ) -> Tensor:
        """Run the model on network inputs (B, ...); return the mean loss over the batch, a scalar."""


@dataclass(frozen=True)
class OfLogits:
    """The objective of a loss that needs nothing but logits.

    loss(student_logits (B, C), teacher_logits (B, C), labels (B,), *, temperature) -> scalar.
    """

    loss: Callable[..., Tensor]

    def attach(self, model: nn.Module) -> list[nn.Parameter]:
        """Return no parameters."""
        return []

    def __call__(
        self, model: nn.Module, inputs: Tensor, teaching: Teaching, labels: Tensor, *, temperature: float
    ) -> Tensor:
        """Return the loss of the model's logits."""
        return self.loss(model(inputs), teaching["logits"], labels, temperature=temperature)


OPTIMIZERS = ("sgd", "adamw")
CHANNELS_TOGETHER = 8


@dataclass(frozen=True)
class TrainingData:
    """Examples on their device, with what the teacher says of each view of them.

    inputs: (N, ...) at rest. labels: (N,). teaching: (V, N, ...) each; epoch e uses entry e modulo V. augmented:
    whether that entry is a view of `task.augmentation` (its random choices depend on `seed` and the entry alone, so
    that they can be replayed for the student) rather than the plain inputs.
    """

    task: Task
    inputs: Tensor
    labels: Tensor
    teaching: Teaching
    augmented: bool = False
    seed: int = 0

    @classmethod
    def without_teacher(cls, task: Task, *, device: torch.device, views: int = 0, seed: int = 0) -> TrainingData:
        """Return the train split on `device`, zeros for logits, augmented with `views` different views if any."""
        zeros = torch.zeros(1, 1, 1, device=device).expand(max(views, 1), len(task.train), task.classes)
        inputs, labels = task.train.inputs.to(device), task.train.labels.to(device)
        return cls(task, inputs, labels, {"logits": zeros}, views > 0, seed)

    def epoch(self, epoch: int) -> Callable[[Tensor], tuple[Tensor, Teaching]]:
        """Return, for a 0-based epoch, a function from indices (B,) to network inputs and the teaching on them."""
        view = epoch % len(self.teaching["logits"])
        taught = {name: values[view] for name, values in self.teaching.items()}
        normalise = self.task.normalisation
        choices: Choices | None = None
        if self.augmented:
            drawn = view_choices(self.task.augmentation, count=len(self.labels), view=view, seed=self.seed)
            choices = drawn.to(self.inputs.device)

        def batch(indices: Tensor) -> tuple[Tensor, Teaching]:
            inputs = self.inputs[indices]
            if choices is not None:
                inputs = apply_choices(inputs, choices[indices])
            return normalise(inputs), {name: values[indices] for name, values in taught.items()}

        return batch


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: policies (functions of progress), and the plain settings beside them.

    learning_rate: a function of progress, or the rate that adapts as it goes.
    """

    learning_rate: Callable[[float], float] | Hypergradient
    temperature: Callable[[float], float]
    epochs: int
    batch_size: int
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError("optimizer", f"must be one of {', '.join(OPTIMIZERS)}", self.optimizer)

    def rate_at(self, progress: float, model: nn.Module) -> float:
        """Return the learning rate of the step to come. model: with the gradients of that step."""
        rate = self.learning_rate
        return rate.adapted(model) if isinstance(rate, Hypergradient) else rate(progress)

    def new_optimizer(self, model: nn.Module, beside: Sequence[nn.Parameter] = ()) -> torch.optim.Optimizer:
        """Return a fresh optimizer of the model and the parameters beside it.

        Biases and normalisation parameters (one dimension) are not decayed, nor is what stands beside the model.
        """
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [*(p for p in model.parameters() if p.ndim <= 1), *beside], "weight_decay": 0.0},
        ]
        # The rate is set before every step; fused=True is one kernel call a step instead of several a tensor.
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=0.1, momentum=self.momentum, nesterov=self.momentum > 0, fused=True)
        return torch.optim.AdamW(groups, lr=1e-3, betas=(self.momentum, 0.999), fused=True)


def train(
    model: nn.Module,
    data: TrainingData,
    *,
    objective: Objective,
    schedule: Schedule,
    generator: torch.Generator,
    stage: str,
    reshape: Callable[[nn.Module, int], nn.Module] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
) -> Iterator[tuple[nn.Module, EpochReport]]:
    """Train `model` in place, yielding it with a report after every epoch.

    reshape(model, epoch) may return another network (narrowed or pruned) at the start of the 0-based epoch; it then
    gets a fresh optimizer. after_step: called after every optimizer step, to hold weights where they belong. generator:
    draws the order of examples (on the CPU). Incomplete last batches are dropped where a full one exists.
    Raises TrialFailure("diverged") at the end of an epoch whose loss is not finite.
    """
    optimizer: torch.optim.Optimizer | None = None
    macs = 0
    for epoch in range(schedule.epochs):
        started = time.perf_counter()
        new = model if reshape is None else reshape(model, epoch)
        if optimizer is None or new is not model:
            model = laid_out(new)
            optimizer = schedule.new_optimizer(model, objective.attach(model))
            macs = count_macs(model, data.task.input_shape)
        order = torch.randperm(len(data.labels), generator=generator).to(data.inputs.device)
        steps = _Steps(model, optimizer, objective, schedule, after_step)
        loss, learning_rate, temperature = steps.run(data, order, epoch)
        if not math.isfinite(loss):
            raise TrialFailure("diverged", f"loss {loss} in epoch {epoch + 1} of {stage}")
        yield (
            model,
            EpochReport(
                stage=stage,
                epoch=epoch + 1,
                epochs=schedule.epochs,
                train_loss=loss,
                val_accuracy=validation_accuracy(model, data.task, device=data.inputs.device),
                macs=macs,
                learning_rate=learning_rate,
                temperature=temperature,
                seconds=time.perf_counter() - started,
            ),
        )


@dataclass(frozen=True)
class _Steps:
    """The optimizer steps of one epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    schedule: Schedule
    after_step: Callable[[nn.Module], None] | None

    def run(self, data: TrainingData, order: Tensor, epoch: int) -> tuple[float, float, float]:
        """Return the mean loss, and the last learning rate and temperature. order: of the examples, (N,)."""
        self.model.train()
        batch_size = min(self.schedule.batch_size, len(order))
        steps = len(order) // batch_size
        batch_at = data.epoch(epoch)
        total = torch.zeros((), device=order.device)
        learning_rate = temperature = 0.0
        for step in range(steps):
            progress = (epoch * steps + step) / (self.schedule.epochs * steps)
            temperature = self.schedule.temperature(progress)
            indices = order[step * batch_size : (step + 1) * batch_size]
            inputs, teaching = batch_at(indices)
            loss = self.objective(self.model, inputs, teaching, data.labels[indices], temperature=temperature)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            learning_rate = self.schedule.rate_at(progress, self.model)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            if self.after_step is not None:
                self.after_step(self.model)
            total += loss.detach()
        return float(total) / steps, learning_rate, temperature


def laid_out(model: nn.Module) -> nn.Module:
    """Return the model with the memory layout in which its convolutions train fastest on the CPU; same values.

    With 8 channels or more, those of a pixel lie together (channels_last): an epoch of convnets of width 8 to 24 on
    images of 8 to 96 pixels takes 1.1 to 1.5 times less CPU time, of width 4 up to 1.3 times more (one thread, AVX-512;
    torch 2.15's max pooling is what gains most). Other devices were not measured and keep the usual layout.
    """
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.weight.device.type != "cpu":
        return model
    together = first.out_channels >= CHANNELS_TOGETHER
    layout = torch.channels_last if together else torch.contiguous_format
    return model.to(memory_format=layout)


def validation_accuracy(model: nn.Module, task: Task, *, device: torch.device) -> float:
    """Return the accuracy in [0, 1] of a network on the validation split."""
    logits = predict(model, task.validation.inputs, prepare=task.normalisation, device=device)
    return accuracy(logits, task.validation.labels)
