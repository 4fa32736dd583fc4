from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from metasearch.models import NetworkSpec, build_network
from metasearch.taps import Tap, reading_outputs


class TwoStages(nn.Module):
    """Two maps of 8 x 8, one of 4 x 4, an embedding of 6 and logits of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.down(self.second(self.first(x)).relu())
        logits: Tensor = self.head(maps.mean(dim=(2, 3)))
        return logits


def test_the_last_map_of_each_size_and_the_input_of_the_last_linear_layer_are_tapped() -> None:
    assert Tap.of(TwoStages(), (1, 8, 8)) == Tap((("second", 0), ("down", 0)), ("head", 0))


class OfTheTutorial(nn.Module):
    """PyTorch's tutorial network in small: one pooling and one ReLU for all stages and behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.hidden, self.head = nn.Linear(12, 5), nn.Linear(5, 3)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the last map of each size: 8 x 8, 4 x 4 and 2 x 2."""
        first = self.relu(self.conv1(x))
        second = self.relu(self.conv2(self.pool(first)))
        return [first, second, self.pool(second)]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.hidden(self.stages(x)[-1].flatten(1))))
        return logits


def test_every_call_of_a_shared_layer_is_told_apart_in_every_pass() -> None:
    model, generator = OfTheTutorial(), torch.Generator().manual_seed(0)
    tap = Tap.of(model, (1, 8, 8))
    assert tap == Tap((("relu", 0), ("relu", 1), ("pool", 1)), ("head", 0))
    with tap.reading(model) as features:
        for _ in range(2):
            inputs = torch.randn(5, 1, 8, 8, generator=generator)
            logits = model(inputs)
            assert list(features.maps) == ["relu", "relu[1]", "pool[1]"]
            torch.testing.assert_close(list(features.maps.values()), model.stages(inputs))
            assert features.embedding is not None
            torch.testing.assert_close(model.head(features.embedding), logits)


def test_what_is_read_is_what_the_layers_make() -> None:
    model, inputs = TwoStages(), torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with Tap.of(model, (1, 8, 8)).reading(model) as features:
        logits = model(inputs)
    second = model.second(model.first(inputs))
    torch.testing.assert_close(features.maps["second"], second)
    torch.testing.assert_close(features.maps["down"], model.down(second.relu()))
    assert features.embedding is not None
    torch.testing.assert_close(model.head(features.embedding), logits)


def test_an_output_is_read_before_a_layer_in_place_writes_over_it() -> None:
    convolution = nn.Conv2d(1, 2, 3)
    model = nn.Sequential(convolution, nn.ReLU(inplace=True))
    inputs = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), reading_outputs(model, ["0"]) as outputs:
        model(inputs)
    assert outputs.keys() == {"0"}
    torch.testing.assert_close(outputs["0"], convolution(inputs))
    assert not convolution._forward_hooks


def test_no_hook_stays_behind() -> None:
    model = TwoStages()
    with Tap.of(model, (1, 8, 8)).reading(model) as features:
        model(torch.zeros(1, 1, 8, 8))
    kept = features.maps["down"]
    copied = copy.deepcopy(model)
    copied(torch.ones(1, 1, 8, 8))
    model(torch.ones(1, 1, 8, 8))
    assert features.maps["down"] is kept
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_probing_leaves_batchnorm_and_the_mode_as_they_were() -> None:
    model = build_network(NetworkSpec("convnet", 4, 3), input_shape=(1, 16, 16), classes=3, seed=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Tap.of(model, (1, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(("depth", "sizes"), [(1, [16]), (2, [16, 8]), (5, [16, 8, 4])])
def test_a_convnet_has_one_map_a_stage(depth: int, sizes: list[int]) -> None:
    model = build_network(NetworkSpec("convnet", 4, depth), input_shape=(1, 16, 16), classes=3, seed=0)
    with Tap.of(model, (1, 16, 16)).reading(model) as features:
        model(torch.zeros(2, 1, 16, 16))
    assert [values.shape[2] for values in features.maps.values()] == sizes


def test_an_mlp_has_an_embedding_and_no_maps() -> None:
    model = build_network(NetworkSpec("mlp", 4, 2), input_shape=(1, 8, 8), classes=3, seed=0)
    with Tap.of(model, (1, 8, 8)).reading(model) as features:
        model(torch.zeros(2, 1, 8, 8))
    assert features.maps == {}
    assert features.embedding is not None
    assert features.embedding.shape == (2, 16)
