from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.models.lowered import lower
from metasearch.quantize import quantize
from metasearch.tasks.task import Normalisation
from tests.networks import lived_in


class FlatteningNetwork(nn.Sequential):
    """Convolutions whose last feature maps are flattened, so that each channel feeds several inputs of a layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(5, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4 * 4 * 4, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convnet of depth 1": (
        build_network(NetworkSpec("convnet", width=3, depth=1), input_shape=(1, 8, 8), classes=3, seed=0),
        (1, 8, 8),
    ),
    "convnet of depth 5": (
        build_network(NetworkSpec("convnet", width=3, depth=5), input_shape=(3, 12, 9), classes=4, seed=1),
        (3, 12, 9),
    ),
    "resnet": (
        build_network(NetworkSpec("resnet", width=3, depth=7), input_shape=(3, 12, 9), classes=4, seed=3),
        (3, 12, 9),
    ),
    "mobilenet": (
        build_network(NetworkSpec("mobilenet", width=3, depth=4), input_shape=(1, 12, 9), classes=4, seed=4),
        (1, 12, 9),
    ),
    "mlp": (build_network(NetworkSpec("mlp", width=2, depth=3), input_shape=(7,), classes=3, seed=2), (7,)),
    "flattening": (FlatteningNetwork(), (2, 8, 8)),
}
for network, _ in NETWORKS.values():
    lived_in(network)


def masked(model: nn.Module, keep: Sequence[Tensor]) -> nn.Module:
    """Return a copy of the same size in which every layer that makes a removed channel puts out 0 for it."""
    model = copy.deepcopy(model)
    for group, kept in zip(channel_groups(model), keep, strict=True):
        mask = torch.zeros(group.size)
        mask[kept] = 1

        def silence(_: nn.Module, __: object, output: Tensor, mask: Tensor = mask) -> Tensor:
            return output * mask.reshape(-1, *[1] * (output.ndim - 2))

        for name in (*group.producers, *group.norms):
            model.get_submodule(name).register_forward_hook(silence)
    return model


def random_keep(model: nn.Module, generator: torch.Generator) -> list[Tensor]:
    """Return some channels of each group, at least one."""
    keep = []
    for group in channel_groups(model):
        count = int(torch.randint(1, group.size + 1, (), generator=generator))
        keep.append(torch.randperm(group.size, generator=generator)[:count].sort().values)
    return keep


def batch(shape: tuple[int, ...], count: int = 5) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_every_channel_changes_no_output(name: str) -> None:
    model, shape = NETWORKS[name]
    same = keep_channels(model, [torch.arange(group.size) for group in channel_groups(model)])
    assert torch.equal(same(batch(shape)), model(batch(shape)))


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(NETWORKS)), data=st.data())
def test_a_pruned_network_matches_the_masked_network(name: str, data: st.DataObject) -> None:
    model, shape = NETWORKS[name]
    keep = [
        torch.tensor(sorted(data.draw(st.sets(st.integers(0, group.size - 1), min_size=1))))
        for group in channel_groups(model)
    ]
    pruned = keep_channels(model, keep)
    torch.testing.assert_close(pruned(batch(shape)), masked(model, keep)(batch(shape)))
    assert [group.size for group in channel_groups(pruned)] == [len(kept) for kept in keep]


@settings(max_examples=40)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    width=st.integers(1, 9),
    depth=st.integers(1, 7),
    shape=st.sampled_from([(1, 8, 8), (3, 9, 14), (2, 41, 20)]),
    seed=st.integers(0, 10**6),
)
def test_every_family_cut_at_random_matches_its_masked_self_and_runs_deployed(
    family: str, width: int, depth: int, shape: tuple[int, ...], seed: int
) -> None:
    model = lived_in(
        build_network(NetworkSpec(family, width, depth), input_shape=shape, classes=4, seed=seed), seed=seed
    )
    keep = random_keep(model, torch.Generator().manual_seed(seed))
    pruned = keep_channels(model, keep)
    torch.testing.assert_close(pruned(batch(shape)), masked(model, keep)(batch(shape)), atol=1e-3, rtol=1e-3)
    assert [group.size for group in channel_groups(pruned)] == [len(kept) for kept in keep]
    normalisation = Normalisation((1 / 64,) * shape[0], (-2.0,) * shape[0])
    inputs = torch.randint(0, 256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    lowered = lower(pruned, normalisation=normalisation, input_shape=shape)
    with torch.no_grad():
        torch.testing.assert_close(lowered(inputs), pruned(normalisation(inputs)), atol=1e-3, rtol=1e-3)
    assert quantize(lowered, inputs)(inputs).isfinite().all()


def test_the_sizes_that_layers_report_are_those_of_their_tensors() -> None:
    model, _ = NETWORKS["flattening"]
    pruned = keep_channels(model, [torch.tensor([0, 2, 4]), torch.tensor([1]), torch.tensor([0, 5])])
    first, second, hidden, last = (pruned.get_submodule(name) for name in ("0", "4", "9", "12"))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    assert (first.in_channels, first.out_channels, first.weight.shape) == (2, 3, (3, 2, 3, 3))
    assert first.bias is not None
    assert first.bias.shape == (3,)
    assert (second.in_channels, second.out_channels, second.weight.shape) == (3, 1, (1, 3, 3, 3))
    assert (hidden.in_features, hidden.out_features, hidden.weight.shape) == (16, 2, (2, 16))
    assert (last.in_features, last.out_features, last.weight.shape) == (2, 3, (3, 2))
    assert [pruned.get_submodule(name).num_features for name in ("1", "5", "10")] == [3, 1, 2]


def test_the_network_given_stays_as_it_was() -> None:
    model, _ = NETWORKS["mlp"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keep_channels(model, [torch.tensor([0])] * len(channel_groups(model)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pruned_network_can_be_trained_on() -> None:
    model, shape = NETWORKS["convnet of depth 5"]
    pruned = keep_channels(model, [torch.arange(max(1, group.size // 2)) for group in channel_groups(model)])
    pruned.train()(batch(shape)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def test_groups_name_who_makes_scales_and_reads_their_channels() -> None:
    groups = channel_groups(NETWORKS["flattening"][0])
    assert [(g.size, g.producers, g.consumers) for g in groups] == [
        (5, {"0": ["1"]}, ["4"]),
        (4, {"4": ["5"]}, ["9"]),
        (6, {"9": ["10"]}, ["12"]),
    ]


def test_values_that_are_added_have_one_group_with_all_their_producers() -> None:
    model = build_network(NetworkSpec("resnet", width=2, depth=4), input_shape=(1, 8, 8), classes=3, seed=0)
    groups = channel_groups(model)
    assert [(g.size, g.producers, g.consumers) for g in groups] == [
        (2, {"0": ["1"], "3.body.3": ["3.body.4"]}, ["3.body.0", "4.body.0", "4.shortcut.0"]),
        (2, {"3.body.0": ["3.body.1"]}, ["3.body.3"]),
        (4, {"4.body.0": ["4.body.1"]}, ["4.body.3"]),
        (4, {"4.body.3": ["4.body.4"], "4.shortcut.0": ["4.shortcut.1"]}, ["7"]),
    ]


def test_a_depthwise_convolution_belongs_to_the_group_of_its_input() -> None:
    model = build_network(NetworkSpec("mobilenet", width=3, depth=1), input_shape=(1, 8, 8), classes=3, seed=0)
    assert [(g.size, g.producers, g.consumers) for g in channel_groups(model)] == [
        (3, {"0": ["1"], "3": ["4"]}, ["6"]),
        (3, {"6": ["7"]}, ["11"]),
    ]
    pruned = keep_channels(model, [torch.tensor([2]), torch.tensor([0, 1])])
    depthwise = pruned.get_submodule("3")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (1, 1, 1)
    assert depthwise.weight.shape == (1, 1, 3, 3)
    assert [group.size for group in channel_groups(pruned)] == [1, 2]


class AddsTo(nn.Module):
    """A hidden layer between two others, with a sum at the input or at the logits."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.hidden, self.beside, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        if self.what == "input":
            return torch.relu(self.last(x + hidden))
        logits: Tensor = self.last(hidden) + self.beside(x)
        return logits


