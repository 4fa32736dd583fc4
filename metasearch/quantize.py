"""Static int8: a lowered network in the integer arithmetic of onnxruntime, computed in torch to the bit.

Weights are int8, symmetric, one scale an output channel; values between layers are uint8 with one scale and zero point
each, whose range comes from a calibration set; biases are int32 at the scale of the products. A real number r is stored
as q = clamp(round_half_even(r / scale) + zero_point, 0, 255); after ReLU the zero point is 0, and clamping is the ReLU.
Inside this module a value is held centred, as q - zero_point in a float tensor.
Symbols: sx, sw, sy scale of an operation's input, weights (out,) and output; B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metasearch.errors import TrialFailure
from metasearch.models.lowered import (
    LOGITS,
    NORMALISED,
    Add,
    Convolution,
    Flatten,
    Linear,
    LoweredNetwork,
    MaxPool,
    Operation,
    apply,
    apply_weights,
    normalisation_tensors,
    run,
    weight_tensors,
)
from metasearch.tasks.task import Normalisation

# On x86 without VNNI, onnxruntime multiplies uint8 by int8 with VPMADDUBSW, which saturates the sum of two neighbouring
# products at 32767: 255 * 127 * 2 = 64770 does not fit, 255 * 64 * 2 = 32640 does. Weights therefore keep to 7 bits
# (`reduce_range` of onnxruntime.quantization), so that every x86 CPU gives the same logits. This costs 0.02 points
# of test accuracy, the mean over 15 networks (convnets of width 2 to 8 and an mlp on Fashion-MNIST, three seeds each,
# CPU; standard deviation 0.12); agreement with the float network falls from 99.2 to 98.5 %.
WEIGHT_LIMIT = 64
ACTIVATION_LEVELS = 255
BIAS_LIMIT = 2**30
SMALLEST_SCALE = 2.0**-30
"""Keeps a dead channel or activation from dividing by zero, and ratios of scales within what onnxruntime accepts."""

# Ranges of least squared error against plain min-max, with 7-bit weights, in points of test accuracy: -0.004 on average
# over the same 15 image networks, +0.2 over 12 mlps on vectors with heavy tails. So: least error.
CLIPPING_CANDIDATES = 64
HISTOGRAM_BINS = 2048


@dataclass(frozen=True)
class Quantization:
    """How a value is stored as uint8. name: of the value that owns the scale; pooled and flattened copies share it."""

    name: str
    scale: float
    zero_point: int

    def quantize(self, values: Tensor) -> Tensor:
        """Return centred integers (as float32) for real `values`; half to even, clamped to the 256 levels."""
        return self.clamp_((values / self.scale_on(values.device)).round_())

    def clamp_(self, centred: Tensor) -> Tensor:
        """Clamp, in place, to the levels that uint8 can hold."""
        return centred.clamp_(-self.zero_point, ACTIVATION_LEVELS - self.zero_point)

    def scale_on(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the scale as a float32 scalar tensor: its rounding must be the stored one, not Python's."""
        return torch.tensor(self.scale, dtype=torch.float32, device=device)


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """The int8 network to deploy. operations hold int8 weights (as float they would be integers) and int32 biases.

    activations: of each value but the logits. weight_scales: (out,) float32 for each operation with weights, by output.
    """

    normalisation: Normalisation
    input_shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    activations: Mapping[str, Quantization]
    weight_scales: Mapping[str, Tensor]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K), float32, of inputs at rest, on their device."""
        return run(self.operations, self.activations[NORMALISED].quantize(self.normalisation(inputs)), self.apply)

    def stored_tensors(self) -> dict[str, np.ndarray]:
        """Return every tensor that the deployed file stores, by its name there; sparse weights are packed."""
        stored = normalisation_tensors(self.normalisation, self.input_shape) | weight_tensors(self.operations)
        for activation in self.activations.values():
            stored[f"{activation.name}.scale"] = np.array(activation.scale, dtype=np.float32)
            stored[zero_point_name(activation)] = np.array(activation.zero_point, dtype=np.uint8)
        for operation in self.operations:
            if isinstance(operation, (Convolution, Linear)):
                stored[f"{operation.output}.weight_scale"] = self.weight_scales[operation.output].numpy()
                if operation.bias is not None:
                    stored[f"{operation.output}.bias"] = operation.bias.numpy()
            if isinstance(operation, Linear):
                stored[weight_zero_name(operation)] = np.zeros(len(operation.weight), dtype=np.int8)
        return stored

    @property
    def stored_bytes(self) -> int:
        """The bytes of all stored tensors (`model_bytes`)."""
        return sum(tensor.nbytes for tensor in self.stored_tensors().values())

    @cached_property
    def product_dtypes(self) -> dict[str, torch.dtype]:
        """Of each operation with weights, by output: in what its products are exact."""
        return {
            operation.output: exact_dtype(operation, self.activations[operation.inputs[0]].zero_point)
            for operation in self.operations
            if isinstance(operation, (Convolution, Linear))
        }

    def apply(self, operation: Operation, *inputs: Tensor) -> Tensor:
        """Return what one operation makes of centred integers: such integers, of the last one the logits."""
        if isinstance(operation, (MaxPool, Flatten)):
            return apply(operation, *inputs)
        source = self.activations[operation.inputs[0]]
        sx = source.scale_on(inputs[0].device)
        if isinstance(operation, (Convolution, Linear)):
            products = exact_products(operation, inputs[0], self.product_dtypes[operation.output])
            scale = sx * self.weight_scales[operation.output].to(sx.device)
            if operation.output == LOGITS:
                return products * scale
            scale = scale.reshape(-1, *[1] * (products.ndim - 2))
            target = self.activations[operation.output]
            return target.clamp_(products.mul_(scale / target.scale_on(sx.device)).round_())
        target = self.activations[operation.output]
        if isinstance(operation, Add):
            return target.clamp_(_added(inputs, [self.activations[name] for name in operation.inputs], target))
        pixels = inputs[0].shape[2] * inputs[0].shape[3]
        total = inputs[0].sum(dim=(2, 3), keepdim=True, dtype=torch.float64).float()
        return target.clamp_(total.mul_(sx / (target.scale_on(sx.device) * pixels)).round_())


def zero_point_name(activation: Quantization) -> str:
    """Return the name of the stored zero point. Zeros share one byte; without it onnxruntime would not fuse."""
    return f"{activation.name}.zero_point" if activation.zero_point else "zero_point"


def weight_zero_name(operation: Linear) -> str:
    """Return the name of the zeros that QGemm, unlike QLinearConv, wants beside its weights; one for each length."""
    return f"weight_zero_point.{len(operation.weight)}"


def exact_dtype(operation: Convolution | Linear, zero_point: int) -> torch.dtype:
    """Return the dtype in which the sums of an operation's products with centred integers are exact.

    float32 adds integers exactly below 2^24; where the weights allow more, float64 does.
    """
    largest = max(zero_point, ACTIVATION_LEVELS - zero_point)
    bound = operation.weight.flatten(1).to(torch.int32).abs().sum(1) * largest
    if operation.bias is not None:
        bound = bound + operation.bias.to(torch.int64).abs()
    return torch.float32 if int(bound.max()) < 2**24 else torch.float64


def exact_products(operation: Convolution | Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the int32 sums of products and bias, rounded to float32 as onnxruntime rounds them.

    x: centred integers. dtype: of `exact_dtype`.
    """
    weight, bias = operation.weight.to(dtype), None if operation.bias is None else operation.bias.to(dtype)
    if isinstance(operation, Convolution) and x.is_cuda:
        return unfolded_convolution(operation, x.to(dtype), weight, bias).float()
    return apply_weights(operation, x.to(dtype), weight, bias).float()


