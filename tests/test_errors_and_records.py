from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import (
    InfeasibleError,
    InputError,
    MetasearchError,
    NotFoundError,
    StorageError,
    TrialFailure,
)
from metasearch.records import METRICS, EpochReport, StageResult, TrialResult

FINITE = st.floats(allow_nan=False, allow_infinity=False)
METRIC_VALUES = st.dictionaries(st.sampled_from(sorted(METRICS)), FINITE | st.integers(0, 2**60))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
EPOCHS = st.builds(
    EpochReport,
    stage=st.text(),
    epoch=st.integers(1, 1000),
    epochs=st.integers(1, 1000),
    train_loss=FINITE,
    val_accuracy=FINITE,
    macs=st.integers(0, 2**60),
    learning_rate=FINITE,
    temperature=FINITE,
    seconds=FINITE,
)
STAGES = st.builds(StageResult, stage=st.text(), seconds=FINITE, metrics=METRIC_VALUES)
RESULTS = st.builds(
    TrialResult,
    config=st.dictionaries(st.text(), st.booleans() | st.integers() | FINITE | st.text()),
    seed=st.integers(0, 2**63 - 1),
    metrics=METRIC_VALUES,
    stages=st.lists(STAGES, max_size=3).map(tuple),
    curve=st.lists(EPOCHS, max_size=3).map(tuple),
    details=st.dictionaries(st.text(), JSON_VALUES, max_size=3),
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MetasearchError("the search failed"), 1),
        (InputError("place", "rule"), 2),
        (NotFoundError("no such study"), 3),
        (InfeasibleError("nothing fits"), 4),
        (StorageError("locked"), 5),
        (TrialFailure("diverged", "loss nan"), 1),
    ],
)
def test_every_error_has_the_exit_code_of_the_design_and_one_root(error: MetasearchError, code: int) -> None:
    assert error.exit_code == code
    assert isinstance(error, MetasearchError)


def test_an_input_error_names_place_rule_and_value_in_one_line() -> None:
    assert str(InputError("temperature.low", "must be below high", "low=8, high=4")) == (
        "temperature.low: must be below high, got low=8, high=4"
    )
    assert str(InputError("optimizer", "must be one of sgd, adamw", "adam")) == (
        "optimizer: must be one of sgd, adamw, got 'adam'"
    )
    assert str(InputError("alpha", "has no value")) == "alpha: has no value"


def test_an_input_error_can_be_caught_as_value_error() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        raise InputError("trials", "must be positive", 0)


@pytest.mark.parametrize("value", [None, 3, "low=8", (1, 2)])
def test_an_input_error_survives_pickling(value: object) -> None:
    error = InputError("place", "rule", value)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert (str(copy), copy.place, copy.rule, copy.value) == (str(error), "place", "rule", value)


def test_a_trial_failure_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(TrialFailure("diverged", "loss nan")))
    assert type(copy) is TrialFailure
    assert (str(copy), copy.reason, copy.message) == ("diverged: loss nan", "diverged", "loss nan")


@given(result=RESULTS)
def test_a_trial_result_survives_json(result: TrialResult) -> None:
    text = result.to_json()
    assert "\n" not in text
    assert TrialResult.from_json(text) == result


@given(result=RESULTS)
def test_the_json_of_a_trial_result_is_standard_and_canonical(result: TrialResult) -> None:
    text = result.to_json()

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)
    assert TrialResult.from_json(text).to_json() == text


def test_every_metric_has_a_direction() -> None:
    assert set(METRICS.values()) == {"maximize", "minimize"}