@pytest.mark.parametrize(("what", "producers"), [("input", []), ("logits", ["hidden"])])
def test_what_is_added_to_the_input_or_the_logits_keeps_its_size(what: str, producers: list[str]) -> None:
    assert [name for group in channel_groups(AddsTo(what)) for name in group.producers] == producers


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layer(torch.relu(self.layer(x))))
        return logits


def test_input_and_logits_belong_to_no_group() -> None:
    assert channel_groups(nn.Sequential(nn.Linear(4, 3))) == []


class Scaling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FlatSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.beside, self.last = nn.Conv2d(1, 2, 3), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.convolution(x).flatten(1)
        logits: Tensor = self.last(flat + self.beside(flat))
        return logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)), "layer 1 (PReLU) is not known"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.PixelShuffle(1), nn.Conv2d(2, 1, 3)), "layer 1 (PixelShuffle)"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "layer 1 (Conv2d) is not known"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4)), "layer 1 (Conv2d) is not known"),
        (Scaling(), "operation mul stands for no known layer"),
        (Branching(), "Branching cannot be traced"),
        (UsedTwice(), "layer layer is used twice"),
        (FlatSum(), "operation add adds 2 and 8 channels"),
    ],
)
def test_an_unknown_layer_is_a_type_error_that_names_it(model: nn.Module, message: str) -> None:
    with pytest.raises(TypeError) as refusal:
        channel_groups(model)
    assert message in str(refusal.value)
