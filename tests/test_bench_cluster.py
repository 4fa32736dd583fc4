"""The figure of the cluster benchmark, on spans whose share is known; a real search: `tests/test_on_a_cluster.py`."""

from __future__ import annotations

import pytest

from tests.bench.cluster import Span, busy_share, timeline

A, B = ("a", 1), ("b", 2)


def test_slots_that_never_wait_are_all_busy_and_the_time_after_the_last_start_does_not_count() -> None:
    spans = [Span(0, A, 0, 10, 10), Span(1, B, 0, 15, 15), Span(2, A, 10, 30, 20), Span(3, B, 15, 40, 25)]
    assert busy_share(spans, slots=2) == pytest.approx(1.0)
    assert busy_share(spans, slots=4) == pytest.approx(0.5)  # two of four never worked


def test_gaps_between_trials_and_on_the_way_to_the_driver_count_as_idle() -> None:
    gap = [Span(0, A, 0, 8, 8), Span(1, A, 10, 20, 10)]
    assert busy_share(gap, slots=1) == pytest.approx(0.8)
    way = [Span(0, A, 0, 10, 7), Span(1, A, 10, 20, 10)]
    assert busy_share(way, slots=1) == pytest.approx(0.7)


def test_the_timeline_has_a_line_a_worker_and_dots_where_it_waits() -> None:
    first, second, scale = timeline([Span(0, A, 0, 5, 5), Span(1, A, 5, 10, 5), Span(2, B, 5, 10, 5)], columns=10)
    assert first.endswith("#####=====")
    assert second.endswith(".....#####")
    assert scale.endswith("1.0 s")
