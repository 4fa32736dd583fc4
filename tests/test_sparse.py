from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import Convolution, Linear, lower
from metasearch.quantize import quantize
from metasearch.sparse import apply_masks, layer_adaptive_scores, magnitude_masks, prunable_weights, removed_share
from metasearch.tasks.task import Normalisation


def network(seed: int = 0) -> nn.Module:
    model = build_network(NetworkSpec("convnet", 4, 3), input_shape=(1, 8, 8), classes=3, seed=seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # gains of either sign, as after training
            nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    return model


def zeros(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in prunable_weights(model).values())


def total(model: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable_weights(model).values())


@given(
    st.lists(st.just(0.0) | st.floats(1e-6, 10) | st.floats(-10, -1e-6), min_size=1, max_size=30),
    st.integers(-8, 8),
)
def test_scores_are_the_shares_of_what_is_no_smaller_at_any_scale(values: list[float], power: int) -> None:
    weight = torch.tensor(values, dtype=torch.float64)
    scores = layer_adaptive_scores(weight)
    squares = [value * value for value in values]
    for value, score in zip(squares, scores.tolist(), strict=True):
        rest = sum(other for other in squares if other > value)
        ties = squares.count(value)
        if value > 0:
            shares = [value / (rest + tie * value) for tie in range(1, ties + 1)]
            assert any(score == pytest.approx(share, rel=1e-6) for share in shares)
    torch.testing.assert_close(layer_adaptive_scores(weight * 2.0**power), scores)


@settings(max_examples=30)
@given(sparsity=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_the_share_asked_for_goes_and_every_layer_keeps_its_largest_weight(sparsity: float, seed: int) -> None:
    model = network(seed)
    masks = magnitude_masks(model, sparsity=sparsity)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == min(math.ceil(sparsity * total(model) - 1e-9), total(model) - len(masks))
    assert removed_share(masks) == pytest.approx(removed / total(model))
    for name, weight in prunable_weights(model).items():
        assert bool(masks[name].reshape(-1)[weight.abs().argmax()])


def test_no_weight_that_goes_scores_above_one_that_stays() -> None:
    model = network()
    masks = magnitude_masks(model, sparsity=0.7)
    scores = {name: layer_adaptive_scores(weight) for name, weight in prunable_weights(model).items()}
    stays = torch.cat([scores[name][mask] for name, mask in masks.items()])
    goes = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert float(goes.max()) <= float(stays.min())
    for name, weight in prunable_weights(model).items():  # and within a layer that is the order of size
        if not bool(masks[name].all()):
            assert float(weight[~masks[name]].abs().max()) <= float(weight[masks[name]].abs().min())


def test_the_scale_of_a_layer_does_not_count() -> None:
    model = network()
    before = magnitude_masks(model, sparsity=0.5)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1024)
    after = magnitude_masks(model, sparsity=0.5)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pruning_step_by_step_takes_the_weights_that_pruning_at_once_takes() -> None:
    at_once, in_steps = network(), network()
    for sparsity in (0.2, 0.5, 0.8):
        apply_masks(in_steps, magnitude_masks(in_steps, sparsity=sparsity))
    apply_masks(at_once, magnitude_masks(at_once, sparsity=0.8))
    assert zeros(at_once) == math.ceil(0.8 * total(at_once))
    assert all(torch.equal(a, b) for a, b in zip(at_once.parameters(), in_steps.parameters(), strict=True))


@pytest.mark.parametrize("threshold", [0.25, 1.0, 1.5])
def test_a_threshold_removes_what_numpy_finds_below_so_many_standard_deviations(threshold: float) -> None:
    model = network()
    for name, mask in magnitude_masks(model, threshold=threshold).items():
        weight = model.get_parameter(name).detach().double().numpy()
        # a weight within float32's rounding of the threshold may fall on either side of it
        limit = threshold * np.std(weight)
        clear = np.abs(np.abs(weight) - limit) > 1e-5 * limit
        np.testing.assert_array_equal(mask.numpy()[clear], (np.abs(weight) >= limit)[clear])


def test_every_layer_keeps_a_weight_under_any_threshold() -> None:
    assert [int(mask.sum()) for mask in magnitude_masks(network(), threshold=1e6).values()] == [1, 1, 1, 1]


def test_biases_and_normalisation_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    assert magnitude_masks(model, sparsity=0.5).keys() == {"0.weight", "3.weight"}
    assert magnitude_masks(nn.Linear(8, 3), sparsity=0.5).keys() == {"weight"}


def test_the_layout_in_memory_does_not_count() -> None:
    for request in ({"sparsity": 0.5}, {"threshold": 0.5}):
        plain, together = network(), network().to(memory_format=torch.channels_last)
        masks, same = magnitude_masks(plain, **request), magnitude_masks(together, **request)
        assert all(torch.equal(masks[name], same[name]) for name in masks)
        apply_masks(together, masks)
        assert all(bool((together.get_parameter(name) == 0).eq(~mask).all()) for name, mask in masks.items())


@pytest.mark.parametrize("request_", [{"sparsity": 0.5}, {"threshold": 1e-9}])
def test_a_request_that_removes_nothing_is_a_failed_trial(request_: dict[str, float]) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with pytest.raises(TrialFailure, match=r"^no_effect: (sparsity 0\.5|threshold 1e-09) removed none of 2 weights$"):
        magnitude_masks(model, **request_)


@pytest.mark.parametrize("request_", [{"sparsity": 0.0}, {"threshold": 0.0}])
def test_nothing_asked_for_removes_nothing(request_: dict[str, float]) -> None:
    assert all(bool(mask.all()) for mask in magnitude_masks(network(), **request_).values())


@pytest.mark.parametrize("request_", [{}, {"sparsity": 0.5, "threshold": 1.0}])
def test_one_of_sparsity_and_threshold_is_wanted(request_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either sparsity or threshold"):
        magnitude_masks(network(), **request_)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_weights_stay_zero_while_the_others_train(optimizer: str) -> None:
    model = network().train()
    masks = magnitude_masks(model, sparsity=0.6)
    before = copy.deepcopy(dict(model.named_parameters()))
    steps: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        inputs, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 3
        steps.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        steps.step()
        apply_masks(model, masks)
        for name, mask in masks.items():
            assert torch.equal(model.get_parameter(name) != 0, mask)
    for name, mask in masks.items():
        assert bool((model.get_parameter(name) != before[name])[mask].all())


def test_a_mask_of_another_network_is_an_error() -> None:
    with pytest.raises(AttributeError):
        apply_masks(network(), {"99.weight": torch.ones(1, dtype=torch.bool)})


def test_zeros_survive_folding_and_int8() -> None:
    model = network().eval()
    masks = magnitude_masks(model, sparsity=0.6)
    apply_masks(model, masks)
    lowered = lower(model, normalisation=Normalisation((1 / 64,), (-2.0,)), input_shape=(1, 8, 8))
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stages = (lowered.operations, quantize(lowered, images).operations)
    for mask, folded, int8 in zip(masks.values(), *map(weights, stages), strict=True):
        assert torch.equal(folded != 0, mask)
        assert not bool(int8[~mask].any())
        assert int((int8 == 0).sum()) >= int((~mask).sum())


def weights(operations: tuple[object, ...]) -> list[Tensor]:
    return [operation.weight for operation in operations if isinstance(operation, (Convolution, Linear))]


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"threshold": 0.5}])
def test_a_network_without_convolutions_and_linear_layers_has_nothing_to_remove(asked: dict[str, float]) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU())
    with pytest.raises(TrialFailure, match=r"^no_effect: .* removed none of 0 weights"):
        magnitude_masks(model, **asked)
    assert magnitude_masks(model, sparsity=0.0) == {}
