"""Exact hypervolume of two minimized objectives below the point (1, 1), and the regret that a search is judged by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def hypervolume(values: Array) -> float:
    """Return the area below (1, 1) that points (N, 2) dominate."""
    inside = values[np.argsort(values[:, 0], kind="stable")].clip(max=1.0)
    reached = np.minimum.accumulate(np.concatenate([[1.0], inside[:, 1]]))
    return float(((1 - inside[:, 0]) * (reached[:-1] - reached[1:])).sum())


def gains(values: Array, front: Array) -> Array:
    """Return (N,), the area that each of the points (N, 2) alone would add to that of a front (F, 2)."""
    before = hypervolume(front)
    return np.array([hypervolume(np.vstack([front, point])) - before for point in values])


def regret_curve(values: Array, whole: Array) -> Array:
    """Return (T,): 1 - HV(first n trials) / HV(whole table) for n = 1 to T.

    values: (T, 2), of the trials in their order. whole: (N, 2), of every configuration.
    """
    best = hypervolume(whole)
    return np.array([1 - hypervolume(values[:n]) / best for n in range(1, len(values) + 1)])
