"""What is believed of one objective on a new task: from prior studies, from its own trials alone, and both together.

The prior studies are one Gaussian process over configurations and studies: values of two studies correlate by the share
`shared` of what values of one study do (Bonilla et al. 2008, with exchangeable tasks), those of one configuration also
in what no smooth function explains. The new task is one more study
of it, up to its own level and scale, which are integrated out. Beside it stands a process that has never seen a prior
study; the two are weighted by how well each explains the new task's own results, so that misleading priors lose their
weight.

N points of prior studies, n own points, Q points to predict, K studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import logsumexp
from scipy.stats import spearmanr

from metasearch.transfer.gp import JITTER, Beliefs, Hyperparameters, fit, matern, scaled

Array = NDArray[np.float64]
Parameters = NDArray[np.intp]
SCALES = np.linspace(-3, 3, 25)
"""Own scales that are integrated over, in deviations of the logarithm from the typical one."""
EQUAL = 1 - 1e-9
"""The kernel of a point with itself, rounding apart."""
LEVEL_SPREAD, SCALE_SPREAD = 0.2, 0.3
"""What is added to how much levels (in typical scales) and log scales of prior studies differ: there may be few."""

LEAST_CORROBORATED = 1 / 3
"""Of the median study's rank correlation with what the others let expect: what a study must have to be heard."""
DOUBTS = 2.0
"""Standard errors that the mean rank correlation may be larger than it is found to be."""


def deviation_of(values: Array) -> float:
    """Return the standard deviation of values, 1 if they are equal or none; numpy's of equal ones is not always 0."""
    return float(values.std()) if len(values) and values.min() < values.max() else 1.0


@dataclass(frozen=True)
class Location:
    """What is believed of a task's level and scale: a normal level, a log-normal scale."""

    level: float
    level_spread: float
    log_scale: float
    log_scale_spread: float

    @classmethod
    def of(cls, levels: Sequence[float], scales: Sequence[float]) -> Location:
        """Return what the levels and scales of earlier tasks suggest for the next one."""
        logs = np.log(np.asarray(scales))
        typical = float(np.exp(logs.mean()))
        spread = float(np.std(levels)) + LEVEL_SPREAD * typical
        return cls(float(np.mean(levels)), spread, float(logs.mean()), float(np.std(logs)) + SCALE_SPREAD)

    @classmethod
    def of_values(cls, y: Array) -> Location:
        """Return what a task's own values say, where there are no earlier tasks."""
        deviation = deviation_of(y)
        return cls(float(y.mean()) if len(y) else 0.0, deviation, float(np.log(deviation)), 0.3)


@dataclass(frozen=True)
class Pool:
    """The process of the prior studies of one objective.

    x: (N, D). y: (N,), standardized in each study. study: (N,) of 0..K-1. location: of the studies' levels and scales.
    whole: the pool before studies that the others contradict were left out of it, if any were. agreement: what the mean
    size of a study's rank correlation with what the others let expect may at most be; infinite where too few compare.
    """

    x: Array
    y: Array
    study: NDArray[np.intp]
    parameter: Parameters
    hyper: Hyperparameters
    location: Location
    whole: Pool | None = None
    agreement: float = math.inf

    @property
    def worth(self) -> float:
        """The share of the values' variance that studies have in common, noise included, in [0, 1]."""
        h = self.hyper
        return (h.shared * h.variance + h.kept * h.noise) / (h.variance + h.noise)

    @cached_property
    def _scaled(self) -> Array:
        return scaled(self.x, self.parameter, self.hyper.log_scales)

    @cached_property
    def _root(self) -> Array:
        h = self.hyper
        same = self.study[:, None] == self.study[None]
        kernel = matern(self._scaled, self._scaled)
        covariance = h.variance * kernel * np.where(same, 1.0, h.shared) + h.kept * h.noise * (kernel > EQUAL)
        covariance[np.diag_indices_from(covariance)] += (1 - h.kept) * h.noise + JITTER
        return np.asarray(cholesky(covariance, lower=True, check_finite=False))

    @cached_property
    def _whitened(self) -> Array:
        return np.asarray(solve_triangular(self._root, self.y, lower=True, check_finite=False))

    def explained(self, x: Array) -> Array:
        """Return (N, Q): the covariance of the studies' values with the new task's, whitened.

        Its inner products are the covariance of the new task that the studies explain.
        """
        h = self.hyper
        kernel = matern(self._scaled, scaled(x, self.parameter, h.log_scales))
        cross = h.shared * h.variance * kernel + h.kept * h.noise * (kernel > EQUAL)
        return np.asarray(solve_triangular(self._root, cross, lower=True, check_finite=False))

    def mean(self, explained: Array) -> Array:
        """Return (Q,), the standardized values that the studies let expect on a new task."""
        return np.asarray(explained.T @ self._whitened)

    def alone(self, study: int) -> Pool:
        """Return the pool of one of the studies, one that was left out, too."""
        every = self.whole or self
        own = every.study == study
        return replace(self, x=every.x[own], y=every.y[own], study=every.study[own], whole=None)


