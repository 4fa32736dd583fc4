"""Gaussian-process regression on points of the unit cube: kernel, evidence, hyperparameters, prediction.

N points, D columns, P parameters (a categorical parameter has several columns), Q points to predict. Matérn kernel of
smoothness 5/2 with a length scale per parameter: k(r) = (1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r); Rasmussen and
Williams (2006), chapters 2, 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    parts = squared_differences(x, x, parameter)
    count = len(parts)
    same = None if study is None else (study[:, None] == study[None]).astype(float)
    again = (parts.sum(0) == 0) - np.eye(len(y))  # the same configuration on another study
    means = np.array([*[beliefs.log_scale] * count, beliefs.log_variance, beliefs.log_noise, 1.0, 0.0])
    spreads = np.array(
        [
            *[beliefs.scale_spread] * count,
            beliefs.variance_spread,
            beliefs.noise_spread,
            beliefs.shared_spread,
            beliefs.kept_spread,
        ]
    )
    used = count + (2 if same is None else 4)
    means, spreads = means[:used], spreads[:used]

    def loss(theta: Array) -> tuple[float, Array]:
        kernel, slope = _with_slopes(parts, theta[:count])
        variance, noise = np.exp(theta[count]), np.exp(theta[count + 1])
        if same is None:
            mixing: Array | float = variance
        else:
            share = _logistic(theta[count + 2])
            mixing = variance * (share + (1 - share) * same)
        signal = mixing * kernel
        kept = 0.0 if same is None else _logistic(theta[count + 3])
        covariance = signal + kept * noise * again
        covariance[np.diag_indices_from(covariance)] += noise + JITTER
        try:
            root = cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        weights = cho_solve((root, True), y, check_finite=False)
        inverse = cho_solve((root, True), np.eye(len(y)), check_finite=False)
        outer = inverse - np.outer(weights, weights)
        grad = np.empty_like(theta)
        weighted = outer * mixing * slope
        grad[:count] = 0.5 * np.einsum("nm,pnm->p", weighted, parts) * np.exp(-2 * theta[:count])
        grad[count] = 0.5 * (outer * signal).sum()
        of_again = 0.5 * (outer * again).sum() * noise
        grad[count + 1] = 0.5 * np.trace(outer) * noise + kept * of_again
        if same is not None:
            grad[count + 3] = of_again * kept * (1 - kept)
            grad[count + 2] = 0.5 * (outer * kernel * (1 - same)).sum() * variance * share * (1 - share)
        value = 0.5 * y @ weights + np.log(np.diag(root)).sum()
        off = (theta - means) / spreads
        return float(value + 0.5 * off @ off), grad + off / spreads

    first = means.copy()
    if start is not None:
        first[:count] = start.log_scales
        first[count : count + 2] = np.log(start.variance), np.log(start.noise)
    bounds = [(-3.0, 5.0)] * count + [(-6.0, 4.0), (-12.0, 1.0), (-6.0, 6.0), (-6.0, 6.0)]
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds[:used], options={"maxiter": steps}).x
    share, kept = (0.0, 0.0) if same is None else (_logistic(found[count + 2]), _logistic(found[count + 3]))
    return Hyperparameters(found[:count], float(np.exp(found[count])), float(np.exp(found[count + 1])), share, kept)


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))
