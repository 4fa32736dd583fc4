from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metasearch.transfer.hypervolume import Hypervolume, directions, non_dominated

Array = NDArray[np.float64]


def by_inclusion_and_exclusion(points: Array, reference: Array) -> float:
    """Return the hypervolume, exactly: the volumes of all intersections of boxes, with alternating signs."""
    total = sum(
        (-1) ** (size + 1) * float(np.prod(np.maximum(reference - points[list(chosen)].max(0), 0)))
        for size in range(1, len(points) + 1)
        for chosen in combinations(range(len(points)), size)
    )
    return float(total)


def by_strips(points: Array, reference: Array) -> float:
    """Return the hypervolume in 2 objectives: strips below the staircase."""
    total, height = 0.0, reference[1]
    for first, second in sorted(map(tuple, points)):
        if first < reference[0] and second < height:
            total += (reference[0] - first) * (height - second)
            height = second
    return float(total)


def sampled(seed: int, count: int, objectives: int) -> Array:
    return np.random.default_rng(seed).random((count, objectives)) * 1.2  # some lie beyond the reference


@pytest.mark.parametrize("seed", range(5))
def test_two_objectives_agree_with_strips(seed: int) -> None:
    points = sampled(seed, 12, 2)
    measure = Hypervolume.of(np.ones(2), np.ones(2), count=5000)
    assert measure.volume(points) == pytest.approx(by_strips(points, np.ones(2)), abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_three_objectives_agree_with_inclusion_and_exclusion(seed: int) -> None:
    points = sampled(seed, 7, 3)
    measure = Hypervolume.of(np.ones(3), np.ones(3), count=8000)
    assert measure.volume(points) == pytest.approx(by_inclusion_and_exclusion(points, np.ones(3)), abs=0.01)


def test_one_objective_is_the_gain_over_the_reference() -> None:
    measure = Hypervolume.of(np.array([5.0]), np.array([2.0]))
    assert measure.volume(np.array([[4.0], [3.5], [9.0]])) == pytest.approx(0.75)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_whole_box_is_one_and_nothing_is_zero(objectives: int) -> None:
    reference, scale = np.full(objectives, 3.0), np.full(objectives, 2.0)
    measure = Hypervolume.of(reference, scale, count=4000)
    assert measure.volume((reference - scale)[None]) == pytest.approx(1, abs=0.03)
    assert measure.volume(np.zeros((0, objectives))) == 0
    assert measure.volume(reference[None] + 1) == 0


def test_directions_are_unit_vectors_that_never_change() -> None:
    for objectives in (1, 2, 3, 5):
        rays = directions(objectives, 50)
        assert np.allclose(np.linalg.norm(rays, axis=1), 1)
        assert (rays > 0).all()
        assert np.array_equal(rays, directions(objectives, 50))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 10))
def test_improvement_is_the_difference_of_volumes(seed: int, objectives: int, count: int) -> None:
    measure = Hypervolume.of(np.ones(objectives), np.ones(objectives), count=64)
    points, candidates = sampled(seed, count, objectives), sampled(seed + 1, 6, objectives)
    gains = measure.improvement(candidates[None], measure.best(points))
    for gain, candidate in zip(gains, candidates, strict=True):
        assert gain == pytest.approx(measure.volume(np.vstack([points, candidate])) - measure.volume(points), abs=1e-12)


def test_improvement_is_averaged_over_samples() -> None:
    measure, samples = Hypervolume.of(np.ones(2), np.ones(2)), np.random.default_rng(0).random((9, 4, 2))
    best = measure.best(np.array([[0.5, 0.5]]))
    each = [measure.improvement(sample[None], best) for sample in samples]
    assert np.allclose(measure.improvement(samples, best), np.mean(each, axis=0))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_volume_depends_on_no_order_no_dominated_point_and_no_unit(seed: int, factor: float, shift: float) -> None:
    points = sampled(seed, 9, 3)
    measure = Hypervolume.of(np.ones(3), np.ones(3))
    volume = measure.volume(points)
    assert measure.volume(points[::-1]) == pytest.approx(volume)
    assert measure.volume(points[non_dominated(points)]) == pytest.approx(volume)
    assert measure.volume(np.vstack([points, points[:1] + 0.1])) == pytest.approx(volume)
    factors = np.array([factor, 1.0, 2.0])
    other = Hypervolume.of(factors + shift, factors)
    assert other.volume(points * factors + shift) == pytest.approx(volume, rel=1e-6, abs=1e-6)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_non_dominated_points_are_those_of_the_definition(pairs: list[tuple[int, int]]) -> None:
    def dominates(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    expected = [i for i, pair in enumerate(pairs) if not any(dominates(other, pair) for other in pairs)]
    assert non_dominated(np.array(pairs, float).reshape(-1, 2)).tolist() == expected