@dataclass(frozen=True)
class Prediction:
    """Normal beliefs at Q points, on the objective's scale."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Process:
    """A Gaussian process of the new task's values, given its own results; level and scale integrated out.

    x: (n, D). y: (n,). pool: the studies it is one more of, or None. before: the same process with the first of the
    results, of which only the rest is computed.
    """

    x: Array
    y: Array
    parameter: Parameters
    hyper: Hyperparameters
    location: Location
    pool: Pool | None = None
    before: Process | None = None

    @cached_property
    def _explained(self) -> Array:
        if self.pool is None:
            return np.zeros((0, len(self.x)))
        if self.before is None:
            return self.pool.explained(self.x)
        return np.hstack([self.before._explained, self.pool.explained(self.x[len(self.before.x) :])])

    @cached_property
    def _root(self) -> Array:
        known = 0 if self.before is None else len(self.before.x)
        own = scaled(self.x, self.parameter, self.hyper.log_scales)
        rows = self.hyper.variance * matern(own[known:], own) - self._explained[:, known:].T @ self._explained
        rows[:, known:] += (self.hyper.noise + JITTER) * np.eye(len(own) - known)
        if self.before is None:
            return np.asarray(cholesky(rows, lower=True, check_finite=False))
        left = self.before._whiten(rows[:, :known].T).T
        corner = cholesky(rows[:, known:] - left @ left.T, lower=True, check_finite=False)
        return np.block([[self.before._root, np.zeros((known, len(corner)))], [left, corner]])

    def _whiten(self, values: Array) -> Array:
        return np.asarray(solve_triangular(self._root, values, lower=True, check_finite=False))

    @cached_property
    def _solved(self) -> tuple[Array, Array, Array, Array, Array]:
        """Return per scale: log weight, scale, shift of the level, precision of the level, whitened residuals."""
        n, at = len(self.y), self.location
        mean = self.pool.mean(self._explained) if self.pool is not None else np.zeros(n)
        ones, expected, values = self._white_ones, self._whiten(mean), self._whiten(self.y - at.level)
        scales = np.exp(at.log_scale + at.log_scale_spread * SCALES)
        residuals = values[None] / scales[:, None] - expected[None]
        ratio = (scales / at.level_spread) ** 2  # precision of the level before the results, in units of the scale
        precision = ratio + ones @ ones
        shifts = residuals @ ones / precision
        quadratic = (residuals**2).sum(1) - shifts * (residuals @ ones)
        logs = -0.5 * quadratic - 0.5 * np.log(precision / ratio) - n * np.log(scales) - 0.5 * SCALES**2
        return logs, scales, shifts, precision, residuals - shifts[:, None] * ones[None]

    @property
    def evidence(self) -> float:
        """The log density of the own results."""
        return float(logsumexp(self._solved[0]) - np.log(np.diag(self._root)).sum())

    @cached_property
    def _white_ones(self) -> Array:
        return self._whiten(np.ones(len(self.x)))

    def given(self, x: Array, y: Array) -> Process:
        """Return the same process with further results."""
        return replace(self, x=np.vstack([self.x, x]), y=np.concatenate([self.y, y]), before=self)

    def predict(self, x: Array) -> Prediction:
        """Return beliefs at the points x (Q, D), without the noise of a measurement."""
        logs, scales, shifts, precision, residuals = self._solved
        scales_of = self.hyper.log_scales
        covariance = self.hyper.variance * matern(
            scaled(self.x, self.parameter, scales_of), scaled(x, self.parameter, scales_of)
        )
        variance, expected = np.full(len(x), self.hyper.variance), np.zeros(len(x))
        if self.pool is not None:
            explained = self.pool.explained(x)
            covariance -= self._explained.T @ explained
            variance += self.hyper.kept * self.hyper.noise - (explained**2).sum(0)
            expected = self.pool.mean(explained)
        white = self._whiten(covariance)
        left = np.maximum(variance - (white**2).sum(0), 1e-12)
        rest = 1 - white.T @ self._white_ones
        means = self.location.level + scales[:, None] * (expected + shifts[:, None] + residuals @ white)
        squares = scales[:, None] ** 2 * (left + rest**2 / precision[:, None]) + means**2
        weights = np.exp(logs - logsumexp(logs))
        mean = weights @ means
        return Prediction(mean, np.sqrt(np.maximum(weights @ squares - mean**2, 1e-12)))


@dataclass(frozen=True)
class Mixture:
    """One or two beliefs about an objective: with the prior studies, and without. related: the weight of the first."""

    processes: tuple[Process, ...]
    related: float = 1.0

    @property
    def weights(self) -> Array:
        """The weight of each belief."""
        return np.array([self.related, 1 - self.related][: len(self.processes)])

    @property
    def evidence_ratio(self) -> float:
        """The logarithm of how much more probable the results are with the prior studies than without."""
        return self.processes[0].evidence - self.processes[1].evidence

    def predict(self, x: Array) -> tuple[Prediction, ...]:
        """Return what each believes."""
        return tuple(process.predict(x) for process in self.processes)

    def mean(self, x: Array) -> Array:
        """Return (Q,), the expected values."""
        return np.asarray(sum(w * p.mean for w, p in zip(self.weights, self.predict(x), strict=True)))

    def given(self, x: Array, y: Array) -> Mixture:
        """Return the beliefs if further points had given y; the weights stay."""
        processes = [p.given(x, y) for p in self.processes]
        return replace(self, processes=tuple(processes))


def fit_pool(
    studies: Sequence[tuple[Array, Array]], parameter: Parameters, beliefs: Beliefs, *, most: int = 400
) -> Pool:
    """Return the pool of studies (points, values) of one objective, without those that the others contradict.

    most: points that hyperparameters are fitted to.
    """
    x = np.vstack([points for points, _ in studies])
    study = np.repeat(np.arange(len(studies)), [len(values) for _, values in studies])
    levels, scales = (np.array([of(values) for _, values in studies]) for of in (np.mean, deviation_of))
    y = (np.concatenate([values for _, values in studies]) - levels[study]) / scales[study]

    def of_studies(heard: Sequence[int]) -> Pool:
        kept = np.isin(study, heard)
        rows = np.flatnonzero(kept)[np.linspace(0, kept.sum() - 1, min(most, kept.sum())).astype(int)]
        hyper = fit(x[rows], y[rows], parameter, beliefs, study=study[rows])
        location = Location.of([float(levels[k]) for k in heard], [float(scales[k]) for k in heard])
        return Pool(x[kept], y[kept], study[kept], parameter, hyper, location)

    pool = of_studies(range(len(studies)))
    correlations = correlations_of(pool)
    heard = corroborated(correlations)
    chosen = pool if len(heard) == len(studies) else replace(of_studies(heard), whole=pool)
    sizes = np.bincount(study)[heard]
    return replace(chosen, agreement=_at_most(correlations[heard], sizes))


def correlations_of(pool: Pool) -> Array:
    """Return (K,): the rank correlation of each study's values with what the others let expect of them.

    NaN where a study has fewer than three points or nothing varies.
    """
    correlations = []
    for each in np.unique(pool.study):
        own = pool.study == each
        if own.all():
            return np.array([math.nan])
        others = replace(pool, x=pool.x[~own], y=pool.y[~own], study=pool.study[~own])
        expected = others.mean(others.explained(pool.x[own]))
        varies = own.sum() > 2 and np.ptp(expected) > 0 and np.ptp(pool.y[own]) > 0
        correlations.append(float(spearmanr(expected, pool.y[own]).statistic) if varies else math.nan)
    return np.array(correlations)


def corroborated(correlations: Array) -> list[int]:
    """Return which of the studies the other ones predict, all of them where there are fewer than three.

    A study is left out where its values, in the order that the others let expect, have a rank correlation below the
    share LEAST_CORROBORATED of the median study's: among studies that agree, it is about something else.
    """
    found = np.nan_to_num(correlations)
    least = LEAST_CORROBORATED * max(float(np.median(found)), 0.0) if len(found) > 2 else 0.0
    return [k for k, each in enumerate(found) if each >= least or least == 0]


def _at_most(correlations: Array, sizes: NDArray[np.intp]) -> float:
    """Return the mean size of the correlations that are known and DOUBTS standard errors more. sizes: points of each.

    Studies that contradict each other are not without meaning: one of them may be right.
    """
    known = np.isfinite(correlations)
    if known.sum() < 2:
        return math.inf
    error = np.sqrt((1 / (sizes[known] - 1)).sum()) / known.sum()
    return float(np.abs(correlations[known]).mean() + DOUBTS * error)
