"""Hypervolume and its expected improvement, for any number of objectives, by one formula.

M objectives, all minimized, N points, Q candidates, S samples, L directions. The hypervolume that points dominate
below a reference r is, up to a constant, the mean over directions d on the positive part of the unit sphere of
max_n (min_m (r_m - y_nm)+ / d_m)^M; Zhang and Golovin (2020), lemma 5. The mean of a maximum is easy to improve on: a
candidate adds its excess over the best so far, direction by direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma
from scipy.stats import norm, qmc

Array = NDArray[np.float64]


def directions(objectives: int, count: int) -> Array:
    """Return (L, M) directions spread evenly over the positive part of the unit sphere; the same at every call."""
    if objectives == 1:
        return np.ones((1, 1))
    if objectives == 2:
        angles = (np.arange(count) + 0.5) / count * np.pi / 2
        return np.column_stack([np.cos(angles), np.sin(angles)])
    points = qmc.Halton(objectives, scramble=False).random(count + 1)[1:]
    normals = norm.ppf(0.5 + points / 2)
    return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True))


def non_dominated(values: Array) -> NDArray[np.intp]:
    """Return the indices of the points (N, M) that no other one dominates."""
    first, second = values[:, None], values[None]
    worse = np.all(first >= second, axis=2) & np.any(first > second, axis=2)
    return np.flatnonzero(~np.any(worse, axis=1))


@dataclass(frozen=True)
class Hypervolume:
    """Hypervolume below a reference point (M,), in units of scale (M,): a box from reference - scale to it is 1."""

    reference: Array
    scale: Array
    rays: Array

    @classmethod
    def of(cls, reference: Array, scale: Array, *, count: int = 64) -> Hypervolume:
        """Return the measure with `count` directions."""
        return cls(reference, scale, directions(len(reference), count))

    @property
    def constant(self) -> float:
        """What makes a mean over directions a volume."""
        m = len(self.reference)
        return float(np.pi ** (m / 2) / (2**m * gamma(m / 2 + 1)))

    def lengths(self, values: Array) -> Array:
        """Return (..., L): how far each direction runs inside the box that values (..., M) dominate, to the power M."""
        inside = np.maximum(self.reference - values, 0) / self.scale
        result = inside[..., :1] / self.rays[:, 0]
        for m in range(1, len(self.reference)):
            np.minimum(result, inside[..., m : m + 1] / self.rays[:, m], out=result)
        return np.asarray(result ** len(self.reference))

    def best(self, values: Array) -> Array:
        """Return (L,) the largest lengths of points (N, M); zeros if there are none."""
        return self.lengths(values).max(axis=0, initial=0.0) if len(values) else np.zeros(len(self.rays))

    def volume(self, values: Array) -> float:
        """Return the hypervolume of points (N, M)."""
        return self.constant * float(self.best(values).mean())

    def improvement(self, samples: Array, best: Array) -> Array:
        """Return (Q,): the mean over samples (S, Q, M) of the hypervolume each adds to `best`: (L,), or (S, L)."""
        total = np.zeros(samples.shape[1])
        for sample, reached in zip(samples, np.broadcast_to(best, (len(samples), len(self.rays))), strict=True):
            total += np.maximum(self.lengths(sample) - reached, 0).mean(axis=1)
        return self.constant * total / len(samples)
