from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.measure import count_macs, count_parameters
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels, weighted_layer
from metasearch.models.lowered import Convolution, lower
from metasearch.prune import (
    IMPORTANCES,
    LEAST_KEPT,
    SIZES,
    channel_importance,
    check_removed,
    choose_channels,
    narrow,
    prune_to_ratio,
    recalibrate_batchnorm,
    total_channels,
)
from metasearch.tasks.task import Normalisation
from tests.synthetic import synthetic_task

LAYERS = st.lists(
    st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True), min_size=1, max_size=3
)  # fmt: skip


def network(family: str = "convnet", *, width: int = 6, depth: int = 4, seed: int = 0) -> nn.Module:
    return build_network(NetworkSpec(family, width=width, depth=depth), input_shape=(1, 8, 8), classes=3, seed=seed)


def pruned_to(model: nn.Module, ratio: float, original: int, **options: Any) -> nn.Module:
    return prune_to_ratio(model, ratio=ratio, original=original, input_shape=(1, 8, 8), **options)


def sizes(model: nn.Module) -> list[int]:
    return [group.size for group in channel_groups(model)]


def least_kept(size: int) -> int:
    return max(1, math.ceil(LEAST_KEPT * size))


@given(values=LAYERS, remove=st.integers(0, 12))
def test_the_channels_removed_are_the_least_important_set_of_all_that_are_allowed(
    values: list[list[int]], remove: int
) -> None:
    """Brute force over every set of channels that leaves each layer its least."""
    kept = choose_channels([torch.tensor(layer, dtype=torch.float32) for layer in values], remove=remove)
    channels = [(layer, index) for layer, row in enumerate(values) for index in range(len(row))]
    removed = {(layer, index) for layer, index in channels if index not in kept[layer].tolist()}

    def allowed(chosen: tuple[tuple[int, int], ...]) -> bool:
        left = [len(row) - sum(layer == c[0] for c in chosen) for layer, row in enumerate(values)]
        return all(n >= least_kept(len(row)) for n, row in zip(left, values, strict=True))

    most = sum(len(row) - least_kept(len(row)) for row in values)
    assert len(removed) == min(remove, most)
    cheapest = min(
        sum(values[layer][index] for layer, index in chosen)
        for chosen in itertools.combinations(channels, len(removed))
        if allowed(chosen)
    )
    assert sum(values[layer][index] for layer, index in removed) == cheapest


@given(layers=st.lists(st.integers(1, 60), min_size=1, max_size=5), remove=st.integers(0, 400))
def test_every_layer_keeps_its_tenth_however_much_is_asked(layers: list[int], remove: int) -> None:
    generator = torch.Generator().manual_seed(sum(layers))
    kept = choose_channels([torch.rand(size, generator=generator) for size in layers], remove=remove)
    for size, indices in zip(layers, kept, strict=True):
        assert least_kept(size) <= len(indices) <= size
        assert indices.tolist() == sorted(set(indices.tolist()))


