from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.measure import count_macs
from metasearch.models import NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.models.foreign import foreign_groups, foreign_importance, keep_foreign_channels
from metasearch.prune import IMPORTANCES, SIZES, narrow, prune_to_ratio, total_channels

SHAPE = (1, 8, 8)


def network(name: str, *, width: int = 4, depth: int = 2) -> nn.Module:
    spec = NetworkSpec(f"tests.user_networks:{name}", width=width, depth=depth)
    return build_network(spec, input_shape=SHAPE, classes=3, seed=1).eval()


def batch() -> Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def one_batch(model: nn.Module) -> Iterator[None]:
    gradients(model)
    yield


def gradients(model: nn.Module) -> None:
    nn.functional.cross_entropy(model(batch()), torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


@pytest.mark.parametrize("name", ["smooth", "grouped"])
@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_network_that_is_not_ours_loses_the_ratio_of_its_channels_for_each_importance(
    name: str, importance: str, ratio: float
) -> None:
    model = network(name)
    with pytest.raises(TypeError, match="known"):
        channel_groups(model)
    before = total_channels(model, SHAPE)
    options = {"importance": importance, "gradients": one_batch}
    pruned = prune_to_ratio(model, ratio=ratio, original=before, input_shape=SHAPE, **options)  # type: ignore[arg-type]  # mypy joins the values
    assert total_channels(pruned, SHAPE) == before - math.ceil(ratio * before)
    assert count_macs(pruned, SHAPE) < count_macs(model, SHAPE)
    assert pruned(batch()).shape == (6, 3)
    assert total_channels(model, SHAPE) == before


@pytest.mark.parametrize("name", ["smooth", "grouped"])
def test_macs_are_a_target_for_a_network_that_is_not_ours(name: str) -> None:
    model = network(name)
    before = count_macs(model, SHAPE)
    pruned = prune_to_ratio(model, ratio=0.5, original=before, input_shape=SHAPE, target="macs")
    assert 0.25 * before < count_macs(pruned, SHAPE) <= 0.5 * before


@pytest.mark.parametrize("target", SIZES)
def test_a_ratio_of_zero_returns_a_network_that_is_not_ours_itself(target: str) -> None:
    model = network("smooth")
    original = SIZES[target](model, SHAPE)
    assert prune_to_ratio(model, ratio=0.0, original=original, input_shape=SHAPE, target=target) is model


@pytest.mark.parametrize(("family", "depth"), [("convnet", 3), ("resnet", 2), ("mobilenet", 2), ("mlp", 2)])
def test_torch_pruning_cuts_our_own_networks_as_channels_does(family: str, depth: int) -> None:
    """The same groups in the same order, and the same function of the input when the same channels go."""
    model = build_network(NetworkSpec(family, width=4, depth=depth), input_shape=SHAPE, classes=3, seed=0).eval()
    ours = [(set(group.producers), group.size) for group in channel_groups(model)]
    theirs = foreign_groups(model, SHAPE)
    names = {layer: name for name, layer in model.named_modules()}
    roots = [names[group.group[0].dep.target.module] for group in theirs]
    order = [next(i for i, (producers, _) in enumerate(ours) if root in producers) for root in roots]
    assert sorted(order) == list(range(len(ours)))
    keep = [torch.arange(size)[:: 1 + index % 3] for index, (_, size) in enumerate(ours)]
    expected = keep_channels(model, keep)
    pruned = keep_foreign_channels(model, [keep[index] for index in order], input_shape=SHAPE)
    torch.testing.assert_close(pruned(batch()), expected(batch()))


def test_each_part_of_a_grouped_convolution_loses_the_same_channels() -> None:
    model = network("grouped", depth=1)
    groups = foreign_groups(model, SHAPE)
    together = [[channel, channel + 8] for channel in range(8)]
    assert [group.channels for group in groups] == [together, together]
    names = {layer: name for name, layer in model.named_modules()}
    kept = {"0": [0, 5], "2": [1, 2, 7]}
    roots = [names[group.group[0].dep.target.module] for group in groups]
    keep = [torch.tensor(kept["0" if root == "0" else "2"]) for root in roots]
    pruned = keep_foreign_channels(model, keep, input_shape=SHAPE)
    convolution, before = pruned.get_submodule("2"), model.get_submodule("2")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(before, nn.Conv2d)
    assert (convolution.groups, convolution.in_channels, convolution.out_channels) == (2, 4, 6)
    assert torch.equal(convolution.weight, before.weight[[1, 2, 7, 9, 10, 15]][:, [0, 5]])


@pytest.mark.parametrize("name", ["smooth", "grouped"])
def test_every_layer_keeps_two_channels_however_much_is_asked(name: str) -> None:
    model = network(name)
    before = total_channels(model, SHAPE)
    pruned = prune_to_ratio(model, ratio=0.99, original=before, input_shape=SHAPE)
    assert {group.size for group in foreign_groups(pruned, SHAPE)} == {2}
    assert min(layer.out_channels for layer in pruned.modules() if isinstance(layer, nn.Conv2d)) >= 2
    assert prune_to_ratio(pruned, ratio=0.99, original=before, input_shape=SHAPE) is pruned


def test_what_is_added_to_the_input_keeps_its_size() -> None:
    model = network("adds_to_input")
    assert [group.size for group in foreign_groups(model, SHAPE)] == [8]
    pruned = prune_to_ratio(model, ratio=0.5, original=8, input_shape=SHAPE)
    assert pruned.get_submodule("up").out_features == 4
    assert pruned.get_submodule("down").out_features == 64


def test_narrowing_keeps_the_share_of_every_group() -> None:
    model = network("smooth")
    narrowed = narrow(model, width=2, present_width=4, input_shape=SHAPE)
    sizes = [[group.size for group in foreign_groups(m, SHAPE)] for m in (model, narrowed)]
    assert sizes[1] == [size // 2 for size in sizes[0]]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_importances_have_a_mean_of_one(importance: str) -> None:
    model = network("smooth")
    gradients(model)
    for group in foreign_groups(model, SHAPE):
        values = foreign_importance(group, importance)
        assert values.shape == (group.size,)
        assert float(values.mean()) == pytest.approx(1, abs=1e-4)


def test_a_frozen_layer_of_a_network_that_is_not_ours_counts_nothing_for_taylor() -> None:
    model, trained = network("smooth"), network("smooth")
    frozen = model.get_submodule("first.0")
    frozen.requires_grad_(False)
    for each in (model, trained):
        gradients(each)
    nn.init.zeros_(trained.get_submodule("first.0").weight.grad)  # type: ignore[arg-type]  # it has a gradient
    nn.init.zeros_(trained.get_submodule("first.0").bias.grad)  # type: ignore[arg-type]
    values, wanted = (
        [foreign_importance(group, "taylor") for group in foreign_groups(each, SHAPE)] for each in (model, trained)
    )
    torch.testing.assert_close(values, wanted)
    assert all(parameter.grad is None for parameter in frozen.parameters())


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_a_group_without_a_measure_is_unprunable(importance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("smooth")
    gradients(model)
    group = foreign_groups(model, SHAPE)[0]
    monkeypatch.setattr("torch_pruning.pruner.importance.GroupMagnitudeImportance.__call__", lambda *_: None)
    monkeypatch.setattr("torch_pruning.pruner.importance.GroupTaylorImportance.__call__", lambda *_: None)
    with pytest.raises(TrialFailure, match=rf"^unprunable: torch-pruning has no {importance} of layer \w"):
        foreign_importance(group, importance)


def test_taylor_without_gradients_is_refused() -> None:
    model = network("smooth")
    with pytest.raises(ValueError, match="taylor needs the gradients"):
        prune_to_ratio(model, ratio=0.5, original=10, input_shape=SHAPE, importance="taylor")


def test_a_network_that_no_longer_fits_is_a_failed_trial_that_names_the_layer() -> None:
    model = network("fixed_view")
    before = total_channels(model, SHAPE)
    with pytest.raises(TrialFailure, match=r"^unprunable: .*layer \w+") as failure:
        prune_to_ratio(model, ratio=0.5, original=before, input_shape=SHAPE)
    assert failure.value.reason == "unprunable"
    assert "\n" not in str(failure.value)


def test_modes_of_the_layers_stay_as_they_were() -> None:
    model = network("smooth").train()
    model.get_submodule("gate").eval()
    before = {name: layer.training for name, layer in model.named_modules()}
    prune_to_ratio(model, ratio=0.5, original=total_channels(model, SHAPE), input_shape=SHAPE)
    assert {name: layer.training for name, layer in model.named_modules()} == before
