from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from metasearch.distill import distillation_loss
from metasearch.errors import InputError, TrialFailure
from metasearch.models import NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.policies import Policy
from metasearch.records import EpochReport
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import Augmentation, Task
from metasearch.training import OfLogits, Schedule, TrainingData, laid_out, train, validation_accuracy
from tests.synthetic import synthetic_task

CPU = torch.device("cpu")
SPEC = NetworkSpec("convnet", width=3, depth=2)


def cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return distillation_loss(student, teacher, labels, temperature=temperature, alpha=0.0)


def schedule_of(*, epochs: int = 3, batch_size: int = 32, rate: float = 0.02, optimizer: str = "adamw") -> Schedule:
    return Schedule(
        learning_rate=Policy("constant", {"value": rate}),
        temperature=Policy("constant", {"value": 1.0}),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
    )


def network(task: Task, seed: int = 0) -> nn.Module:
    return build_network(SPEC, input_shape=task.input_shape, classes=task.classes, seed=seed)


def trained(
    task: Task,
    *,
    schedule: Schedule | None = None,
    loss: Callable[..., Tensor] = cross_entropy,
    data: TrainingData | None = None,
    seed: int = 0,
    reshape: Callable[[nn.Module, int], nn.Module] | None = None,
) -> tuple[nn.Module, list[EpochReport]]:
    """Train a small network and return it with the reports of all epochs."""
    model, reports = network(task, seed), []
    for latest, report in train(
        model,
        data or TrainingData.without_teacher(task, device=CPU),
        objective=OfLogits(loss),
        schedule=schedule or schedule_of(),
        generator=torch.Generator().manual_seed(seed),
        stage="distill",
        reshape=reshape,
    ):
        model = latest
        reports.append(report)
    return model, reports


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loss_falls_and_the_task_is_learnt(optimizer: str) -> None:
    task = synthetic_task()
    model, reports = trained(
        task, schedule=schedule_of(epochs=6, optimizer=optimizer, rate={"sgd": 0.1, "adamw": 0.02}[optimizer])
    )
    losses = [report.train_loss for report in reports]
    assert losses[-1] < 0.5 * losses[0]
    assert reports[-1].val_accuracy > 0.9
    assert validation_accuracy(model, task, device=CPU) == reports[-1].val_accuracy


def test_every_epoch_gives_a_full_report() -> None:
    _, reports = trained(synthetic_task(), schedule=schedule_of(epochs=2))
    assert [(r.stage, r.epoch, r.epochs) for r in reports] == [("distill", 1, 2), ("distill", 2, 2)]
    assert all(r.macs > 0 and r.seconds > 0 and r.temperature == 1.0 for r in reports)
    assert [r.learning_rate for r in reports] == [0.02, 0.02]


@dataclass
class SpiedLoss:
    """Cross-entropy that remembers the batches it saw."""

    sizes: list[int] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        self.sizes.append(len(student))
        self.labels.append(labels)
        self.temperatures.append(temperature)
        return cross_entropy(student, teacher, labels, temperature=temperature)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(120, [120]), (60, [60, 60]), (50, [50, 50]), (119, [119]), (500, [120])]
)
def test_incomplete_last_batches_are_dropped_where_a_full_one_exists(batch_size: int, sizes: list[int]) -> None:
    spy = SpiedLoss()
    trained(synthetic_task(), schedule=schedule_of(epochs=2, batch_size=batch_size), loss=spy)
    assert spy.sizes == sizes * 2


def test_an_epoch_sees_every_example_once_in_another_order_each_time() -> None:
    task = synthetic_task()
    # as many classes as examples: the label tells which example it is
    names = tuple(map(str, range(120)))
    task = replace(task, train=replace(task.train, labels=torch.arange(120)), class_names=names)
    spy = SpiedLoss()
    trained(task, schedule=schedule_of(epochs=2, batch_size=30), loss=spy)
    epochs = [torch.cat(spy.labels[:4]), torch.cat(spy.labels[4:])]
    assert all(torch.equal(order.sort().values, torch.arange(120)) for order in epochs)
    assert not torch.equal(*epochs)