def unfolded_convolution(operation: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution as one matrix product, for cuDNN's Winograd and FFT kernels round inside.

    Tensor cores may run it: integers of up to 8 bits are exact in TF32 and bfloat16, and sums stay float32.
    """
    kernel, padded = (
        operation.weight.shape[2:],
        [s + 2 * p for s, p in zip(x.shape[2:], operation.padding, strict=True)],
    )
    size = [
        (p - d * (k - 1) - 1) // s + 1
        for p, d, k, s in zip(padded, operation.dilation, kernel, operation.stride, strict=True)
    ]
    columns = F.unfold(x, tuple(kernel), operation.dilation, operation.padding, operation.stride)
    columns = columns.reshape(len(x), operation.groups, -1, size[0] * size[1])
    weight = weight.to(x.device).reshape(operation.groups, weight.shape[0] // operation.groups, -1)
    products = (weight @ columns).reshape(len(x), -1, *size)
    return products if bias is None else products + bias.to(x.device).reshape(-1, 1, 1)


def _added(values: tuple[Tensor, ...], sources: list[Quantization], target: Quantization) -> Tensor:
    """Return the rounded, centred sum as QLinearAdd computes it on x86: two fused multiply-adds from a constant.

    float64 holds each product exactly, so that one rounding to float32 stands for the fused operation's.
    """
    device = values[0].device
    ratios = [(source.scale_on(device) / target.scale_on(device)).double() for source in sources]
    offset = (ratios[1] * sources[1].zero_point).float().double()
    offset = target.zero_point - (ratios[0] * sources[0].zero_point + offset).float()
    raw = [value.double() + source.zero_point for value, source in zip(values, sources, strict=True)]
    total = (raw[1] * ratios[1] + offset.double()).float()
    total = (raw[0] * ratios[0] + total.double()).float()
    return total.round_().sub_(target.zero_point)


def quantize(network: LoweredNetwork, calibration: Tensor) -> QuantizedNetwork:
    """Return the int8 network whose activation ranges fit the calibration inputs (at rest, a few hundred, unlabelled).

    Raises TrialFailure("diverged") if an activation or a logit is not finite, TypeError if the network does not end in
    a linear layer.
    """
    last = network.operations[-1]
    if not isinstance(last, Linear) or last.relu:
        raise TypeError(f"int8 needs a linear layer at the end, not {type(last).__name__}")
    return quantize_with(network, _activations(network, calibration))


def quantize_with(network: LoweredNetwork, activations: Mapping[str, Quantization]) -> QuantizedNetwork:
    """Return the int8 network under given activation ranges, one for each value but the logits."""
    operations: list[Operation] = []
    weight_scales: dict[str, Tensor] = {}
    for operation in network.operations:
        if isinstance(operation, (Convolution, Linear)):
            operation, scales = quantize_weights(operation, activations[operation.inputs[0]].scale)
            weight_scales[operation.output] = scales
        operations.append(operation)
    return QuantizedNetwork(network.normalisation, network.input_shape, tuple(operations), activations, weight_scales)


def _activations(network: LoweredNetwork, calibration: Tensor) -> dict[str, Quantization]:
    """Return how each value but the logits is quantized, from one pass of the float network."""
    normalised = network.normalisation(calibration)
    activations = {NORMALISED: fit_range(NORMALISED, normalised)}

    def observe(operation: Operation, *inputs: Tensor) -> Tensor:
        result = apply(operation, *inputs)
        if isinstance(operation, (MaxPool, Flatten)):
            activations[operation.output] = activations[operation.inputs[0]]
        elif operation.output != LOGITS:
            activations[operation.output] = fit_range(operation.output, result)
        else:
            _require_finite(LOGITS, result)
        return result

    run(network.operations, normalised, observe)
    return activations


def fit_range(name: str, values: Tensor) -> Quantization:
    """Return the clipping range, zero included, with the smallest mean squared error over a grid of shrunken ranges.

    Raises TrialFailure("diverged") if a value is not finite.
    """
    _require_finite(name, values)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts = torch.histc(values.float(), HISTOGRAM_BINS, low, high).double().cpu()
    centres = low + (high - low) * (torch.arange(HISTOGRAM_BINS, dtype=torch.float64) + 0.5) / HISTOGRAM_BINS
    shrink = torch.linspace(1, 0.25, CLIPPING_CANDIDATES, dtype=torch.float64)[:, None]
    scales = (shrink * (high - low) / ACTIVATION_LEVELS).clamp_min(SMALLEST_SCALE)
    zero_points = (-low * shrink / scales).round()
    levels = ((centres / scales).round() + zero_points).clamp(0, ACTIVATION_LEVELS) - zero_points
    errors = ((levels * scales - centres).square() * counts).sum(dim=1)
    best = int(errors.argmin())
    return Quantization(name, float(np.float32(scales[best].item())), int(zero_points[best]))


def _require_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise TrialFailure("diverged", f"{name} is not finite on the calibration inputs")


def quantize_weights(operation: Convolution | Linear, input_scale: float) -> tuple[Convolution | Linear, Tensor]:
    """Return the operation with int8 weights and int32 bias, and the weight scales (out,), float32."""
    weight = operation.weight.double()
    scales = weight.flatten(1).abs().amax(dim=1) / WEIGHT_LIMIT
    if operation.bias is not None:  # a channel whose weights have nearly vanished takes a scale that its bias fits
        scales = torch.maximum(scales, operation.bias.double().abs() / (input_scale * BIAS_LIMIT))
    scales = scales.clamp_min(SMALLEST_SCALE).float()
    levels = (weight / scales.double().reshape(-1, *[1] * (weight.ndim - 1))).round()
    levels = levels.clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int8)
    product_scales = (torch.tensor(input_scale, dtype=torch.float32) * scales).double()
    rounded = None if operation.bias is None else (operation.bias.double() / product_scales).round().to(torch.int32)
    return replace(operation, weight=levels, bias=rounded), scales
