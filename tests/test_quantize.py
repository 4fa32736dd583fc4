from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import Convolution, Linear, LoweredNetwork, apply_weights, lower
from metasearch.quantize import (
    SMALLEST_SCALE,
    WEIGHT_LIMIT,
    Quantization,
    exact_dtype,
    exact_products,
    fit_range,
    quantize,
    unfolded_convolution,
)
from metasearch.tasks.task import Normalisation


def small_network(seed: int = 0) -> LoweredNetwork:
    model = build_network(NetworkSpec("convnet", 4, 3), input_shape=(1, 12, 12), classes=5, seed=seed)
    return lower(model, normalisation=Normalisation((1 / 64,), (-2.0,)), input_shape=(1, 12, 12))


def images(count: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@given(
    scale=st.floats(1e-6, 1e3),
    zero_point=st.integers(0, 255),
    levels=st.lists(st.floats(-300, 300), min_size=1, max_size=20),
)
def test_a_value_in_range_comes_back_within_half_a_scale(scale: float, zero_point: int, levels: list[float]) -> None:
    quantization = Quantization("value", float(torch.tensor(scale)), zero_point)
    values = (torch.tensor(levels).clamp(-zero_point, 255 - zero_point) * quantization.scale).float()
    centred = quantization.quantize(values)
    assert float((centred * quantization.scale - values).abs().max()) <= quantization.scale * (0.5 + 1e-4)
    assert torch.equal(quantization.quantize(centred * quantization.scale_on()), centred)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.booleans())
def test_ranges_hold_zero_and_lose_at_most_what_min_max_loses(seed: int, rectified: bool) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) + 0.3
    values = values.relu() if rectified else values
    fitted = fit_range("value", values)
    assert (fitted.zero_point == 0) == rectified
    low, high = min(0.0, float(values.min())), float(values.max())
    plain = Quantization("value", (high - low) / 255, round(-low / (high - low) * 255))
    loss = [float((q.quantize(values) * q.scale - values).square().mean()) for q in (fitted, plain)]
    assert loss[0] <= loss[1] * 1.02  # the histogram that chose the range knows each value to an eighth of a level


def test_an_outlier_does_not_set_the_range_of_many_values() -> None:
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    values[0] = 3.0
    assert fit_range("value", values).scale < 0.9 * 3.0 / 255


def test_weights_keep_to_seven_bits_and_each_channel_uses_them_all() -> None:
    quantized = quantize(small_network(), images())
    for operation in quantized.operations:
        if isinstance(operation, (Convolution, Linear)):
            assert operation.weight.dtype == torch.int8
            assert torch.all(operation.weight.flatten(1).abs().amax(dim=1) == WEIGHT_LIMIT)
            assert operation.bias is None or operation.bias.dtype == torch.int32


def test_stored_weights_and_biases_are_within_half_a_step_of_the_float_ones() -> None:
    network = small_network()
    quantized = quantize(network, images())
    for before, after in zip(network.operations, quantized.operations, strict=True):
        if isinstance(before, (Convolution, Linear)) and isinstance(after, (Convolution, Linear)):
            scale = quantized.weight_scales[after.output]
            shape = (-1,) + (1,) * (before.weight.ndim - 1)
            assert torch.all(
                (after.weight * scale.reshape(shape) - before.weight).abs() <= scale.reshape(shape) * 0.501
            )
            assert before.bias is not None
            assert after.bias is not None
            step = scale.double() * quantized.activations[after.inputs[0]].scale
            assert torch.all((after.bias * step - before.bias).abs() <= step * 0.501)


def test_quantized_logits_stay_near_the_float_ones() -> None:
    network = small_network()
    exact, quantized = network(images()), quantize(network, images())(images())
    assert float((quantized - exact).abs().max()) < 0.1 * float(exact.abs().max())


@pytest.mark.parametrize("largest_weight", [1, WEIGHT_LIMIT])
def test_products_equal_int64_arithmetic_below_and_above_two_to_the_24(largest_weight: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((3, 1200), largest_weight, dtype=torch.int8)
    weight[1] = torch.randint(-largest_weight, largest_weight + 1, (1200,), generator=generator).to(torch.int8)
    x = torch.randint(200, 256, (50, 1200), generator=generator)
    bias = torch.tensor([5, -7, 1], dtype=torch.int32)
    exact = x @ weight.long().T + bias
    assert (int(exact.max()) > 2**24) == (largest_weight == WEIGHT_LIMIT)
    linear = Linear(("a",), "b", weight, bias)
    products = exact_products(linear, x.float(), exact_dtype(linear, 0))
    assert torch.equal(products, exact.to(torch.int32).float())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [((1, 1), (1, 1), (1, 1)), ((2, 3), (0, 2), (2, 1))])
def test_convolution_as_a_matrix_product_equals_convolution(
    groups: int, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-64, 65, (8, 4 // groups, 3, 2), generator=generator).float()
    bias = torch.randint(-999, 999, (8,), generator=generator).float()
    operation = Convolution(("a",), "b", weight, bias, stride, padding, dilation, groups)
    x = torch.randint(0, 256, (5, 4, 11, 9), generator=generator).float()
    assert torch.equal(unfolded_convolution(operation, x, weight, bias), apply_weights(operation, x, weight, bias))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_logits_to_the_bit() -> None:
    quantized = quantize(small_network(), images())
    assert torch.equal(quantized(images().cuda()).cpu(), quantized(images()))


def test_logits_do_not_depend_on_the_batch() -> None:
    quantized = quantize(small_network(), images())
    assert torch.equal(quantized(images()), torch.cat([quantized(image[None]) for image in images()]))


def test_dead_channels_and_dead_activations_give_finite_logits() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("0.weight")[1] = 1e-30
        model.get_parameter("0.bias").copy_(torch.tensor([0.0, 5.0, -3.0, 1e-20]))
        model.get_parameter("2.bias").fill_(-1.0)
        model.get_parameter("6.bias").copy_(torch.tensor([0.25, -3.0]))
    lowered = lower(model, normalisation=Normalisation((1 / 255,), (0.0,)), input_shape=(1, 12, 12))
    quantized = quantize(lowered, images())
    assert min(float(scales.min()) for scales in quantized.weight_scales.values()) >= SMALLEST_SCALE
    torch.testing.assert_close(quantized(images()), torch.tensor([[0.25, -3.0]]).expand(64, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_is_a_failed_trial(value: float) -> None:
    for layer in (0, -1):
        model = build_network(NetworkSpec("mlp", 2, 1), input_shape=(4,), classes=2, seed=0)
        parameters = [p for p in model.parameters() if p.ndim == 2]
        parameters[layer].data[0, 0] = value
        lowered = lower(model, normalisation=Normalisation((1.0,) * 4, (0.0,) * 4), input_shape=(4,))
        with pytest.raises(TrialFailure, match="diverged"):
            quantize(lowered, torch.ones(3, 4))


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    lowered = lower(model, normalisation=Normalisation((1.0,), (0.0,)), input_shape=(1, 12, 12))
    with pytest.raises(TypeError, match="Flatten"):
        quantize(lowered, images())