def test_policies_are_read_at_every_step_over_the_whole_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def spied(self: torch.optim.AdamW) -> None:
        rates.extend({group["lr"] for group in self.param_groups})
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    spy = SpiedLoss()
    rate, temperature = Policy("one_cycle", {"peak": 0.01}), Policy("linear", {"start": 8.0, "end": 1.0})
    schedule = replace(schedule_of(epochs=3, batch_size=30), learning_rate=rate, temperature=temperature)
    _, reports = trained(synthetic_task(), schedule=schedule, loss=spy)
    assert rates == [rate(index / 12) for index in range(12)]
    assert spy.temperatures == [temperature(index / 12) for index in range(12)]
    assert [r.learning_rate for r in reports] == [rates[3], rates[7], rates[11]]


def test_a_step_of_sgd_is_the_gradient_step_by_hand() -> None:
    task = synthetic_task()
    schedule = replace(schedule_of(epochs=1, batch_size=120, rate=0.1, optimizer="sgd"), momentum=0.0, weight_decay=0.2)
    model, reference = trained(task, schedule=schedule)[0], network(task).train()
    logits = reference(task.normalisation(task.train.inputs))
    nn.functional.cross_entropy(logits, task.train.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for after, before in zip(model.parameters(), reference.parameters(), strict=True):
        assert before.grad is not None
        decay = 0.2 if before.ndim > 1 else 0.0
        torch.testing.assert_close(after, before - 0.1 * (before.grad + decay * before), atol=1e-6, rtol=1e-5)


def test_biases_and_normalisation_are_not_decayed() -> None:
    model = network(synthetic_task())
    for name in ("sgd", "adamw"):
        optimizer = replace(schedule_of(optimizer=name), weight_decay=0.3).new_optimizer(model)
        decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.3 for p in g["params"]}
        spared = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
        assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
        assert spared == {id(p) for p in model.parameters() if p.ndim == 1}


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"^optimizer: must be one of sgd, adamw, got 'adam'$"):
        schedule_of(optimizer="adam")


def test_a_reshaped_network_is_trained_by_a_fresh_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    new_optimizer = Schedule.new_optimizer

    def spied(self: Schedule, model: nn.Module, beside: Sequence[nn.Parameter] = ()) -> torch.optim.Optimizer:
        made.append(model)
        return new_optimizer(self, model, beside)

    monkeypatch.setattr(Schedule, "new_optimizer", spied)
    before: list[Tensor] = []

    def reshape(model: nn.Module, epoch: int) -> nn.Module:
        if epoch != 1:
            return model
        smaller = keep_channels(model, [torch.arange(group.size - 1) for group in channel_groups(model)])
        before.extend(parameter.detach().clone() for parameter in smaller.parameters())
        return smaller

    model, reports = trained(synthetic_task(), reshape=reshape)
    assert len(made) == 2
    assert made[1] is model
    assert made[0] is not model
    assert reports[0].macs > reports[1].macs == reports[2].macs
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_reshape_is_asked_at_the_start_of_every_epoch() -> None:
    asked: list[int] = []

    def reshape(model: nn.Module, epoch: int) -> nn.Module:
        asked.append(epoch)
        return model

    trained(synthetic_task(), reshape=reshape)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_a_diverged_trial(value: float) -> None:
    def loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        return student.sum() * 0 + value

    with pytest.raises(TrialFailure, match=rf"^diverged: loss {value} in epoch 1 of distill$") as failure:
        trained(synthetic_task(), loss=loss)
    assert failure.value.reason == "diverged"


def test_a_single_bad_batch_is_enough_to_diverge() -> None:
    calls = iter(range(100))

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        bad = math.nan if next(calls) == 4 else 1.0
        return cross_entropy(student, teacher, labels, temperature=temperature) * bad

    with pytest.raises(TrialFailure, match="in epoch 2"):
        trained(synthetic_task(), loss=loss)


def test_the_seed_decides_everything() -> None:
    task = synthetic_task()
    first, again, other = (trained(task, seed=seed) for seed in (1, 1, 2))

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(flat(first[0]), flat(again[0]))
    assert [r.train_loss for r in first[1]] == [r.train_loss for r in again[1]]
    assert not torch.equal(flat(first[0]), flat(other[0]))


