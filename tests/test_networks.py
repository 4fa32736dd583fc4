from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metasearch.errors import InputError
from metasearch.measure import count_macs, count_parameters
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.resnet import BasicBlock

SIDES = st.integers(8, 64) | st.sampled_from([96, 100, 128, 200, 224])


CONVOLUTIONAL = ["convnet", "resnet", "mobilenet"]


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


@settings(max_examples=25)
@given(
    channels=st.sampled_from([1, 3, 5]),
    height=SIDES,
    width=SIDES,
    depth=st.integers(1, 7),
    family=st.sampled_from(sorted(FAMILIES)),
)
def test_every_family_takes_images_of_any_shape(
    channels: int, height: int, width: int, depth: int, family: str
) -> None:
    shape = (channels, height, width)
    model = build_network(NetworkSpec(family, width=2, depth=depth), input_shape=shape, classes=4, seed=0).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 40), (1, 8, 41), (1, 8, 224), (1, 224, 9), (5, 20, 224)])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_convolutional_families_train_on_narrow_images(family: str, shape: tuple[int, ...], depth: int) -> None:
    model = build_network(NetworkSpec(family, width=1, depth=depth), input_shape=shape, classes=2, seed=0)
    assert model(torch.zeros(3, *shape)).shape == (3, 2)


@pytest.mark.parametrize("features", [1, 2, 13, 500])
def test_an_mlp_takes_vectors(features: int) -> None:
    model = build_network(NetworkSpec("mlp", width=3, depth=2), input_shape=(features,), classes=5, seed=0)
    assert model(torch.zeros(4, features)).shape == (4, 5)


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("side", [48, 64, 96, 128, 224])
def test_large_square_images_are_reduced_to_at_most_40_pixels_by_the_first_convolution(side: int, family: str) -> None:
    spec = NetworkSpec(family, width=2, depth=3)
    model = build_network(spec, input_shape=(3, side, side), classes=2, seed=0)
    first = convolutions(model)[0]
    reduced = first(torch.zeros(1, 3, side, side)).shape[2:]
    assert max(reduced) <= 40
    assert min(reduced) > 20


@pytest.mark.parametrize("shape", [(3, 16, 40), (1, 28, 28), (1, 40, 40)])
def test_images_of_up_to_40_pixels_are_not_reduced(shape: tuple[int, ...]) -> None:
    model = build_network(NetworkSpec("convnet", width=2, depth=1), input_shape=shape, classes=2, seed=0)
    assert convolutions(model)[0](torch.zeros(1, *shape)).shape[2:] == shape[1:]


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("convnet", (1, 28, 28)),
        ("convnet", (3, 224, 224)),
        ("mlp", (1, 8, 8)),
        ("mlp", (13,)),
        ("resnet", (1, 28, 28)),
        ("mobilenet", (3, 32, 32)),
    ],
)
def test_a_network_of_fewer_than_1000_parameters_is_possible(family: str, shape: tuple[int, ...]) -> None:
    model = build_network(NetworkSpec(family, width=1, depth=1), input_shape=shape, classes=10, seed=0)
    assert count_parameters(model) < 1000


@pytest.mark.parametrize(
    ("depth", "channels"),
    [
        (1, [3]),
        (2, [3, 6]),
        (3, [3, 6, 12]),
        (4, [3, 6, 12, 12]),
        (5, [3, 6, 6, 12, 12]),
        (6, [3, 3, 6, 6, 12, 12]),
        (7, [3, 3, 6, 6, 12, 12, 12]),
    ],
)
def test_depth_counts_convolutions_in_stages_of_doubling_width(depth: int, channels: list[int]) -> None:
    model = build_network(NetworkSpec("convnet", width=3, depth=depth), input_shape=(1, 16, 16), classes=2, seed=0)
    assert [layer.out_channels for layer in convolutions(model)] == channels
    pools = [layer for layer in model.modules() if isinstance(layer, nn.MaxPool2d)]
    assert len(pools) == min(depth, 3) - 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_an_mlp_has_depth_hidden_layers_of_four_times_its_width(depth: int) -> None:
    model = build_network(NetworkSpec("mlp", width=3, depth=depth), input_shape=(2, 3, 4), classes=5, seed=0)
    sizes = [layer.weight.shape for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(12, 24), *[(12, 12)] * (depth - 1), (5, 12)]


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (1, [(3, 1)]),
        (2, [(3, 1)]),
        (3, [(3, 1), (6, 2)]),
        (8, [(3, 1), (6, 2), (12, 2), (12, 1)]),
        (12, [(3, 1), (3, 1), (6, 2), (6, 1), (12, 2), (12, 1)]),
    ],
)
def test_a_resnet_has_a_basic_block_for_two_convolutions_with_a_shortcut_where_the_shape_changes(
    depth: int, blocks: list[tuple[int, int]]
) -> None:
    model = build_network(NetworkSpec("resnet", width=3, depth=depth), input_shape=(1, 16, 16), classes=2, seed=0)
    found = [layer for layer in model.modules() if isinstance(layer, BasicBlock)]
    assert [(c.out_channels, c.stride[0]) for c in (convolutions(block)[0] for block in found)] == blocks
    for block in found:
        first, second, *shortcut = convolutions(block)
        assert first.kernel_size == second.kernel_size == (3, 3)
        changes = first.stride != (1, 1) or first.in_channels != first.out_channels
        assert [(layer.kernel_size, layer.stride) for layer in shortcut] == (
            [((1, 1), first.stride)] if changes else []
        )


