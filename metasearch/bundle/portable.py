"""The deployed network for ExecuTorch (.pte): phones and other small devices, without Python (extra `executorch`).

What XNNPACK has kernels for goes to it; the rest runs in ExecuTorch's own. An int8 network is written anew for that, as
quantize and dequantize around float operators, which XNNPACK fuses: the integer arithmetic of `metasearch.quantize`,
spelled out in floats, has no fast kernels there. XNNPACK rounds in another way, so that logits differ a little.
Symbols: B inputs; levels are int8, those of `metasearch.quantize` less 128.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metasearch.bundle.program import exported_program
from metasearch.errors import InputError
from metasearch.models.lowered import LOGITS, NORMALISED, Convolution, Linear, Operation, apply, apply_weights, run
from metasearch.quantize import QuantizedNetwork
from metasearch.run import Deployed

SHIFT, LOWEST, HIGHEST = 128, -128, 127
"""From a level of `metasearch.quantize` to one here, and the range of these."""
MISSING = "needs the extra `executorch`: pip install metasearch[executorch]"


def write_portable(network: Deployed, path: Path) -> None:
    """Write the network as a .pte file that takes one input at a time. Raises InputError without ExecuTorch."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise InputError("--executorch", MISSING, error.name) from error
    fusable = FusableNetwork(network) if isinstance(network, QuantizedNetwork) else network
    program = exported_program(fusable, batch=1)  # ExecuTorch plans its memory ahead
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def portable_logits(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the network in a .pte file, run by ExecuTorch's runtime. Raises InputError without it."""
    try:
        from executorch.runtime import Runtime
    except ImportError as error:
        raise InputError("--executorch", MISSING, error.name) from error
    method = Runtime.get().load_program(path).load_method("forward")

    def logits(inputs: Tensor) -> Tensor:
        # copies: ExecuTorch writes its next answer over the last one
        return torch.cat([method.execute([one.contiguous()])[0].clone() for one in torch.split(inputs, 1)])

    return logits


class FusableNetwork:
    """An int8 network in floats, each value but the logits passed through its levels. Needs ExecuTorch's operators."""

    def __init__(self, network: QuantizedNetwork) -> None:
        self.network, self.input_shape = network, network.input_shape
        self._weights = {
            operation.output: _float_parts(network, operation)
            for operation in network.operations
            if isinstance(operation, (Convolution, Linear))
        }

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K), float32, of inputs at rest."""
        network = self.network
        return run(network.operations, self._through_levels(NORMALISED, network.normalisation(inputs)), self._apply)

    def _apply(self, operation: Operation, *inputs: Tensor) -> Tensor:
        if isinstance(operation, (Convolution, Linear)):  # the lowest level is the ReLU
            weight, scales, zeros, bias = self._weights[operation.output]
            if scales is not None:
                limits = (-HIGHEST, HIGHEST, torch.int8)
                weight = torch.ops.quantized_decomposed.dequantize_per_channel(weight, scales, zeros, 0, *limits)
            result = apply_weights(operation, inputs[0], weight, bias)
        else:
            result = apply(operation, *inputs)
        return result if operation.output == LOGITS else self._through_levels(operation.output, result)

    def _through_levels(self, name: str, values: Tensor) -> Tensor:
        activation = self.network.activations[name]
        levels = (activation.scale, activation.zero_point - SHIFT, LOWEST, HIGHEST, torch.int8)
        decomposed = torch.ops.quantized_decomposed
        value: Tensor = decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(values, *levels), *levels)
        return value


def _float_parts(
    network: QuantizedNetwork, operation: Convolution | Linear
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return weight, its scales and zero points, and bias; the weight of the logits, which are no levels, in floats."""
    scales = network.weight_scales[operation.output]
    bias = operation.bias
    if bias is not None:
        bias = (bias.double() * scales.double() * network.activations[operation.inputs[0]].scale).float()
    if operation.output == LOGITS:
        return operation.weight * scales[:, None], None, None, bias
    return operation.weight, scales, torch.zeros(len(scales), dtype=torch.int64), bias
