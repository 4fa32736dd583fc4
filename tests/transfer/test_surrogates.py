"""The beliefs about an objective against joint normal distributions written out in full."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from metasearch.transfer.gp import Beliefs, Hyperparameters, matern, scaled
from metasearch.transfer.surrogates import (
    SCALES,
    Location,
    Mixture,
    Pool,
    Process,
    correlations_of,
    corroborated,
    deviation_of,
    fit_pool,
)

Array = NDArray[np.float64]
PARAMETER = np.array([0, 1])
HYPER = Hyperparameters(np.array([-1.0, -0.3]), variance=1.3, noise=0.05, shared=0.7)
LOCATION = Location(level=0.4, level_spread=0.8, log_scale=0.3, log_scale_spread=0.4)


def points(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).random((count, 2))


def values(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(count)


def covariance(x: Array, z: Array, hyper: Hyperparameters) -> Array:
    a, b = scaled(x, PARAMETER, hyper.log_scales), scaled(z, PARAMETER, hyper.log_scales)
    return np.asarray(hyper.variance * matern(a, b))


def pool_of_three() -> Pool:
    return Pool(points(18, 1), values(18, 2), np.arange(18) % 3, PARAMETER, HYPER, LOCATION)


def conditioned(mean: Array, joint: Array, known: Array) -> tuple[Array, Array]:
    """Return the mean and covariance of the later variables of a joint normal, given the first ones."""
    n = len(known)
    gain = joint[n:, :n] @ np.linalg.inv(joint[:n, :n])
    return mean[n:] + gain @ (known - mean[:n]), joint[n:, n:] - gain @ joint[:n, n:]


def level_beliefs(at: Location) -> list[tuple[float, float]]:
    """Return the normal beliefs about a task's level: odds and spread of each."""
    return [(1.0, at.level_spread)]


def by_brute_force(process: Process, x: Array) -> tuple[float, Array, Array]:
    """Return the log evidence, and means and deviations at x, by one joint normal per scale.

    Variables: values of the pool's studies, own values, and noiseless values at x.
    """
    h, at, pool = process.hyper, process.location, process.pool
    n, q = len(process.y), len(x)
    everything = np.vstack([process.x, x])
    function, mean = covariance(everything, everything, h), np.zeros(n + q)
    if pool is not None:
        same = np.where(pool.study[:, None] == pool.study[None], 1, h.shared)
        known = same * covariance(pool.x, pool.x, h) + h.noise * np.eye(len(pool.x))
        cross = h.shared * covariance(pool.x, everything, h)
        joint = np.block([[known, cross], [cross.T, function]])
        mean, function = conditioned(np.zeros(len(joint)), joint, pool.y)
    function = function + np.diag([h.noise] * n + [0] * q)
    logs, means, squares = [], [], []
    for (odds, spread), deviation in product(level_beliefs(at), SCALES):
        scale = np.exp(at.log_scale + at.log_scale_spread * deviation)
        task = scale**2 * function + spread**2
        task_mean = at.level + scale * mean
        own = multivariate_normal(task_mean[:n], task[:n, :n])
        logs.append(np.log(odds) + own.logpdf(process.y) - 0.5 * deviation**2)
        left, rest = conditioned(task_mean, task, process.y)
        means.append(left)
        squares.append(np.diag(rest) + left**2)
    total = logsumexp(logs)
    weights = np.exp(np.array(logs) - total)
    expected = weights @ np.array(means)
    return float(total), expected, np.sqrt(weights @ np.array(squares) - expected**2)


@pytest.mark.parametrize("pool", [None, pool_of_three()], ids=["alone", "pool"])
def test_predictions_are_those_of_the_joint_normal(pool: Pool | None) -> None:
    process = Process(points(7, 3), values(7, 4) + 1, PARAMETER, HYPER, LOCATION, pool)
    x = points(6, 5)
    _, mean, deviation = by_brute_force(process, x)
    found = process.predict(x)
    assert np.allclose(found.mean, mean, atol=1e-4)
    assert np.allclose(found.deviation, deviation, rtol=1e-3)


@pytest.mark.parametrize("pool", [None, pool_of_three()], ids=["alone", "pool"])
def test_evidence_is_that_of_the_joint_normal_up_to_a_constant(pool: Pool | None) -> None:
    def difference(y: Array) -> float:
        process = Process(points(7, 3), y, PARAMETER, HYPER, LOCATION, pool)
        return process.evidence - by_brute_force(process, points(1, 0))[0]

    # what all processes of so many values have in common: their weights are ratios
    constant = 7 / 2 * np.log(2 * np.pi)
    for seed in range(3):
        assert difference(values(7, seed)) == pytest.approx(constant, abs=1e-4)