def test_a_block_whose_body_is_silent_passes_its_input_on() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(convolutions(block)[1].weight)
    inputs = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize(("depth", "widths"), [(1, [3]), (3, [3, 6, 12]), (5, [3, 6, 6, 12, 12])])
def test_a_mobilenet_has_depth_separable_blocks(depth: int, widths: list[int]) -> None:
    model = build_network(NetworkSpec("mobilenet", width=3, depth=depth), input_shape=(1, 16, 16), classes=2, seed=0)
    _, *layers = convolutions(model)
    depthwise, pointwise = layers[::2], layers[1::2]
    assert [layer.out_channels for layer in pointwise] == widths
    assert all(layer.groups == layer.in_channels == layer.out_channels for layer in depthwise)
    assert all((layer.kernel_size, layer.groups) == ((1, 1), 1) for layer in pointwise)
    assert sum(layer.stride == (2, 2) for layer in depthwise) == min(depth, 3) - 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_wider_or_deeper_network_costs_more(family: str) -> None:
    def cost(width: int, depth: int) -> tuple[int, int]:
        spec = NetworkSpec(family, width=width, depth=depth)
        model = build_network(spec, input_shape=(1, 12, 12), classes=3, seed=0)
        return count_parameters(model), count_macs(model, (1, 12, 12))

    for smaller, larger in [((2, 3), (3, 3)), ((4, 2), (4, 4)), ((4, 4), (4, 6))]:
        assert all(a < b for a, b in zip(cost(*smaller), cost(*larger), strict=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_seed_gives_the_same_weights_again_and_another_seed_others(family: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        spec = NetworkSpec(family, width=3, depth=2)
        model = build_network(spec, input_shape=(1, 8, 8), classes=3, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    first = weights(5)
    torch.randn(7)  # the global generator moves on
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


def test_building_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)  # it would seed the GPUs', too
    before = torch.get_rng_state()
    build_network(NetworkSpec("convnet", width=3, depth=3), input_shape=(1, 8, 8), classes=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("shape", [(1, 7, 28), (3, 28, 7), (64,), (1, 1, 1)])
def test_convolutional_families_refuse_vectors_and_small_images(shape: tuple[int, ...], family: str) -> None:
    with pytest.raises(InputError) as refusal:
        build_network(NetworkSpec(family, width=3, depth=1), input_shape=shape, classes=3, seed=0)
    message = f"student.family: {family} needs images of at least 8 x 8 pixels, got '{shape}'"
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("vgg", 3, 2),
            "network.family: must be one of convnet, mlp, resnet, mobilenet or "
            "package.module:function (known: convnet, mlp, resnet, mobilenet), got 'vgg'",
        ),
        (("mlp", 0, 2), "network.width: must be a whole number of at least 1, got 0"),
        (("mlp", 3, -1), "network.depth: must be a whole number of at least 1, got -1"),
        (("mlp", True, 1), "network.width: must be a whole number of at least 1, got True"),
        (("mlp", 2.0, 1), "network.width: must be a whole number of at least 1, got 2.0"),
    ],
)
def test_a_bad_spec_is_refused_in_one_clear_line(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        NetworkSpec(*arguments)
    assert str(refusal.value) == message


@given(
    family=st.sampled_from([*FAMILIES, "module:build", "my_package.my_module:net_2"]),
    width=st.integers(1, 10**6),
    depth=st.integers(1, 10**3),
)
def test_a_spec_survives_its_text(family: str, width: int, depth: int) -> None:
    spec = NetworkSpec(family, width=width, depth=depth)
    assert NetworkSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["convnet", "convnet:width=3", "convnet:width=3,depth=x", "convnet:width=-3,depth=2"])
def test_a_text_that_is_no_spec_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"^--teacher: must look like convnet:width=16,depth=4, got"):
        NetworkSpec.parse(text, place="--teacher")


def test_the_parameters_of_a_convnet_are_those_counted_by_hand() -> None:
    model = build_network(NetworkSpec("convnet", width=2, depth=2), input_shape=(3, 10, 10), classes=7, seed=0)
    convolution = 2 * 3 * 9 + 4 * 2 * 9
    assert count_parameters(model) == convolution + 2 * (2 + 4) + 4 * 7 + 7
    assert count_macs(model, (3, 10, 10)) == math.prod((10, 10, 2 * 3 * 9)) + math.prod((5, 5, 4 * 2 * 9)) + 4 * 7


def test_the_parameters_of_a_mobilenet_are_those_counted_by_hand() -> None:
    model = build_network(NetworkSpec("mobilenet", width=2, depth=2), input_shape=(3, 10, 10), classes=7, seed=0)
    stem, first, second = 2 * 3 * 9, (2 * 9, 2 * 2), (2 * 9, 4 * 2)
    assert count_parameters(model) == stem + sum(first) + sum(second) + 2 * (4 * 2 + 4) + 4 * 7 + 7
    assert count_macs(model, (3, 10, 10)) == 100 * (stem + sum(first)) + 25 * sum(second) + 4 * 7


def test_the_parameters_of_a_resnet_are_those_counted_by_hand() -> None:
    model = build_network(NetworkSpec("resnet", width=2, depth=4), input_shape=(3, 10, 10), classes=7, seed=0)
    stem, first, second = 2 * 3 * 9, 2 * (2 * 2 * 9), 4 * 2 * 9 + 4 * 4 * 9 + 4 * 2
    assert count_parameters(model) == stem + first + second + 2 * (2 + 2 * 2 + 3 * 4) + 4 * 7 + 7
    assert count_macs(model, (3, 10, 10)) == 100 * (stem + first) + 25 * second + 4 * 7
