from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kurtosis, skew

from metasearch.transfer.warp import SOFTNESSES, Warp, choose_warp

Array = NDArray[np.float64]


@settings(max_examples=50)
@given(st.sampled_from(SOFTNESSES), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_a_warp_is_monotone_and_its_inverse_undoes_it(softness: float, low: float, spread: float) -> None:
    warp = Warp(low, spread, softness)
    y = low + spread * np.linspace(-3, 6, 50)  # below the smallest value seen, too
    assert (np.diff(warp(y)) > 0).all()
    assert np.allclose(warp.inverse(warp(y)), y, atol=1e-9 * (abs(low) + spread))


@pytest.mark.parametrize("softness", SOFTNESSES)
def test_log_slope_is_the_logarithm_of_the_difference_quotient(softness: float) -> None:
    warp, y, step = Warp(2.0, 0.5, softness), np.linspace(1.9, 6, 20), 1e-6
    quotient = (warp(y + step) - warp(y - step)) / (2 * step)
    assert np.allclose(warp.log_slope(y), np.log(quotient * warp.spread), atol=1e-4)


def test_normal_values_keep_their_shape() -> None:
    rng = np.random.default_rng(0)
    studies = [mean + rng.standard_normal(200) for mean in (0, 3, 5)]
    warp = choose_warp(studies)
    assert all(np.corrcoef(warp(y), y)[0, 1] > 0.98 for y in studies)


def test_a_long_tail_becomes_nearly_normal() -> None:
    y = np.exp(1.5 * np.random.default_rng(0).standard_normal(400))
    warped = choose_warp([y])(y)
    assert abs(skew(warped)) < 1 < 3 < skew(y)
    assert abs(kurtosis(warped)) < 2 < 10 < kurtosis(y)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.booleans())
def test_warped_values_do_not_depend_on_the_unit(seed: int, factor: float, shift: float, tail: bool) -> None:
    y = np.random.default_rng(seed).standard_normal((2, 30))
    y = np.exp(1.5 * y) if tail else y
    shift *= factor  # in the new unit, so that no digits are lost
    other = y * factor + shift
    assert np.allclose(choose_warp(list(other))(other), choose_warp(list(y))(y), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_equal_values_are_left_as_they_are(value: float) -> None:
    # 0.1 has no exact mean: numpy's deviation of ten of it is 1e-17, no unit to measure in
    warp = choose_warp([np.full(10, value), np.full(3, value)])
    assert np.allclose(warp(np.array([value, value + 2])), [0, 2])


def test_no_values_are_left_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warp = choose_warp([np.zeros(0)])
    assert warp(np.array([2.0])) == 2