def test_evidence_of_a_pool_and_of_a_process_alone_are_on_one_scale() -> None:
    x, y = points(7, 3), values(7, 4)
    alone, pooled = (Process(x, y, PARAMETER, HYPER, LOCATION, pool) for pool in (None, pool_of_three()))
    exact = by_brute_force(pooled, points(1, 0))[0] - by_brute_force(alone, points(1, 0))[0]
    assert pooled.evidence - alone.evidence == pytest.approx(exact, abs=1e-4)


def test_a_process_of_known_level_and_scale_agrees_with_scikit_learn() -> None:
    known = Location(level=0.0, level_spread=1e-4, log_scale=0.0, log_scale_spread=1e-6)
    x, y, at = points(12, 3), values(12, 4), points(5, 5)
    found = Process(x, y, PARAMETER, HYPER, known).predict(at)
    kernel = ConstantKernel(HYPER.variance) * Matern(np.exp(HYPER.log_scales), nu=2.5)
    reference = GaussianProcessRegressor(kernel + WhiteKernel(HYPER.noise), optimizer=None, alpha=1e-8).fit(x, y)
    mean, deviation = reference.predict(at, return_std=True)
    assert np.allclose(found.mean, mean, atol=1e-4)
    assert np.allclose(found.deviation**2 + HYPER.noise, deviation**2, atol=1e-4)  # scikit-learn adds the noise


def test_predictions_before_any_result_are_those_of_the_pool() -> None:
    pool, x = pool_of_three(), points(6, 5)
    found = Process(np.zeros((0, 2)), np.zeros(0), PARAMETER, HYPER, LOCATION, pool).predict(x)
    typical = pool.mean(pool.explained(x))
    assert np.corrcoef(found.mean, typical)[0, 1] > 0.999
    assert (found.deviation > LOCATION.level_spread).all()


def test_beliefs_do_not_depend_on_the_unit_of_the_values() -> None:
    x, y, at = points(9, 3), values(9, 4), points(4, 5)
    first = Process(x, y, PARAMETER, HYPER, Location.of_values(y)).predict(at)
    second = Process(x, 1000 * y + 7, PARAMETER, HYPER, Location.of_values(1000 * y + 7)).predict(at)
    assert np.allclose(second.mean, 1000 * first.mean + 7, rtol=1e-6)
    assert np.allclose(second.deviation, 1000 * first.deviation, rtol=1e-6)


def test_a_pool_explains_nothing_if_studies_have_nothing_in_common() -> None:
    hyper = Hyperparameters(HYPER.log_scales, HYPER.variance, HYPER.noise, shared=0.0)
    pool = Pool(points(18, 1), values(18, 2), np.arange(18) % 3, PARAMETER, hyper, LOCATION)
    x, y, at = points(7, 3), values(7, 4), points(5, 5)
    with_pool, alone = (Process(x, y, PARAMETER, hyper, LOCATION, p) for p in (pool, None))
    assert with_pool.evidence == pytest.approx(alone.evidence)
    assert np.allclose(with_pool.predict(at).mean, alone.predict(at).mean)


def test_a_further_result_is_as_if_it_had_been_there() -> None:
    x, y, at = points(8, 3), values(8, 4), points(5, 5)
    whole = Process(x, y, PARAMETER, HYPER, LOCATION, pool_of_three())
    part = Process(x[:5], y[:5], PARAMETER, HYPER, LOCATION, pool_of_three())
    further = Mixture((part,)).given(x[5:], y[5:])
    assert np.allclose(further.mean(at), whole.predict(at).mean)
    assert np.array_equal(further.weights, np.ones(1))


def test_the_mean_of_a_mixture_is_weighted() -> None:
    x, y, at = points(8, 3), values(8, 4), points(5, 5)
    processes = tuple(Process(x, y, PARAMETER, HYPER, LOCATION, pool) for pool in (None, pool_of_three()))
    mixed = Mixture(processes, 0.25).mean(at)
    assert np.allclose(mixed, 0.25 * processes[0].predict(at).mean + 0.75 * processes[1].predict(at).mean)


