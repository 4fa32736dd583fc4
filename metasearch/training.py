"""The training loop: epochs over one split, with a loss and policies, yielding after every epoch.

Symbols: N examples, B batch, C classes, V augmented views, p progress in [0, 1] over all optimizer steps of the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metasearch.errors import InputError, TrialFailure
from metasearch.measure import accuracy, count_macs, predict
from metasearch.records import EpochReport
from metasearch.tasks import Task
from metasearch.tasks.augment import apply_choices, view_choices

Loss = Callable[..., Tensor]
"""loss(student_logits (B, C), teacher_logits (B, C), labels (B,), *, temperature: float) -> scalar."""

OPTIMIZERS = ("sgd", "adamw")
CHANNELS_TOGETHER = 8


@dataclass(frozen=True)
class TrainingData:
    """One split on its device, with the teacher's logits for each view of it.

    inputs: (N, ...) at rest. teacher_logits: (V, N, C) float32; epoch e uses entry e modulo V. augmented: whether that
    entry is a view of `task.augmentation` (its random choices depend on `seed` and the entry alone, so that they can
    be replayed for the student) rather than the plain inputs.
    """

    task: Task
    inputs: Tensor
    labels: Tensor
    teacher_logits: Tensor
    augmented: bool = False
    seed: int = 0

    @classmethod
    def without_teacher(cls, task: Task, *, device: torch.device, views: int = 0, seed: int = 0) -> TrainingData:
        """Return the train split on `device`, zeros for logits, augmented with `views` different views if any."""
        zeros = torch.zeros(1, 1, 1, device=device).expand(max(views, 1), len(task.train), task.classes)
        return cls(task, task.train.inputs.to(device), task.train.labels.to(device), zeros, views > 0, seed)

    def epoch(self, epoch: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return, for a 0-based epoch, a function from indices (B,) to network inputs, and the logits (N, C)."""
        view = epoch % len(self.teacher_logits)
        normalise = self.task.normalisation
        if not self.augmented:
            return lambda indices: normalise(self.inputs[indices]), self.teacher_logits[view]
        choices = view_choices(self.task.augmentation, count=len(self.labels), view=view, seed=self.seed)
        choices = choices.to(self.inputs.device)
        return lambda indices: normalise(apply_choices(self.inputs[indices], choices[indices])), self.teacher_logits[
            view
        ]


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: policies (functions of progress), and the plain settings beside them."""

    learning_rate: Callable[[float], float]
    temperature: Callable[[float], float]
    epochs: int
    batch_size: int
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError("optimizer", f"must be one of {', '.join(OPTIMIZERS)}", self.optimizer)

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a fresh optimizer; biases and normalisation parameters (one dimension) are not decayed."""
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # The rate is set before every step; fused=True is one kernel call a step instead of several a tensor.
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=0.1, momentum=self.momentum, nesterov=self.momentum > 0, fused=True)
        return torch.optim.AdamW(groups, lr=1e-3, betas=(self.momentum, 0.999), fused=True)


def train(
    model: nn.Module,
    data: TrainingData,
    *,
    loss: Loss,
    schedule: Schedule,
    generator: torch.Generator,
    stage: str,
    reshape: Callable[[nn.Module, int], nn.Module] | None = None,
) -> Iterator[tuple[nn.Module, EpochReport]]:
    """Train `model` in place, yielding it with a report after every epoch.

    reshape(model, epoch) may return another network (narrowed or pruned) at the start of the 0-based epoch; it then
    gets a fresh optimizer. generator: draws the order of examples (on the CPU). Incomplete last batches are dropped
    where a full one exists. Raises TrialFailure("diverged") at the end of an epoch whose loss is not finite.
    """
    device = data.inputs.device
    count = len(data.labels)
    batch_size = min(schedule.batch_size, count)
    steps = count // batch_size
    model = laid_out(model)
    optimizer = schedule.new_optimizer(model)
    macs = count_macs(model, data.task.input_shape)
    for epoch in range(schedule.epochs):
        started = time.perf_counter()
        if reshape is not None and (new := reshape(model, epoch)) is not model:
            model, optimizer = laid_out(new), schedule.new_optimizer(new)
            macs = count_macs(model, data.task.input_shape)
        model.train()
        inputs_at, teacher_logits = data.epoch(epoch)
        order = torch.randperm(count, generator=generator).to(device)
        total = torch.zeros((), device=device)
        learning_rate = temperature = 0.0
        for step in range(steps):
            progress = (epoch * steps + step) / (schedule.epochs * steps)
            learning_rate, temperature = schedule.learning_rate(progress), schedule.temperature(progress)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            indices = order[step * batch_size : (step + 1) * batch_size]
            value = loss(
                model(inputs_at(indices)), teacher_logits[indices], data.labels[indices], temperature=temperature
            )
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            total += value.detach()
        mean_loss = float(total) / steps
        if mean_loss != mean_loss or abs(mean_loss) == float("inf"):
            raise TrialFailure("diverged", f"loss {mean_loss} in epoch {epoch + 1} of {stage}")
        yield (
            model,
            EpochReport(
                stage=stage,
                epoch=epoch + 1,
                epochs=schedule.epochs,
                train_loss=mean_loss,
                val_accuracy=validation_accuracy(model, data.task, device=device),
                macs=macs,
                learning_rate=learning_rate,
                temperature=temperature,
                seconds=time.perf_counter() - started,
            ),
        )


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
