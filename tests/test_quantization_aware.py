from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasearch.measure import accuracy, count_macs, count_parameters
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import Convolution, Linear, LoweredNetwork, Operation, lower
from metasearch.quantization_aware import FakeQuantized
from metasearch.quantize import Quantization, quantize, quantize_with
from metasearch.sparse import apply_masks, magnitude_masks
from metasearch.training import OfLogits, Schedule, TrainingData, train
from tests.synthetic import synthetic_task

TASK = synthetic_task(counts=(120, 60, 300), noise=1.0)


class Residual(nn.Module):
    """A residual sum around a grouped convolution, then pooling of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
        self.head = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.head(torch.relu(self.body(x) + x))
        return logits


def model_of(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "residual":
            return Residual()
        return build_network(NetworkSpec(kind, 6, 3), input_shape=(1, 8, 8), classes=3, seed=0)


def cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return F.cross_entropy(student, labels)


def squared_error(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return F.mse_loss(student, teacher)


def trained(
    model: nn.Module,
    *,
    loss: Callable[..., Tensor] = cross_entropy,
    teacher: Tensor | None = None,
    epochs: int = 8,
    rate: float = 0.01,
    weight_decay: float = 0.0,
) -> nn.Module:
    schedule = Schedule(
        lambda p: rate * (1 - p), lambda p: 1.0, epochs=epochs, batch_size=20, weight_decay=weight_decay
    )
    data = TrainingData.without_teacher(TASK, device=torch.device("cpu"))
    if teacher is not None:
        data = replace(data, teaching={"logits": teacher[None]})
    generator = torch.Generator().manual_seed(0)
    for _ in train(model, data, objective=OfLogits(loss), schedule=schedule, generator=generator, stage="distill"):
        pass
    return model.eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {kind: trained(model_of(kind)) for kind in ("convnet", "mlp", "residual")}


def lowered(model: nn.Module) -> LoweredNetwork:
    return lower(model, normalisation=TASK.normalisation, input_shape=TASK.input_shape)


def ranges(network: LoweredNetwork, *, times: float = 1) -> dict[str, Quantization]:
    """Return calibrated ranges made so many times as wide: few levels are used above 1, most values clipped below."""
    fitted = quantize(network, TASK.train.inputs).activations
    return {
        name: replace(q, scale=q.scale * times, zero_point=round(q.zero_point / max(times, 1)))
        for name, q in fitted.items()
    }


def logits_of(network: FakeQuantized, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(TASK.normalisation(inputs))
        return logits


KINDS = ("convnet", "mlp", "residual")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [0.5, 1, 8])
def test_what_is_trained_computes_what_the_int8_network_computes(
    kind: str, times: float, networks: dict[str, nn.Module]
) -> None:
    network = lowered(networks[kind])
    activations = ranges(network, times=times)
    inputs = TASK.test.inputs
    ours, int8 = logits_of(FakeQuantized(network, activations), inputs), quantize_with(network, activations)(inputs)
    # A value that float rounding puts on the other side of a tie moves one step; most inputs meet none.
    near = (ours - int8).abs().amax(dim=1) < 1e-4 * float(int8.abs().max())
    assert float(near.double().mean()) > 0.7
    assert accuracy(ours, int8.argmax(dim=1)) >= 0.98
    apart = (network(inputs) - int8).abs().amax(dim=1) > 1e-4 * float(int8.abs().max())
    assert float(apart.double().mean()) > 0.9  # the float network's logits are others


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_and_a_round_trip_change_nothing(kind: str, networks: dict[str, nn.Module]) -> None:
    network = lowered(networks[kind])
    fake = FakeQuantized(network, ranges(network))
    assert torch.equal(logits_of(fake.train(), TASK.test.inputs), logits_of(fake.eval(), TASK.test.inputs))
    for before, after in zip(network.operations, fake.lowered().operations, strict=True):
        if isinstance(before, (Convolution, Linear)) and isinstance(after, (Convolution, Linear)):
            assert torch.equal(before.weight, after.weight)
            assert before.bias is not None
            assert after.bias is not None
            assert torch.equal(before.bias, after.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_those_of_the_model_and_every_folded_parameter_trains(
    kind: str, networks: dict[str, nn.Module]
) -> None:
    network = lowered(networks[kind])
    fake = FakeQuantized(network, ranges(network))
    assert count_macs(fake, TASK.input_shape) == count_macs(networks[kind], TASK.input_shape)
    weighted = [operation for operation in network.operations if isinstance(operation, (Convolution, Linear))]
    assert count_parameters(fake) == sum(
        operation.weight.numel() + (0 if operation.bias is None else operation.bias.numel()) for operation in weighted
    )
    F.cross_entropy(fake(TASK.normalisation(TASK.train.inputs)), TASK.train.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(p.grad is not None and bool(p.grad.any()) for p in fake.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_near_those_of_the_float_network(kind: str, networks: dict[str, nn.Module]) -> None:
    network = lowered(networks[kind])
    fake = FakeQuantized(network, ranges(network))
    exact = replace(network, operations=tuple(map(with_gradients, network.operations)))
    for logits in (fake(TASK.normalisation(TASK.train.inputs)), exact(TASK.train.inputs)):
        F.cross_entropy(logits, TASK.train.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for operation in exact.operations:
        if isinstance(operation, (Convolution, Linear)):
            ours, theirs = fake.weights[operation.output].grad, operation.weight.grad
            assert theirs is not None
            assert float(F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 0.8


def with_gradients(operation: Operation) -> Operation:
    if isinstance(operation, (Convolution, Linear)):
        return replace(operation, weight=operation.weight.clone().requires_grad_())
    return operation


def test_a_clipped_activation_passes_no_gradient(networks: dict[str, nn.Module]) -> None:
    network = lowered(networks["mlp"])
    activations = ranges(network)
    first = next(operation for operation in network.operations if isinstance(operation, Linear))
    activations[first.output] = replace(activations[first.output], scale=1e-9)
    fake = FakeQuantized(network, activations)
    fake(TASK.normalisation(TASK.train.inputs)).sum().backward()
    assert not bool(fake.weights[first.output].grad.any())
    assert bool(fake.weights[network.operations[-1].output].grad.any())


def test_zeros_stay_zero_while_the_other_weights_train(networks: dict[str, nn.Module]) -> None:
    model = copy.deepcopy(networks["residual"])
    apply_masks(model, magnitude_masks(model, sparsity=0.5))
    before = lowered(model)
    fake = FakeQuantized(before, ranges(before))
    after = trained(fake, epochs=2)
    assert isinstance(after, FakeQuantized)
    pairs = zip(before.operations, after.lowered().operations, strict=True)
    for old, new in pairs:
        if isinstance(old, (Convolution, Linear)) and isinstance(new, (Convolution, Linear)):
            assert torch.equal(old.weight == 0, new.weight == 0)
            assert not bool((old.weight == new.weight)[old.weight != 0].all())
            assert not new.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_brings_the_int8_logits_nearer_to_those_of_the_float_network(
    kind: str, networks: dict[str, nn.Module]
) -> None:
    network = lowered(networks[kind])
    clipped = ranges(network, times=0.25)

    def error(candidate: LoweredNetwork) -> float:
        return float(F.mse_loss(quantize_with(candidate, clipped)(TASK.test.inputs), network(TASK.test.inputs)))

    # The float network is its own teacher: without the rounding there would be nothing to learn.
    teacher = network(TASK.train.inputs)
    tuned = trained(FakeQuantized(network, clipped), loss=squared_error, teacher=teacher, rate=0.01)
    assert isinstance(tuned, FakeQuantized)
    assert error(tuned.lowered()) < 0.7 * error(network)