def lived_in(model: nn.Module) -> nn.Module:
    """Give BatchNorm layers statistics and an affine map as after training, and return the model in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert layer.running_var is not None
            layer.running_var.uniform_(0.2, 2, generator=generator)
            layer.weight.data.uniform_(-2, 2, generator=generator)
            layer.bias.data.normal_(0, 0.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize(("importance", "order"), [("l1", 1), ("l2", 2)])
def test_the_importance_of_a_channel_is_the_norm_of_its_folded_filter_over_its_layer_mean(
    importance: str, order: int
) -> None:
    model = lived_in(network(depth=3))
    lowered = lower(model, normalisation=Normalisation((1.0,), (0.0,)), input_shape=(1, 8, 8))
    folded = [operation.weight for operation in lowered.operations if isinstance(operation, Convolution)]
    for group, weight in zip(channel_groups(model), folded, strict=True):
        norm = torch.linalg.vector_norm(weight.flatten(1), order, dim=1)
        values = channel_importance(model, group, importance)
        torch.testing.assert_close(values, norm / norm.mean())
        assert values.dtype == torch.float32


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale"])
@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_the_importance_of_a_group_is_the_sum_over_the_layers_that_make_it(family: str, importance: str) -> None:
    model = lived_in(network(family, depth=3))
    several = [group for group in channel_groups(model) if len(group.producers) > 1]
    assert several
    for group in several:
        parts = []
        for name, norms in group.producers.items():
            layer, norm = weighted_layer(model, name), model.get_submodule(norms[0])
            assert isinstance(norm, nn.BatchNorm2d)
            parts.append(IMPORTANCES[importance](layer, [norm]))
        total = torch.stack(parts).sum(dim=0)
        torch.testing.assert_close(channel_importance(model, group, importance), total / total.mean())


def test_the_scale_of_batchnorm_is_its_own_importance() -> None:
    model = lived_in(network(depth=2))
    (group, _) = channel_groups(model)
    gamma = model.get_submodule("1").weight
    assert isinstance(gamma, Tensor)
    torch.testing.assert_close(channel_importance(model, group, "bn_scale"), gamma.abs() / gamma.abs().mean())


def loss_of(model: nn.Module) -> Tensor:
    inputs = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return nn.functional.cross_entropy(model(inputs), torch.arange(16) % 3)


def one_batch(model: nn.Module) -> Iterator[None]:
    loss_gradients(model)
    yield


def loss_gradients(model: nn.Module) -> None:
    loss_of(model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


@pytest.mark.parametrize("family", ["convnet", "mlp", "resnet", "mobilenet"])
def test_the_taylor_importance_is_the_squared_change_of_the_loss_with_a_gate_on_each_channel(family: str) -> None:
    """Against automatic differentiation by gates of 1 that hooks put behind every BatchNorm of the group."""
    model = lived_in(network(family, width=4, depth=2))
    loss_gradients(model)
    for group in channel_groups(model):
        values = channel_importance(model, group, "taylor")
        expected = torch.zeros(group.size)
        for norms in group.producers.values():
            gates = torch.ones(group.size, requires_grad=True)

            def gate(_: nn.Module, __: object, output: Tensor, gates: Tensor = gates) -> Tensor:
                return output * gates.reshape(-1, *[1] * (output.ndim - 2))

            handle = model.get_submodule(norms[-1]).register_forward_hook(gate)
            (gradient,) = torch.autograd.grad(loss_of(model), gates)
            handle.remove()
            expected += gradient.square()
        torch.testing.assert_close(values, expected / expected.mean(), rtol=1e-3, atol=1e-4)


def test_the_gate_of_a_layer_without_batchnorm_lies_behind_the_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    gates = torch.ones(5, requires_grad=True)
    handle = model[1].register_forward_hook(lambda _, __, output: output * gates)
    (gradient,) = torch.autograd.grad(loss_of(model), gates)
    handle.remove()
    loss_gradients(model)
    (group,) = channel_groups(model)
    expected = gradient.square() / gradient.square().mean()
    torch.testing.assert_close(channel_importance(model, group, "taylor"), expected, rtol=1e-3, atol=1e-5)


def test_taylor_without_gradients_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="taylor needs the gradients"):
        pruned_to(model, 0.5, total_channels(model), importance="taylor")


@pytest.mark.parametrize("freeze", [("0", "1"), ("1",)])
def test_a_frozen_layer_counts_nothing_for_taylor(freeze: tuple[str, ...]) -> None:
    model = network(depth=2)
    for name in freeze:
        model.get_submodule(name).requires_grad_(False)
    batch = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(batch).square().sum().backward()
    first, second = (channel_importance(model, group, "taylor") for group in channel_groups(model))
    assert first.eq(0).all()
    assert second.gt(0).any()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_batchnorm_without_running_statistics_is_unprunable_by_folded_norms_alone(importance: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 3))
    model(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    (group,) = channel_groups(model)
    if importance in ("l1", "l2"):
        with pytest.raises(TrialFailure, match=rf"^unprunable: {importance} needs running statistics, which layer 1 "):
            channel_importance(model, group, importance)
    else:
        assert channel_importance(model, group, importance).shape == (6,)


def test_taylor_reads_fresh_gradients_and_leaves_none_behind() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)  # left over from training
    seen: list[nn.Module] = []

    def gradients(given: nn.Module) -> Iterator[None]:
        assert all(parameter.grad is None for parameter in given.parameters())
        seen.append(given)
        loss_gradients(given)
        yield

    pruned = pruned_to(model, 0.5, total_channels(model), importance="taylor", gradients=gradients)
    assert seen == [model]
    assert all(p.grad is None for p in [*model.parameters(), *pruned.parameters()])
    expected = network()
    loss_gradients(expected)
    expected = pruned_to(expected, 0.5, total_channels(model), importance="taylor")
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_importance_asked_for_decides_what_goes(family: str, importance: str) -> None:
    model = lived_in(network(family, width=8))
    before = total_channels(model)
    pruned = pruned_to(model, 0.4, before, importance=importance, gradients=one_batch)
    loss_gradients(model)
    values = {name: [channel_importance(model, g, name) for g in channel_groups(model)] for name in IMPORTANCES}
    expected = keep_channels(model, choose_channels(values[importance], remove=math.ceil(0.4 * before)))
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), expected.parameters(), strict=True))
    others = [torch.cat(other) for name, other in values.items() if name != importance]
    assert not any(torch.allclose(torch.cat(values[importance]), other) for other in others)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("ratio", [0.01, 0.3, pytest.param(0.6, marks=pytest.mark.slow)])
def test_pruning_to_macs_removes_as_few_channels_as_reach_them(family: str, ratio: float) -> None:
    """Against a search that removes one channel more at a time."""
    model = lived_in(network(family, width=4))
    before = count_macs(model, (1, 8, 8))
    pruned = pruned_to(model, ratio, before, target="macs")
    assert count_macs(pruned, (1, 8, 8)) <= (1 - ratio) * before
    importances = [channel_importance(model, group) for group in channel_groups(model)]
    for remove in itertools.count(1):
        fewest = keep_channels(model, choose_channels(importances, remove=remove))
        if count_macs(fewest, (1, 8, 8)) <= (1 - ratio) * before:
            break
    assert sizes(pruned) == sizes(fewest)
    assert pruned_to(pruned, ratio, before, target="macs") is pruned


@pytest.mark.parametrize("target", SIZES)
def test_a_request_for_more_than_may_go_removes_all_that_may(target: str) -> None:
    model = network()
    original = SIZES[target](model, (1, 8, 8))
    assert sizes(pruned_to(model, 0.999, original, target=target)) == [least_kept(size) for size in sizes(model)]


def test_a_layer_of_zeros_has_no_importance_and_no_nan() -> None:
    model = network("mlp", width=1, depth=1)
    group = channel_groups(model)[0]
    nn.init.zeros_(weighted_layer(model, next(iter(group.producers))).weight)
    assert channel_importance(model, group).tolist() == [0.0] * 4


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("target", SIZES)
def test_a_ratio_of_zero_returns_the_model_itself(family: str, target: str) -> None:
    model = network(family)
    assert pruned_to(model, 0.0, SIZES[target](model, (1, 8, 8)), target=target) is model


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("ratio", [0.001, 0.25, 0.77, 0.9])
def test_pruning_removes_the_ratio_of_all_channels_rounded_up(family: str, ratio: float) -> None:
    model = network(family)
    before = total_channels(model)
    most = sum(size - least_kept(size) for size in sizes(model))
    pruned = pruned_to(model, ratio, before)
    assert before - total_channels(pruned) == min(math.ceil(ratio * before), most)
    assert sizes(model) == sizes(network(family))


def test_a_product_that_is_whole_but_for_rounding_is_not_rounded_up() -> None:
    """In float64 0.07 * 100 is 7.000000000000001."""
    model = network("mlp", width=25, depth=1)
    assert total_channels(pruned_to(model, 0.07, 100)) == 93


def test_pruning_step_by_step_reaches_the_same_number_as_pruning_at_once() -> None:
    model = network(width=8)
    before = total_channels(model)
    stepwise = model
    for ratio in (0.1, 0.1, 0.35, 0.2, 0.6):
        stepwise = pruned_to(stepwise, ratio, before)
    at_once = pruned_to(model, 0.6, before)
    assert total_channels(stepwise) == total_channels(at_once) == before - math.ceil(0.6 * before)
    assert pruned_to(stepwise, 0.3, before) is stepwise


def test_where_nothing_is_left_to_remove_the_model_itself_comes_back() -> None:
    model = network("convnet", width=1, depth=1)
    assert pruned_to(model, 0.9, 1) is model


@pytest.mark.parametrize(
    ("family", "shape"),
    [("convnet", (1, 8, 8)), ("convnet", (3, 41, 20)), ("mlp", (5,)), ("resnet", (1, 9, 8)), ("mobilenet", (3, 8, 8))],
)
@pytest.mark.parametrize("width", [1, 3, 7, 12])
def test_narrowing_gives_the_shape_of_a_network_built_at_that_width(
    family: str, shape: tuple[int, ...], width: int
) -> None:
    def build(width: int) -> nn.Module:
        return build_network(NetworkSpec(family, width=width, depth=4), input_shape=shape, classes=3, seed=0)

    narrowed = narrow(build(12), width=width, present_width=12)
    expected = build(width)
    assert {n: t.shape for n, t in narrowed.state_dict().items()} == {
        n: t.shape for n, t in expected.state_dict().items()
    }
    assert count_macs(narrowed, shape) == count_macs(expected, shape)
    assert count_parameters(narrowed) == count_parameters(expected)


def test_narrowing_keeps_the_most_important_channels_of_each_layer() -> None:
    model = network("mlp", width=2, depth=2)
    group = channel_groups(model)[0]
    best = channel_importance(model, group).argsort(descending=True)[:4].sort().values
    narrowed = narrow(model, width=1, present_width=2)
    (producer,) = group.producers
    assert torch.equal(weighted_layer(narrowed, producer).weight, weighted_layer(model, producer).weight[best])


def statistics_by_numpy(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the average over batches of the mean and of the unbiased variance, per channel."""
    flat = [np.moveaxis(batch, 1, -1).reshape(-1, batch.shape[1]).astype(np.float64) for batch in values]
    return (
        np.mean([batch.mean(axis=0) for batch in flat], axis=0),
        np.mean([batch.var(axis=0, ddof=1) for batch in flat], axis=0),
    )