def test_a_pool_is_fitted_to_values_without_their_study_s_level_and_scale() -> None:
    x = [points(30, seed) for seed in range(3)]
    shape = [np.sin(6 * part[:, 0]) for part in x]
    pool = fit_pool(
        [(x[0], shape[0]), (x[1], 100 + 5 * shape[1]), (x[2], -3 + 0.1 * shape[2])], PARAMETER, Beliefs(log_scale=-0.5)
    )
    for study in range(3):
        own = pool.y[pool.study == study]
        assert own.mean() == pytest.approx(0, abs=1e-9)
        assert own.std() == pytest.approx(1)
    assert pool.hyper.shared > 0.8
    expected = pool.mean(pool.explained(points(50, 9)))
    assert np.corrcoef(expected, np.sin(6 * points(50, 9)[:, 0]))[0, 1] > 0.98


def studies_of_one_function(count: int) -> list[tuple[Array, Array]]:
    return [(x, 3 * x[:, 0] + np.sin(5 * x[:, 1])) for x in (points(40, seed) for seed in range(count))]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_study_that_the_others_contradict_is_left_out_of_their_pool(count: int) -> None:
    good, beliefs = studies_of_one_function(count), Beliefs(log_scale=0.0)
    x = points(40, 99)
    for bad in (np.cos(9 * x[:, 1]) - x[:, 0] * x[:, 1], values(40, 4)):
        pool = fit_pool([*good, (x, bad)], PARAMETER, beliefs)
        assert set(pool.study) == set(range(count))
        clean = fit_pool(good, PARAMETER, beliefs)
        assert pool.hyper.shared == pytest.approx(clean.hyper.shared)
        z = points(9, 77)
        np.testing.assert_allclose(pool.mean(pool.explained(z)), clean.mean(clean.explained(z)))
        assert len(pool.alone(count).y) == 40  # it can be shown still
    assert set(clean.study) == set(range(count))


def test_of_two_studies_or_of_several_without_anything_in_common_none_is_left_out() -> None:
    beliefs = Beliefs(log_scale=0.0)
    good = studies_of_one_function(1)
    assert set(fit_pool([*good, (good[0][0], -good[0][1])], PARAMETER, beliefs).study) == {0, 1}
    noise = [(points(20, seed), values(20, seed + 50)) for seed in range(4)]
    assert len(corroborated(correlations_of(fit_pool(noise, PARAMETER, beliefs)))) >= 2


def test_studies_of_one_function_may_agree_and_many_of_noise_may_not() -> None:
    beliefs = Beliefs(log_scale=0.0)
    one = fit_pool(studies_of_one_function(1), PARAMETER, beliefs)
    few = fit_pool([(points(4, seed), values(4, seed + 50)) for seed in range(2)], PARAMETER, beliefs)
    many = fit_pool([(points(60, seed), values(60, seed + 50)) for seed in range(5)], PARAMETER, beliefs)
    alike = fit_pool(studies_of_one_function(3), PARAMETER, beliefs)
    assert one.agreement == np.inf  # nothing to compare it with
    assert few.agreement > 0.4  # two of four points each leave much possible
    assert many.agreement < 0.3
    assert alike.agreement > 0.9


def test_correlations_are_those_with_what_the_other_studies_let_expect() -> None:
    beliefs = Beliefs(log_scale=0.0)
    good = studies_of_one_function(2)
    x, y = good[1]
    opposite = fit_pool([good[0], (x, -y)], PARAMETER, beliefs)
    assert correlations_of(fit_pool(good, PARAMETER, beliefs)).min() > 0.9
    assert correlations_of(opposite).max() < -0.5
    assert opposite.agreement > 0.5  # one of them may be right
    assert np.isnan(correlations_of(fit_pool(good[:1], PARAMETER, beliefs))).all()


def test_location_covers_the_levels_and_scales_of_earlier_tasks() -> None:
    found = Location.of([0.0, 2.0], [1.0, 4.0])
    assert found.level == pytest.approx(1)
    assert found.log_scale == pytest.approx(np.log(2))
    assert found.level_spread >= 1
    assert found.log_scale_spread >= np.log(2)


def test_the_deviation_of_equal_values_or_of_none_is_one() -> None:
    assert [deviation_of(np.full(count, 0.1)) for count in (0, 1, 3, 10)] == [1, 1, 1, 1]
    assert deviation_of(np.array([0.0, 2.0])) == 1
    assert deviation_of(np.array([0.0, 4.0])) == 2
