"""Sparse weights as a deployed file stores them: one bit a weight, and the values that are not zero.

Symbols: n weights of a tensor, z of them not zero, s bytes each (1 in int8, 4 in float32).
Dense they take n s bytes; packed n / 8 + (z + 1) s, and 8 bytes for each dimension of their shape. Packing pays below
a density z / n of 1 - 1 / (8 s): 87.5 % in int8, 96.9 % in float32. (ONNX's own sparse initializers have int64 indices
and take z (s + 8) bytes; they beat the bit mask only below a density of 1 / 64.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SHARED: dict[str, np.ndarray] = {
    "packing.bits": np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.uint8),
    "packing.flat": np.array([-1], dtype=np.int64),
    "packing.first": np.array([0], dtype=np.int64),
}
"""What every expansion reads, stored once a file: the bits of a byte, the shape of a flat tensor, its first index."""

# What the file holds beside the tensors: the call that expands a weight with the names of its parts, and the recipe
# that all calls share. Packing that saves less would make the file larger.
CALL_BYTES = 256
RECIPE_BYTES = 768


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor as a bit mask and its non-zero values, in C order.

    mask: (ceil(n / 8), 1) uint8, first weight in the highest bit. values: (1 + z,), of which the first, 0, is what the
    weights without a bit read. shape: of the tensor, int64.
    """

    mask: np.ndarray
    values: np.ndarray
    shape: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of the three arrays."""
        return self.mask.nbytes + self.values.nbytes + self.shape.nbytes


def pack(weight: np.ndarray) -> Packed:
    """Return a tensor of any shape and numeric dtype without its zeros; those of either sign come back as +0."""
    flat = weight.reshape(-1)
    mask = np.packbits(flat != 0).reshape(-1, 1)
    values = np.concatenate([np.zeros(1, dtype=flat.dtype), flat[flat != 0]])
    return Packed(mask, values, np.array(weight.shape, dtype=np.int64))


def unpack(packed: Packed) -> np.ndarray:
    """Return the tensor that `pack` was given."""
    present = np.unpackbits(packed.mask.reshape(-1), count=int(packed.shape.prod())).astype(np.int32)
    weight: np.ndarray = packed.values[present.cumsum() * present].reshape(packed.shape)
    return weight


def stored_weights(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors that a file stores for the weights: each as it is, or packed where the file gets smaller.

    A packed weight `w` is stored as `w.mask`, `w.values` and its shape, which weights of one shape share.
    """
    packed = {name: pack(weight) for name, weight in weights.items()}
    saved = {name: weights[name].nbytes - packed[name].nbytes - CALL_BYTES for name in weights}
    chosen = {name for name in weights if saved[name] > 0}
    if sum(saved[name] for name in chosen) <= RECIPE_BYTES + sum(tensor.nbytes for tensor in SHARED.values()):
        return dict(weights)
    stored = dict(SHARED)
    for name, weight in weights.items():
        if name in chosen:
            mask, values, shape = part_names(name, weight.shape)
            stored |= {mask: packed[name].mask, values: packed[name].values, shape: packed[name].shape}
        else:
            stored[name] = weight
    return stored


def part_names(name: str, shape: tuple[int, ...]) -> tuple[str, str, str]:
    """Return the names by which the mask, the values and the shape of a packed weight are stored."""
    return f"{name}.mask", f"{name}.values", f"shape.{'x'.join(map(str, shape))}"
