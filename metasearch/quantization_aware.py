"""Quantization-aware fine-tuning: a network that computes in floats what its int8 form will, and can be trained.

Weights, biases and activations take the values that int8 would store; gradients pass through the rounding as if it were
not there (the straight-through estimator of Bengio et al. 2013, section 4), and stop where an activation is clipped
(Jacob et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from metasearch.models.lowered import NORMALISED, Convolution, Linear, LoweredNetwork, Operation, apply, run
from metasearch.quantize import ACTIVATION_LEVELS, Quantization, quantize_weights


class FakeQuantized(nn.Module):
    """A lowered network to be fine-tuned in simulated int8; it takes normalised inputs and returns logits (B, K).

    activations: the fixed ranges of all values but the logits, as in QuantizedNetwork.activations. Weight scales follow
    the weights. Weights that are exactly zero stay so. In eval and in training mode it computes the same.
    """

    def __init__(self, network: LoweredNetwork, activations: Mapping[str, Quantization]) -> None:
        super().__init__()
        self.network, self.activations = network, dict(activations)
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for operation in network.operations:
            if isinstance(operation, (Convolution, Linear)):
                self.weights[operation.output] = nn.Parameter(operation.weight.clone())
                if operation.bias is not None:
                    self.biases[operation.output] = nn.Parameter(operation.bias.clone())
                self.register_buffer(f"{operation.output}_mask", operation.weight != 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised inputs; those of the int8 network up to float rounding."""
        return run(self.network.operations, _fake_quantize(x, self.activations[NORMALISED]), self._step)

    def lowered(self) -> LoweredNetwork:
        """Return the float network with the tuned weights, on the CPU, to be calibrated and quantized anew."""
        operations: list[Operation] = []
        for operation in self.network.operations:
            if isinstance(operation, (Convolution, Linear)):
                operation = _detached(self._current(operation), device="cpu")
            operations.append(operation)
        return replace(self.network, operations=tuple(operations))

    def _step(self, operation: Operation, *inputs: Tensor) -> Tensor:
        if isinstance(operation, (Convolution, Linear)):
            operation = _fake_quantize_weights(self._current(operation), self.activations[operation.inputs[0]].scale)
        result = apply(operation, *inputs)
        target = self.activations.get(operation.output)
        # Pooled and flattened values keep the levels, and the name, of the value that they are made of.
        return result if target is None or target.name != operation.output else _fake_quantize(result, target)

    def _current(self, operation: Convolution | Linear) -> Convolution | Linear:
        """Return the operation with its parameters of now; the mask keeps zeros and their gradients at zero."""
        name = operation.output
        weight = self.weights[name] * self.get_buffer(f"{name}_mask")
        return replace(operation, weight=weight, bias=self.biases.get(name))


def _fake_quantize(values: Tensor, quantization: Quantization) -> Tensor:
    scale, zero_point = quantization.scale, quantization.zero_point
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, ACTIVATION_LEVELS)


def _fake_quantize_weights(operation: Convolution | Linear, input_scale: float) -> Convolution | Linear:
    """Return the operation with the weights and biases that int8 stores, as floats; the gradient is the identity's."""
    stored, scales = quantize_weights(_detached(operation), input_scale)
    levels = stored.weight * scales.reshape(-1, *[1] * (stored.weight.ndim - 1))
    weight, bias = _straight_through(levels, operation.weight), None
    if operation.bias is not None and stored.bias is not None:
        bias = _straight_through((stored.bias.double() * (scales.double() * input_scale)).float(), operation.bias)
    return replace(operation, weight=weight, bias=bias)


def _straight_through(stored: Tensor, values: Tensor) -> Tensor:
    return values + (stored - values).detach()


def _detached(operation: Convolution | Linear, device: torch.device | str | None = None) -> Convolution | Linear:
    bias = None if operation.bias is None else operation.bias.detach().to(device)
    return replace(operation, weight=operation.weight.detach().to(device), bias=bias)