@pytest.mark.parametrize("count", [30, 120, 3000])
def test_recalibrated_statistics_are_those_of_numpy(count: int) -> None:
    task = synthetic_task(counts=(count, 3, 3), sorted_by_class=True)
    model = network(depth=1)
    recalibrate_batchnorm(model, task, batch_size=64, batches=4)
    chosen = torch.arange(0, count, max(1, count // 256))
    batches = max(1, min(4, len(chosen) // 64))
    convolution, norm = model.get_submodule("0"), model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        features = [
            convolution(task.normalisation(task.train.inputs[chosen[first::batches]])).numpy()
            for first in range(batches)
        ]
    mean, variance = statistics_by_numpy(features)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)


@settings(max_examples=20)
@given(count=st.integers(3, 6000))
def test_every_recalibration_batch_spans_a_train_split_sorted_by_class(count: int) -> None:
    task = synthetic_task(counts=(count, 3, 3), shape=(2,), sorted_by_class=True)
    seen: list[set[float]] = []
    total = 0

    class Spy(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            nonlocal total
            total += len(input)
            nearest = torch.cdist(input, prototypes).argmin(dim=1)
            seen.append(set(nearest.tolist()))
            return super().forward(input)

    inputs = task.normalisation(task.train.inputs)
    prototypes = torch.stack([inputs[task.train.labels == label].mean(dim=0) for label in range(3)])
    recalibrate_batchnorm(nn.Sequential(Spy(2)), task)
    everything = set(torch.cdist(inputs, prototypes).argmin(dim=1).tolist())
    assert all(classes == everything for classes in seen)
    assert total >= min(count, 1024)
    assert len(seen) <= 8


def test_recalibration_restores_momenta_and_does_not_touch_weights() -> None:
    task = synthetic_task()
    model = network()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for index, norm in enumerate(norms):
        norm.momentum = 0.1 * (index + 1)
    before = [parameter.clone() for parameter in model.parameters()]
    recalibrate_batchnorm(model, task)
    assert [norm.momentum for norm in norms] == [0.1 * (index + 1) for index in range(len(norms))]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(layer.training for layer in model.modules())


def test_recalibration_forgets_what_was_there_before() -> None:
    task = synthetic_task()
    fresh, used = network(), network()
    for layer in used.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            layer.running_mean.fill_(1e6)
    for model in (fresh, used):
        recalibrate_batchnorm(model, task)
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), used.buffers(), strict=True))


def test_a_network_without_batchnorm_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).train()
    recalibrate_batchnorm(model, synthetic_task())
    assert model.training


def test_a_request_that_removed_nothing_is_a_failed_trial() -> None:
    with pytest.raises(TrialFailure, match=r"^no_effect: pruning_ratio 0\.5 removed none of 7 channels$") as failure:
        check_removed(7, 7, ratio=0.5)
    assert failure.value.reason == "no_effect"
    check_removed(7, 6, ratio=0.5)
    check_removed(7, 7, ratio=0.0)
