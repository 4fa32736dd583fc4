"""What one operation of a network has to do, by its shapes: what its time on a device depends on.

Batch 1. Needs the standard library only: the device that measures may have neither torch nor onnx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

Shape = Sequence[int]

INPUT = "input"
"""The start of every network: the call itself, the normalisation and, in int8, the quantization of the input."""
DENSE, POINTWISE, DEPTHWISE, LINEAR = "dense", "pointwise", "depthwise", "linear"
ADD, MAX_POOL, AVERAGE_POOL, OTHER = "add", "max_pool", "average_pool", "other"
CONVOLUTIONS = (DENSE, POINTWISE, DEPTHWISE)
KINDS = (INPUT, *CONVOLUTIONS, LINEAR, ADD, MAX_POOL, AVERAGE_POOL, OTHER)


@dataclass(frozen=True)
class Work:
    """One operation. macs: multiply-accumulates. moved: bytes read and written, its weights among them.

    channels: (in, out), each 0 where the operation has none.
    """

    kind: str
    int8: bool
    macs: int
    moved: int
    channels: tuple[int, int] = (0, 0)

    def plain(self) -> list[Any]:
        """Return a short list for JSON; `from_plain` is its inverse."""
        return [*astuple(self)[:-1], *self.channels]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Work:
        """Return the work that `plain` wrote. Raises TypeError or ValueError for anything else."""
        kind, int8, *numbers = plain
        macs, moved, inputs, outputs = map(int, numbers)
        return cls(str(kind), bool(int8), macs, moved, (inputs, outputs))


def input_work(shape: Shape, *, image: bool, int8: bool) -> Work:
    """Return the work of the input. shape: (C, H, W) or (F,), of one input. image: uint8 at rest, else float32."""
    size = math.prod(shape)
    return Work(INPUT, int8, 0, size * (1 if image else 4) + _bytes(size, int8))


def convolution_work(inputs: Shape, weight: Shape, outputs: Shape, *, int8: bool) -> Work:
    """Return the work of a convolution. inputs, outputs: (C, H, W). weight: (out, in / groups, kernel H, kernel W)."""
    channels = (inputs[0], outputs[0])
    kind = DENSE if math.prod(weight[2:]) > 1 else POINTWISE
    kind = DEPTHWISE if inputs[0] > weight[1] else kind
    moved = _bytes(math.prod(inputs) + math.prod(weight) + math.prod(outputs), int8)
    return Work(kind, int8, math.prod(weight) * math.prod(outputs[1:]), moved, channels)


def linear_work(weight: Shape, *, rows: int = 1, int8: bool) -> Work:
    """Return the work of a linear layer. weight: (out, in). rows: vectors that it maps for one example."""
    size = math.prod(weight)
    channels = (weight[1], weight[0])
    return Work(LINEAR, int8, rows * size, _bytes(size + rows * sum(weight), int8), channels)


def plain_work(kind: str, inputs: Sequence[Shape], outputs: Shape, *, int8: bool) -> Work:
    """Return the work of an operation without weights, which only moves values."""
    return Work(kind, int8, 0, _bytes(sum(map(math.prod, inputs)) + math.prod(outputs), int8))


def _bytes(values: int, int8: bool) -> int:
    return values if int8 else 4 * values
