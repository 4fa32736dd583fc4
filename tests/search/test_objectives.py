"""Objectives, constraints and quantities."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import InputError
from metasearch.records import METRICS
from metasearch.search.objectives import (
    METRIC_UNITS,
    OPERATORS,
    STEERING_METRICS,
    Constraint,
    Objective,
    parse_objectives,
    quantity_in,
)


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        ("B", "25kB", 25_000),
        ("B", "1.5 MB", 1_500_000),
        ("B", "2GB", 2e9),
        ("B", "100B", 100),
        ("", "3k", 3000),
        ("", "10M", 1e7),
        ("", "1G", 1e9),
        ("%", "90%", 0.9),
        (None, "90%", 0.9),
        ("ms", "3ms", 3),
        ("s", "3ms", 0.003),
        ("s", "2s", 2),
        ("ms", "2m", 120_000),
        ("", "1e-3", 0.001),
        (None, ".5", 0.5),
        (None, "-4", -4),
    ],
)
def test_quantity_is_in_the_unit_asked_for(unit: str | None, text: str, value: float) -> None:
    assert quantity_in(unit, text, name="it", place="quantity") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("25KB", "quantity: has an unknown unit (did you mean kB?), got 'KB'"),
        (
            "25 lightyears",
            "quantity: has an unknown unit (known: k, M, G, B, kB, MB, GB, ms, s, m, h, %), got 'lightyears'",
        ),
        ("small", "quantity: must be a number and a unit, such as 25kB, got 'small'"),
        ("", "quantity: must be a number and a unit, such as 25kB, got ''"),
        ("1e999", "quantity: must be a finite number, got '1e999'"),
    ],
)
def test_bad_quantity_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantity_in(None, text, name="it", place="quantity")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("model_bytes<=25kB", Constraint("model_bytes", "<=", 25_000)),
        ("  model_bytes  <=  25  ", Constraint("model_bytes", "<=", 25)),
        ("model_bytes < 25k", Constraint("model_bytes", "<", 25_000)),
        ("macs <= 5M", Constraint("macs", "<=", 5e6)),
        ("val_accuracy >= 95%", Constraint("val_accuracy", ">=", 0.95)),
        ("val_accuracy > 0.95", Constraint("val_accuracy", ">", 0.95)),
        ("latency_ms <= 2ms", Constraint("latency_ms", "<=", 2)),
        ("latency_ms <= 0.5s", Constraint("latency_ms", "<=", 500)),
        ("latency_ms <= 3", Constraint("latency_ms", "<=", 3)),
        ("train_seconds <= 500ms", Constraint("train_seconds", "<=", 0.5)),
    ],
)
def test_constraint_is_read_in_the_unit_of_its_metric(text: str, constraint: Constraint) -> None:
    assert Constraint.parse(text) == constraint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_byte <= 1kB", "constraint: is no metric (did you mean model_bytes?), got 'model_byte'"),
        ("model_bytes == 1kB", "constraint: must use one of <= >= < >, got =="),
        ("model_bytes => 1kB", "constraint: must use one of <= >= < >, got =>"),
        ("model_bytes <= 1KB", "constraint: has an unknown unit (did you mean kB?), got 'KB'"),
        ("model_bytes <=", "constraint: must be a number and a unit, such as 25kB, got ''"),
        ("model_bytes <= 3ms", "constraint: model_bytes cannot be compared with a number of time, got '3ms'"),
        ("val_accuracy >= 9kB", "constraint: val_accuracy cannot be compared with a number of bytes, got '9kB'"),
        ("macs <= 50%", "constraint: macs cannot be compared with a number of share, got '50%'"),
        ("val_accuracy >= 90", "constraint: val_accuracy must be in [0, 1] or a percentage, got '90'"),
        ("small", "constraint: must look like model_bytes <= 25kB, got 'small'"),
        (
            "test_accuracy >= 0.9",
            "constraint: cannot steer a search: the test split is read once, at the end, got 'test_accuracy'",
        ),
    ],
)
def test_bad_constraint_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Constraint.parse(text)
    assert str(caught.value) == message


def constraints() -> st.SearchStrategy[Constraint]:
    def bounded(metric: str) -> st.SearchStrategy[Constraint]:
        high = 1e18 if metric in METRIC_UNITS else 1.0
        bounds = st.floats(min_value=0, max_value=high, allow_subnormal=False)
        return st.builds(Constraint, st.just(metric), st.sampled_from(OPERATORS), bounds)

    return st.sampled_from(STEERING_METRICS).flatmap(bounded)


@given(constraints())
def test_constraint_survives_its_own_text(constraint: Constraint) -> None:
    assert Constraint.parse(str(constraint)) == constraint


def test_constraint_is_shown_plainly() -> None:
    assert str(Constraint.parse("model_bytes<=25kB")) == "model_bytes <= 25000"


@given(constraints(), st.floats(min_value=0, max_value=1e18))
def test_violation_is_positive_exactly_where_the_limit_is_missed(constraint: Constraint, value: float) -> None:
    kept = {
        "<=": value <= constraint.bound,
        ">=": value >= constraint.bound,
        "<": value < constraint.bound,
        ">": value > constraint.bound,
    }
    assert (constraint.violation({constraint.metric: value}) <= 0) is kept[constraint.operator]


def test_violation_says_how_far_in_the_unit_of_the_metric() -> None:
    assert Constraint.parse("model_bytes <= 25kB").violation({"model_bytes": 26_000}) == 1000
    assert Constraint.parse("val_accuracy >= 90%").violation({"val_accuracy": 0.5}) == pytest.approx(0.4)
    assert Constraint.parse("macs <= 5M").violation({"macs": 4_000_000}) == -1_000_000


def test_a_metric_that_is_no_number_violates_every_limit() -> None:
    assert Constraint.parse("val_ece <= 0.1").violation({"val_ece": math.nan}) == math.inf


def test_objectives_know_their_direction_and_keep_their_order() -> None:
    assert parse_objectives(["model_bytes", "val_accuracy"]) == (
        Objective("model_bytes", "minimize"),
        Objective("val_accuracy", "maximize"),
    )


def test_every_metric_but_those_of_the_test_split_can_be_an_objective() -> None:
    assert [objective.metric for objective in parse_objectives(STEERING_METRICS)] == list(STEERING_METRICS)
    assert set(METRICS) - set(STEERING_METRICS) == {"test_accuracy"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "objectives: must name at least one metric"),
        (["val_acuracy"], "objectives[0]: is no metric (did you mean val_accuracy?), got 'val_acuracy'"),
        (["macs", "macs"], "objectives[1]: is named twice, got 'macs'"),
        (
            ["macs", "test_accuracy"],
            "objectives[1]: cannot steer a search: the test split is read once, at the end, got 'test_accuracy'",
        ),
    ],
)
def test_bad_objectives_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_objectives(names)
    assert str(caught.value) == message
