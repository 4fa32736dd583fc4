"""A monotone change of an objective's scale after which its values are nearly normal.

w(y) = arcsinh((y - low) / (softness * spread)): almost linear below low + softness * spread, logarithmic above it, and
defined for every number. An objective that is best at its small end and has a long tail, as errors, times and bytes
have, is spread out where it is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SOFTNESSES = (0.0, 1.0, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class Warp:
    """low: about the smallest value. spread: their deviation. softness: 0 leaves values as they are, but for units."""

    low: float
    spread: float
    softness: float

    def __call__(self, y: Array) -> Array:
        """Return the warped values."""
        scaled = (y - self.low) / self.spread
        return np.asarray(np.arcsinh(scaled / self.softness) if self.softness else scaled)

    def inverse(self, w: Array) -> Array:
        """Return the values whose warped ones these are."""
        return np.asarray(self.low + self.spread * (np.sinh(w) * self.softness if self.softness else w))

    def log_slope(self, y: Array) -> Array:
        """Return the logarithm of the slope at the values, in units of 1 / spread."""
        if not self.softness:
            return np.zeros_like(y)
        scaled = (y - self.low) / self.spread
        return np.asarray(-0.5 * np.log(scaled**2 + self.softness**2))


def choose_warp(studies: Sequence[Array]) -> Warp:
    """Return the warp under which the values of each study come nearest to a normal sample of its own.

    By likelihood, as Box and Cox (1964) choose theirs; each study has its own mean and deviation. No values, or equal
    ones, are left as they are.
    """
    values = np.concatenate(list(studies))
    if not len(values) or values.min() == values.max():
        return Warp(float(values[0]) if len(values) else 0.0, 1.0, 0.0)
    spread = float(values.std())
    warps = [Warp(float(values.min()), spread, softness) for softness in SOFTNESSES]

    def likelihood(warp: Warp) -> float:
        total = float(warp.log_slope(values).sum())
        for study in studies:
            total -= len(study) * np.log(warp(study).std() + 1e-9)
        return total

    return max(warps, key=likelihood)
