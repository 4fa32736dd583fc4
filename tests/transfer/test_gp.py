from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process.kernels import Matern

from metasearch.transfer import gp

Array = NDArray[np.float64]
BELIEFS = gp.Beliefs(log_scale=-0.5)
PARAMETER = np.array([0, 1, 1, 2])  # the second parameter has two columns


def points(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((count, len(PARAMETER)))


def kernel(x: Array, z: Array, log_scales: Array) -> Array:
    return gp.matern(gp.scaled(x, PARAMETER, log_scales), gp.scaled(z, PARAMETER, log_scales))


def test_kernel_is_the_matern_kernel_of_scikit_learn() -> None:
    x, z, log_scales = points(7), points(5, seed=1), np.array([-1.0, 0.3, 0.8])
    reference = Matern(length_scale=np.exp(log_scales)[PARAMETER], nu=2.5)
    assert np.allclose(kernel(x, z, log_scales), reference(x, z), atol=1e-12)


def test_kernel_of_a_point_with_itself_is_one() -> None:
    x = points(6)
    assert np.allclose(np.diag(kernel(x, x, np.zeros(3))), 1)


def test_squared_differences_add_up_to_squared_distances() -> None:
    x, z = points(4), points(3, seed=1)
    parts = gp.squared_differences(x, z, PARAMETER)
    assert parts.shape == (3, 4, 3)
    assert np.allclose(parts.sum(0), ((x[:, None] - z[None]) ** 2).sum(2))
    assert np.allclose(parts[1], ((x[:, None, 1:3] - z[None, :, 1:3]) ** 2).sum(2))


def loss_of_fit(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> Callable[[Array], tuple[float, Array]]:
    """Return what `fit` minimizes."""
    kept: list[Callable[[Array], tuple[float, Array]]] = []

    def kept_instead(loss: Callable[[Array], tuple[float, Array]], first: Array, **_: object) -> SimpleNamespace:
        kept.append(loss)
        return SimpleNamespace(x=first)

    with monkeypatch.context() as patch:
        patch.setattr(gp, "minimize", kept_instead)
        gp.fit(*args, **kwargs)
    return kept[0]


@pytest.mark.parametrize("studies", [None, 3])
def test_slopes_of_the_loss_are_its_finite_differences(monkeypatch: pytest.MonkeyPatch, studies: int | None) -> None:
    rng = np.random.default_rng(0)
    x, y = points(12), rng.standard_normal(12)
    x[6:9] = x[:3]  # tried again, by the same study or another
    x[10] = x[3]
    study = None if studies is None else np.arange(12) % studies
    loss = loss_of_fit(monkeypatch, x, y, PARAMETER, BELIEFS, study=study)
    for _ in range(3):
        theta = np.array([*rng.uniform(-1.5, 1, 3), *rng.uniform(-1, 1, 1), *rng.uniform(-4, 0, 1)])
        theta = theta if study is None else np.append(theta, rng.uniform(-2, 2, 2))
        numeric = approx_fprime(theta, lambda at: loss(at)[0], 1e-6)
        assert np.allclose(loss(theta)[1], numeric, rtol=1e-3, atol=1e-3)


def test_loss_is_the_negative_log_density_of_values_and_hyperparameters(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, study = points(9), np.random.default_rng(1).standard_normal(9), np.arange(9) % 2
    x[5] = x[2]
    again = np.zeros((9, 9))
    again[2, 5] = again[5, 2] = 1
    loss = loss_of_fit(monkeypatch, x, y, PARAMETER, BELIEFS, study=study)
    means = np.array([*[BELIEFS.log_scale] * 3, BELIEFS.log_variance, BELIEFS.log_noise, 1.0, 0.0])
    spreads = np.array([*[BELIEFS.scale_spread] * 3, BELIEFS.variance_spread, BELIEFS.noise_spread, 1.5, 1.5])

    def density(theta: Array) -> float:
        share = 1 / (1 + np.exp(-theta[5]))
        mixing = np.where(study[:, None] == study[None], 1, share)
        kept = 1 / (1 + np.exp(-theta[6]))
        noise = np.exp(theta[4]) * (np.eye(9) + kept * again)
        covariance = np.exp(theta[3]) * mixing * kernel(x, x, theta[:3]) + noise
        return float(multivariate_normal.logpdf(y, cov=covariance) + norm.logpdf(theta, means, spreads).sum())

    first, second = np.array([-1, 0.5, 0, 0.3, -2, 1.0, 0.5]), np.array([0.2, -0.5, -1, -0.3, -3, -1.0, -0.5])
    assert loss(first)[0] - loss(second)[0] == pytest.approx(density(second) - density(first), rel=1e-5)


def drawn_values(x: Array, log_scales: Array, noise: float, seed: int, study: NDArray[np.intp], share: float) -> Array:
    mixing = np.where(study[:, None] == study[None], 1, share)
    covariance = mixing * kernel(x, x, log_scales) + noise * np.eye(len(x))
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(x)), covariance)


def test_fit_finds_which_parameters_matter_and_how_noisy_values_are() -> None:
    x = points(120)
    y = drawn_values(x, np.array([-1.2, 4.0, 4.0]), 0.01, 2, np.zeros(120, int), 1.0)
    found = gp.fit(x, y, PARAMETER, BELIEFS)
    assert found.log_scales[0] < min(found.log_scales[1:]) - 0.7
    assert 0.002 < found.noise < 0.05
    assert found.shared == 0


def test_fit_finds_how_much_studies_have_in_common() -> None:
    x, study = points(150), np.arange(150) % 3
    log_scales = np.array([-0.5, -0.5, -0.5])
    close, apart = (
        gp.fit(x, drawn_values(x, log_scales, 0.01, 3, study, share), PARAMETER, BELIEFS, study=study).shared
        for share in (0.98, 0.02)
    )
    assert 0 < apart < 0.5 < 0.8 < close < 1


def test_fit_is_never_worse_than_where_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = points(30), np.sin(5 * points(30)[:, 0])
    start = gp.Hyperparameters(np.array([0.5, 0.5, 0.5]), 1.5, 0.05)
    loss = loss_of_fit(monkeypatch, x, y, PARAMETER, BELIEFS)

    def at(hyper: gp.Hyperparameters) -> float:
        return loss(np.array([*hyper.log_scales, np.log(hyper.variance), np.log(hyper.noise)]))[0]

    assert at(gp.fit(x, y, PARAMETER, BELIEFS, start=start)) < at(start)


def test_the_same_point_many_times_can_be_fitted() -> None:
    x = np.repeat(points(1), 20, axis=0)
    found = gp.fit(x, np.random.default_rng(0).standard_normal(20), PARAMETER, BELIEFS)
    assert np.isfinite([*found.log_scales, found.variance, found.noise]).all()
    assert found.noise > 0.1
