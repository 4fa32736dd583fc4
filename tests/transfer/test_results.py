from __future__ import annotations

import math

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from metasearch.transfer.encoding import Encoding
from metasearch.transfer.results import Results

X = FloatDistribution(0, 1)
ENCODING = Encoding.of({"x": X})
TWO = np.array([1.0, -1.0])


def trial(
    number: int, x: float, values: list[float] | None = None, state: TrialState = TrialState.COMPLETE, **more: object
) -> FrozenTrial:
    options = {"params": {"x": x}, "distributions": {"x": X}, "values": values, "state": state} | more
    made = create_trial(**options)  # type: ignore[arg-type]  # its arguments come as one dict
    made.number = number
    return made


def test_values_are_to_be_minimized() -> None:
    results = Results.of([trial(0, 0.1, [1.0, 2.0]), trial(1, 0.2, [3.0, 4.0])], ENCODING, TWO, {})
    assert results.values.tolist() == [[1, -2], [3, -4]]
    assert results.configurations == [{"x": 0.1}, {"x": 0.2}]
    assert results.measured.all()
    assert results.feasible.all()


def test_a_failed_or_infinite_trial_counts_as_the_worst_of_the_complete_ones() -> None:
    trials = [
        trial(0, 0.1, [1.0, 2.0]),
        trial(1, 0.2, [3.0, 4.0]),
        trial(2, 0.3, state=TrialState.FAIL),
        trial(3, 0.4, [math.inf, 9.0]),
    ]
    results = Results.of(trials, ENCODING, TWO, {})
    assert results.values.tolist() == [[1, -2], [3, -4], [3, -2], [3, -2]]
    assert results.measured.tolist() == results.feasible.tolist() == [True, True, False, False]


def test_failures_without_any_result_have_no_values_but_are_taken() -> None:
    results = Results.of([trial(0, 0.3, state=TrialState.FAIL)], ENCODING, TWO, {})
    assert results.values.shape == (0, 2)
    assert results.taken.tolist() == [[0.3]]


def test_a_trial_stopped_early_counts_by_its_last_intermediate_value() -> None:
    stopped = trial(0, 0.1, state=TrialState.PRUNED, intermediate_values={1: 0.5, 7: 0.4, 3: 0.9})
    results = Results.of([stopped, trial(1, 0.2, [0.2])], ENCODING, np.ones(1), {})
    assert results.values.tolist() == [[0.4], [0.2]]
    assert results.measured.all()


def test_a_trial_is_feasible_if_it_keeps_every_constraint_and_an_unknown_one_is_nan() -> None:
    trials = [
        trial(0, 0.1, [1.0], constraints={"bytes": -1.0, "macs": 0.0}),
        trial(1, 0.2, [1.0], constraints={"bytes": 0.5, "macs": -2.0}),
        trial(2, 0.3, [1.0]),
        trial(3, 0.4, state=TrialState.FAIL),
    ]
    results = Results.of(trials, ENCODING, np.ones(1), {})
    assert results.feasible.tolist() == [True, False, True, False]
    assert np.array_equal(results.violations["bytes"], [-1, 0.5, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(results.violations["macs"], [0, -2, np.nan, np.nan], equal_nan=True)


def test_a_running_trial_has_what_it_was_given_and_else_what_is_planned_for_it() -> None:
    study = optuna.create_study()
    first, second = study.ask(), study.ask()
    first.suggest_float("x", 0, 1)
    plans = {first.number: {"x": -1.0}, second.number: {"x": 0.75}, 99: {"x": 0.5}}
    results = Results.of(study.trials, ENCODING, np.ones(1), plans)
    assert results.running == [{"x": first.params["x"]}, {"x": 0.75}]
    assert results.taken.tolist() == [[first.params["x"]], [0.75]]
