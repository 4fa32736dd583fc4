"""The Pareto front, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.search.pareto import Front, dominates, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12)


def test_a_point_dominates_another_only_if_it_is_nowhere_worse_and_somewhere_better() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((0, 3), (1, 2))


@given(POINTS)
def test_the_front_holds_exactly_the_points_that_no_other_dominates(points: list[tuple[int, ...]]) -> None:
    front = Front.of(["minimize"] * 3)
    dropped: set[int] = set()
    for number, point in enumerate(points):
        dropped.update(front.add(number, point))
    expected = {i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)}
    assert set(front.members) == expected
    assert dropped == set(range(len(points))) - expected


@given(POINTS)
def test_maximizing_is_minimizing_the_negative(points: list[tuple[int, ...]]) -> None:
    up, down = Front.of(["maximize", "minimize", "minimize"]), Front.of(["minimize"] * 3)
    for number, (a, b, c) in enumerate(points):
        assert up.add(number, (-a, b, c)) == down.add(number, (a, b, c))


def test_equal_points_share_the_front() -> None:
    front = Front.of(["maximize", "minimize"])
    assert front.add(0, (0.9, 10)) == []
    assert front.add(1, (0.9, 10)) == []
    assert set(front.members) == {0, 1}


def test_the_front_is_ordered_best_first_objective_first() -> None:
    front = Front.of(["maximize", "minimize"])
    for number, values in enumerate([(0.8, 5), (0.9, 10), (0.7, 1)]):
        front.add(number, values)
    assert front.in_order() == [1, 0, 2]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(dimensions: int) -> None:
    draw = np.random.default_rng(dimensions)
    points = draw.random((6, dimensions))
    probes = draw.random((20_000, dimensions))
    share = np.mean([(points <= probe).all(axis=1).any() for probe in probes])
    assert hypervolume([tuple(p) for p in points], (1.0,) * dimensions) == pytest.approx(share, abs=0.015)


def test_points_beyond_the_reference_have_no_volume() -> None:
    assert hypervolume([(2.0, 0.0)], (1.0, 1.0)) == 0
    assert hypervolume([(0.5, 0.5), (2.0, 0.0)], (1.0, 1.0)) == 0.25
