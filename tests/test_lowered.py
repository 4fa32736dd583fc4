from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metasearch.models import NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.models.lowered import Add, Convolution, Linear, lower
from metasearch.tasks.task import Normalisation
from tests.networks import lived_in

NETWORKS = [
    ("convnet", (1, 8, 8), 3, 1),
    ("convnet", (1, 28, 28), 8, 3),
    ("convnet", (3, 32, 32), 5, 4),
    ("convnet", (3, 41, 57), 4, 5),
    ("convnet", (1, 100, 100), 6, 2),
    ("resnet", (3, 41, 57), 4, 1),
    ("resnet", (1, 12, 12), 3, 5),
    ("mobilenet", (3, 20, 16), 4, 1),
    ("mobilenet", (1, 64, 64), 3, 5),
    ("mlp", (1, 8, 8), 2, 1),
    ("mlp", (3, 16, 16), 4, 3),
    ("mlp", (13,), 5, 2),
]


def inputs_of(shape: tuple[int, ...], count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    if len(shape) == 1:
        return torch.randn(count, *shape, generator=generator)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def normalisation_of(shape: tuple[int, ...]) -> Normalisation:
    scale = 3 / 255 if len(shape) == 3 else 1.5
    return Normalisation(tuple(scale * (1 + 0.1 * c) for c in range(shape[0])), (-0.7,) * shape[0])


class Residual(nn.Module):
    def __init__(self, channels: int, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.add(x, self.body(x)))


def residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=(1, 0)),
        nn.Identity(),
        nn.BatchNorm2d(8, affine=False),
        Residual(8, lambda a, b: a + b),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(0.5),
        Residual(8, torch.add),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(12, 5, bias=False),
    )


@pytest.mark.parametrize(("family", "shape", "width", "depth"), NETWORKS)
def test_lowered_network_equals_the_module_in_eval_mode(
    family: str, shape: tuple[int, ...], width: int, depth: int
) -> None:
    model = build_network(NetworkSpec(family, width, depth), input_shape=shape, classes=7, seed=depth)
    model, normalisation, inputs = lived_in(model, width), normalisation_of(shape), inputs_of(shape)
    lowered = lower(model, normalisation=normalisation, input_shape=shape)
    with torch.no_grad():
        torch.testing.assert_close(lowered(inputs), model(normalisation(inputs)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "shape", "width", "depth"), [network for network in NETWORKS if network[3] > 1])
def test_lowered_pruned_copy_equals_the_pruned_module(
    family: str, shape: tuple[int, ...], width: int, depth: int
) -> None:
    model = build_network(NetworkSpec(family, width, depth), input_shape=shape, classes=4, seed=depth)
    generator, keep = torch.Generator().manual_seed(width), []
    for group in channel_groups(model):
        count = int(torch.randint(1, group.size + 1, (), generator=generator))
        keep.append(torch.randperm(group.size, generator=generator)[:count].sort().values)
    pruned = lived_in(keep_channels(model, keep), width)
    normalisation, inputs = normalisation_of(shape), inputs_of(shape)
    lowered = lower(pruned, normalisation=normalisation, input_shape=shape)
    with torch.no_grad():
        torch.testing.assert_close(lowered(inputs), pruned(normalisation(inputs)), atol=1e-4, rtol=1e-4)


def test_residual_depthwise_and_strided_layers_lower_exactly() -> None:
    model, shape = lived_in(residual_network(), 1), (3, 24, 25)
    normalisation, inputs = normalisation_of(shape), inputs_of(shape)
    lowered = lower(model, normalisation=normalisation, input_shape=shape)
    assert [operation.relu for operation in lowered.operations if isinstance(operation, Add)] == [True, True]
    with torch.no_grad():
        torch.testing.assert_close(lowered(inputs), model(normalisation(inputs)), atol=1e-4, rtol=1e-4)


def test_lowering_leaves_the_model_as_it_was() -> None:
    model = build_network(NetworkSpec("convnet", 4, 3), input_shape=(1, 8, 8), classes=3, seed=0).train()
    before = copy.deepcopy(model.state_dict())
    lowered = lower(model, normalisation=normalisation_of((1, 8, 8)), input_shape=(1, 8, 8))
    lowered(inputs_of((1, 8, 8)))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_stored_tensors_are_the_folded_weights_biases_and_normalisation() -> None:
    model = build_network(NetworkSpec("convnet", 4, 2), input_shape=(3, 8, 8), classes=5, seed=0)
    lowered = lower(model, normalisation=normalisation_of((3, 8, 8)), input_shape=(3, 8, 8))
    weights = 4 * 3 * 9 + 8 * 4 * 9 + 5 * 8
    assert lowered.stored_bytes == 4 * (weights + 4 + 8 + 5 + 3 + 3)
    assert all(isinstance(op.bias, Tensor) for op in lowered.operations if isinstance(op, (Convolution, Linear)))


class ReadsTwice(nn.Module):
    """A convolution whose result two layers read, so that nothing may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.drop = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        result: Tensor = self.norm(self.drop(x)) + x
        return result


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "1 \\(Tanh\\)"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)), "0 \\(BatchNorm1d\\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)), "2 \\(BatchNorm1d\\)"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), "0 \\(Conv2d\\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), "running statistics"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "0 \\(AdaptiveAvgPool2d\\)"),
        (ReadsTwice(), "norm \\(BatchNorm2d\\)"),
    ],
)
def test_a_layer_without_a_lowered_form_is_named(model: nn.Module, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        lower(model, normalisation=Normalisation((1.0,), (0.0,)), input_shape=(4,))
