"""Gaussian-process regression on points of the unit cube: kernel, evidence, hyperparameters, prediction.

N points, D columns, P parameters (a categorical parameter has several columns), Q points to predict. Matérn kernel of
smoothness 5/2 with a length scale per parameter: k(r) = (1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r); Rasmussen and
Williams (2006), chapters 2, 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

Array = NDArray[np.float64]
ROOT5 = 5**0.5
JITTER = 1e-8


def squared_differences(x: Array, z: Array, parameter: NDArray[np.intp]) -> Array:
    """Return (P, N, Q): per parameter, the squared distance between rows of x (N, D) and z (Q, D).

    parameter: (D,), the parameter that each column belongs to.
    """
    parts = np.zeros((int(parameter[-1]) + 1, len(x), len(z)))
    for column, index in enumerate(parameter):
        difference = x[:, None, column] - z[None, :, column]
        parts[index] += difference * difference
    return parts


def scaled(x: Array, parameter: NDArray[np.intp], log_scales: Array) -> Array:
    """Return the points with each column divided by its parameter's length scale."""
    return np.asarray(x / np.exp(log_scales)[parameter])


def matern(x: Array, z: Array) -> Array:
    """Return the kernel (N, Q) between scaled points."""
    squared = (x * x).sum(1)[:, None] + (z * z).sum(1)[None] - 2 * x @ z.T
    r = np.sqrt(5 * np.maximum(squared, 0))
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))


def _with_slopes(parts: Array, log_scales: Array) -> tuple[Array, Array]:
    """Return the kernel (N, N) and what its slope in each log length scale is, up to parts / scale^2."""
    squared = np.tensordot(np.exp(-2 * log_scales), parts, axes=1)
    r = np.sqrt(5 * squared)
    decay = np.exp(-r)
    return (1 + r + r * r / 3) * decay, (5 / 3) * (1 + r) * decay


@dataclass(frozen=True)
class Hyperparameters:
    """log_scales: (P,), of the unit cube. shared: of the signal's variance, how much studies have in common, in [0, 1).

    variance: of the signal. noise: variance. Both in units of the squared standardized objective. kept: of the noise,
    how much is a configuration's own and comes again when another study tries it, in [0, 1).
    """

    log_scales: Array
    variance: float
    noise: float
    shared: float = 0.0
    kept: float = 0.0


@dataclass(frozen=True)
class Beliefs:
    """Log-normal beliefs about the hyperparameters before any data: means and deviations of their logarithms."""

    log_scale: float
    scale_spread: float = 1.0
    log_variance: float = 0.0
    variance_spread: float = 0.7
    log_noise: float = -4.0
    noise_spread: float = 1.5
    shared_spread: float = 1.5
    kept_spread: float = 1.5


def fit(
    x: Array,
    y: Array,
    parameter: NDArray[np.intp],
    beliefs: Beliefs,
    *,
    study: NDArray[np.intp] | None = None,
    start: Hyperparameters | None = None,
    steps: int = 60,
) -> Hyperparameters:
    """Return the hyperparameters of largest posterior density. y: (N,), standardized.

    study: (N,), the study of each point. Values of different studies correlate by the share `shared` of what values of
    one study do, those of one configuration by the share `kept` of the noise, too; without it there is one study.
    """
    same = None if study is None else study[:, None] == study[None]
    posterior = _Posterior(squared_differences(x, x, parameter), y, beliefs, same)
    first, count = posterior.means.copy(), posterior.count
    if start is not None:
        first[:count] = start.log_scales
        first[count : count + 2] = np.log(start.variance), np.log(start.noise)
    bounds = [(-3.0, 5.0)] * count + [(-6.0, 4.0), (-12.0, 1.0), (-6.0, 6.0), (-6.0, 6.0)]
    found = minimize(
        posterior, first, jac=True, method="L-BFGS-B", bounds=bounds[: len(first)], options={"maxiter": steps}
    ).x
    share, kept = (0.0, 0.0) if same is None else (_logistic(found[count + 2]), _logistic(found[count + 3]))
    return Hyperparameters(found[:count], float(np.exp(found[count])), float(np.exp(found[count + 1])), share, kept)


@dataclass(frozen=True)
class _Posterior:
    """The density of hyperparameters given values, up to a constant.

    Its argument theta: (P + 2,), the logarithms of length scales, variance and noise; with several studies (P + 4,),
    the logits of `shared` and `kept`, too. parts: (P, N, N). same: (N, N), which points are of one study.
    """

    parts: Array
    y: Array
    beliefs: Beliefs
    same: NDArray[np.bool_] | None

    @property
    def count(self) -> int:
        return len(self.parts)

    @cached_property
    def again(self) -> Array:
        """(N, N), 1 where two points are one configuration."""
        return np.asarray((self.parts.sum(0) == 0) - np.eye(len(self.y)))

    @cached_property
    def means(self) -> Array:
        b = self.beliefs
        means = np.array([*[b.log_scale] * self.count, b.log_variance, b.log_noise, 1.0, 0.0])
        return means if self.same is not None else means[:-2]

    @cached_property
    def spreads(self) -> Array:
        b = self.beliefs
        one = [*[b.scale_spread] * self.count, b.variance_spread, b.noise_spread]
        return np.array(one if self.same is None else [*one, b.shared_spread, b.kept_spread])

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Return the negative logarithm and its slopes."""
        count = self.count
        kernel, slope = _with_slopes(self.parts, theta[:count])
        variance, noise = np.exp(theta[count]), np.exp(theta[count + 1])
        share, kept = (1.0, 0.0) if self.same is None else (_logistic(theta[count + 2]), _logistic(theta[count + 3]))
        mixing = variance if self.same is None else variance * np.where(self.same, 1.0, share)
        signal = mixing * kernel
        covariance = signal + kept * noise * self.again
        covariance[np.diag_indices_from(covariance)] += noise + JITTER
        try:
            root = cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        weights = cho_solve((root, True), self.y, check_finite=False)
        outer = cho_solve((root, True), np.eye(len(self.y)), check_finite=False) - np.outer(weights, weights)
        of_again = 0.5 * (outer * self.again).sum() * noise
        grad = np.empty_like(theta)
        grad[:count] = 0.5 * np.einsum("nm,pnm->p", outer * mixing * slope, self.parts) * np.exp(-2 * theta[:count])
        grad[count] = 0.5 * (outer * signal).sum()
        grad[count + 1] = 0.5 * np.trace(outer) * noise + kept * of_again
        if self.same is not None:
            grad[count + 2] = 0.5 * (outer * kernel * ~self.same).sum() * variance * share * (1 - share)
            grad[count + 3] = of_again * kept * (1 - kept)
        value = 0.5 * self.y @ weights + np.log(np.diag(root)).sum()
        off = (theta - self.means) / self.spreads
        return float(value + 0.5 * off @ off), grad + off / self.spreads


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))