def test_training_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    trained(synthetic_task(augmentation=Augmentation(2, True)))
    assert torch.equal(torch.get_rng_state(), before)


def fingerprint_logits(inputs: Tensor) -> Tensor:
    """Return three numbers a row that tell one input from another: what a `teacher` says of it."""
    flat = inputs.flatten(1)
    weights = torch.randn(flat.shape[1], 3, generator=torch.Generator().manual_seed(4))
    return flat @ weights


class Echo(nn.Module):
    """A `student` whose logits are the teacher's function of its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return fingerprint_logits(x) + 0 * self.unused


@pytest.mark.parametrize("augmentation", [Augmentation(2), Augmentation(0, True), Augmentation(3, True)])
def test_the_teacher_has_seen_the_very_view_that_the_student_sees(augmentation: Augmentation) -> None:
    task, seed, views = synthetic_task(augmentation=augmentation), 5, 3
    logits = torch.stack(
        [
            fingerprint_logits(
                task.normalisation(
                    apply_choices(
                        task.train.inputs, view_choices(augmentation, count=len(task.train), view=view, seed=seed)
                    )
                )
            )
            for view in range(views)
        ]
    )
    data = TrainingData(task, task.train.inputs, task.train.labels, {"logits": logits}, augmented=True, seed=seed)
    compared = 0
    seen: list[Tensor] = []

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
        nonlocal compared
        torch.testing.assert_close(student, teacher)
        compared += len(student)
        seen.append(student.detach().sum())
        return student.sum() * 0

    echo = Echo()
    reports = list(
        train(
            echo,
            data,
            objective=OfLogits(loss),
            schedule=schedule_of(epochs=4, batch_size=40),
            generator=torch.Generator().manual_seed(0),
            stage="distill",
        )
    )
    assert len(reports) == 4
    assert compared == 4 * len(task.train)
    first_epoch, second_epoch, fourth_epoch = sum(seen[:3]), sum(seen[3:6]), sum(seen[9:])
    assert not torch.isclose(torch.as_tensor(first_epoch), torch.as_tensor(second_epoch))
    assert torch.isclose(torch.as_tensor(first_epoch), torch.as_tensor(fourth_epoch), rtol=1e-3)


def test_without_augmentation_the_student_sees_the_inputs_as_they_are() -> None:
    task = synthetic_task(augmentation=Augmentation(2, True))
    logits = fingerprint_logits(task.normalisation(task.train.inputs))[None]
    data = TrainingData(task, task.train.inputs, task.train.labels, {"logits": logits})
    inputs, teaching = data.epoch(7)(torch.tensor([5, 0, 119]))
    torch.testing.assert_close(fingerprint_logits(inputs), teaching["logits"])


def test_without_a_teacher_the_logits_are_zeros_that_take_no_memory() -> None:
    task = synthetic_task(augmentation=Augmentation(1))
    data = TrainingData.without_teacher(task, device=CPU, views=1000)
    assert data.teaching["logits"].shape == (1000, 120, 3)
    assert data.teaching["logits"].untyped_storage().nbytes() == 4
    assert data.augmented
    assert not TrainingData.without_teacher(task, device=CPU).augmented


@pytest.mark.parametrize(("width", "together"), [(4, False), (7, False), (8, True), (16, True)])
def test_wide_convolutions_keep_the_channels_of_a_pixel_together(width: int, together: bool) -> None:
    spec = NetworkSpec("convnet", width=width, depth=2)
    model = build_network(spec, input_shape=(3, 8, 8), classes=3, seed=0)
    inputs = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(inputs)
    assert laid_out(model) is model
    torch.testing.assert_close(model(inputs), before)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [together] * 2


def test_a_network_narrowed_below_eight_channels_goes_back_to_the_usual_layout() -> None:
    model = laid_out(build_network(NetworkSpec("convnet", width=8, depth=1), input_shape=(3, 8, 8), classes=3, seed=0))
    smaller = laid_out(keep_channels(model, [torch.arange(4)]))
    assert smaller.get_submodule("0").weight.is_contiguous()  # type: ignore[operator]  # a tensor
