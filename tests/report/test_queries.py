"""Fronts, feasibility, order, comparisons and importance: against Optuna's own answers and by brute force."""

from __future__ import annotations

import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import metasearch
from metasearch.errors import InfeasibleError, InputError, NotFoundError, StorageError
from metasearch.records import TrialResult
from metasearch.report.comparison import compare
from metasearch.report.database import Database, open_database
from metasearch.report.finals import controls_frame
from metasearch.report.fronts import front_rows
from metasearch.report.importance import importances
from metasearch.report.queries import best, trials_table
from metasearch.report.studies import studies_records
from metasearch.report.where import parse_where
from metasearch.search.pareto import dominates
from metasearch.search.store import CONTROLS, RESULT, ROLE, create_study, load_study, open_storage
from tests.bench.large_study import make_study
from tests.fakes import describe, finished_study, new_storage


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """A study `ten` of nine complete trials, each on the front, and a failed one; for tests that only read."""
    folder = tmp_path_factory.mktemp("ten")
    url = f"sqlite:///{folder / 'studies.db'}"
    finished_study(url, "ten", folder)
    return open_database(url)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """The study of the benchmark, of 400 trials."""
    url = f"sqlite:///{tmp_path_factory.mktemp('large') / 'studies.db'}"
    make_study(url, trials=400)
    return open_database(url)


def theirs(url: str, *, trials: int = 40, name: str = "theirs", seed: int = 0) -> optuna.Study:
    """Make a study by Optuna alone, with two objectives and a constraint."""
    study = optuna.create_study(storage=new_storage(url), study_name=name, directions=["minimize", "maximize"])
    rng = np.random.default_rng(seed)
    searched = {
        "x": FloatDistribution(0, 1),
        "y": IntDistribution(0, 5),
        "idle": CategoricalDistribution(["a", "b"]),
    }
    for _ in range(trials):
        x, y = float(rng.random()), int(rng.integers(6))
        study.add_trial(
            optuna.trial.create_trial(
                values=[x + 0.1 * y, round(x * 4) / 4 + float(rng.random())],
                params={"x": x, "y": y, "idle": "ab"[int(rng.integers(2))]},
                distributions=searched,
                constraints={"sum": x + y - 4},
            )
        )
    return study


@pytest.fixture(scope="module")
def alone_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('alone') / 'studies.db'}"


@pytest.fixture(scope="module")
def alone(alone_url: str) -> optuna.Study:
    return theirs(alone_url)


points = st.integers(1, 3).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=25)
)


@given(points)
def test_the_front_is_what_no_other_dominates(costs: list[list[int]]) -> None:
    found = front_rows(np.array(costs, float))
    expected = {i for i, a in enumerate(costs) if not any(dominates(b, a) for b in costs)}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [costs[row] for row in found] == sorted(costs[row] for row in found)


def test_rows_without_all_objectives_are_on_no_front() -> None:
    assert front_rows(np.array([[1.0, np.nan], [2.0, 3.0]])) == [1]
    assert front_rows(np.empty((0, 2))) == []


def test_the_front_is_optunas_best_trials_with_its_constraints(url: str, request: pytest.FixtureRequest) -> None:
    name = f"theirs-{request.node.name}"
    study = theirs(url, name=name)
    found = best(open_database(url), name)
    assert set(found.table.cells["number"]) == {trial.number for trial in study.best_trials}
    feasible = [t for t in study.trials if all(v <= 0 for v in t.constraints.values())]
    assert (found.complete, found.feasible) == (40, len(feasible))
    assert 0 < len(feasible) < 40


def test_the_front_among_trials_of_a_condition_is_that_of_a_search_over_the_rows(large: Database) -> None:
    frame = trials_table(large, "large").frame()
    kept = frame[(frame["state"] == "COMPLETE") & (frame["student.width"] < 16) & (frame["distill.seconds"] < 1.5)]
    costs = np.column_stack([-kept["val_accuracy"], kept["model_bytes"]])
    expected = {
        int(number)
        for number, cost in zip(kept["number"], costs, strict=True)
        if not np.any(np.all(costs <= cost, axis=1) & np.any(costs < cost, axis=1))
    }
    found = best(large, "large", where=parse_where("student.width < 16 and distill.seconds < 1.5s"))
    assert set(found.table.cells["number"]) == expected
    assert (found.complete, found.feasible) == (392, len(kept))


@pytest.mark.parametrize(
    "text",
    [
        "model_bytes < 30kB",
        "student.width < 12 and model_bytes < 60kB",
        "model_bytes < 60kB or student.width > 20",
        "user.note = 'batch 0'",
        "seconds > 1 and node = 'node-1'",
        "epochs_run = 10 and number < 200",
        "optimizer = 'sgd' and started < '2026-01-02 03:10'",
        "loss = 'kd'",
        "failure = 'diverged' or number = 3",
        "quantize.val_accuracy >= 50%",
    ],
)
def test_every_feasible_trial_is_what_the_whole_frame_keeps(large: Database, text: str) -> None:
    everything = best(large, "large", where=parse_where(text), pareto=False).table.frame()
    listed = trials_table(large, "large", where=parse_where(text)).frame()
    complete = listed[listed["state"] == "COMPLETE"]
    assert len(everything) > 0
    assert sorted(everything["number"]) == complete["number"].tolist()
    same = everything.sort_values("number").reset_index(drop=True)
    shared = [column for column in same if column in complete and complete[column].notna().any()]
    pd.testing.assert_frame_equal(
        same[shared], complete.reset_index(drop=True)[shared], check_dtype=False, check_column_type=False
    )


def test_the_studys_own_constraints_hold_in_every_answer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    finished_study(url, "limited", tmp_path, constraints=["macs<=50k"])
    database = open_database(url)
    found = best(database, "limited")
    assert (found.complete, found.feasible, len(found.table)) == (9, 5, 5)
    assert max(found.table.cells["macs"]) == 50_000
    assert trials_table(database, "limited").frame()["feasible"].tolist() == [True] * 5 + [False] * 5
    (described,) = studies_records(database)
    assert (described["finished"], described["complete"], described["feasible"]) == (10, 9, 5)
    assert metasearch.best("limited", pareto=False, storage=url)["macs"].max() == 50_000


def test_where_nothing_is_feasible_the_nearest_are_named_with_what_they_miss(ten: Database) -> None:
    with pytest.raises(InfeasibleError) as caught:
        best(ten, "ten", where=parse_where("model_bytes <= 500 and val_accuracy >= 60%"))
    text = str(caught.value)
    assert text.startswith(
        "study ten: none of 9 complete trials satisfies all limits; nearest: trial 0: model_bytes=1000"
    )
    assert "misses model_bytes <= 500 by 500; val_accuracy=" in text
    assert text.count("trial ") == 3
    with pytest.raises(InfeasibleError, match="latency_ms is not known, as latency_ms < 2ms needs"):
        best(ten, "ten", where=parse_where("latency_ms < 2ms"))


def test_better_values_come_first_and_missing_ones_last(large: Database) -> None:
    worst_first = best(large, "large", sort="-val_accuracy", pareto=False, where=parse_where("number < 50")).table
    accuracies = worst_first.cells["val_accuracy"]
    assert accuracies == sorted(accuracies)
    smallest = best(large, "large", sort="model_bytes", top=5, pareto=False).table.cells["model_bytes"]
    assert smallest == sorted(trials_table(large, "large").frame()["model_bytes"].dropna())[:5]
    slowest = trials_table(large, "large", sort="-val_ece", top=393).frame()["val_ece"]
    assert slowest.dropna().is_monotonic_decreasing
    assert slowest.isna().tolist() == [False] * 392 + [True]
    names = trials_table(large, "large", sort="student.family").frame()["student.family"]
    assert names.is_monotonic_increasing
    for sort, words in (("val_acc", "did you mean val_accuracy"), ("latency_ms", "is not known for any trial")):
        with pytest.raises(InputError, match=words):
            best(large, "large", sort=sort)


def test_names_are_known_wherever_any_trial_has_them(ten: Database) -> None:
    with pytest.raises(InputError, match=r"column 1: is no name here \(did you mean model_bytes\?\)"):
        best(ten, "ten", where=parse_where("model_byts < 1"))
    with pytest.raises(NotFoundError, match=r"study 'tan': there is none \(did you mean ten\?\)"):
        best(ten, "tan")
    assert len(trials_table(ten, "ten", where=parse_where("failure = 'diverged' and test_accuracy > 1%")).frame()) == 0
    assert trials_table(ten, "ten", where=parse_where("failure = 'diverged'")).frame()["number"].tolist() == [9]


def test_final_runs_stand_for_what_the_search_saw(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = finished_study(url, "ten", tmp_path)
    companion = create_study(storage, "ten" + CONTROLS, replace(describe(tmp_path), trials=0))
    for seed, accuracy in enumerate((0.7, 0.8)):
        trial = companion.ask()
        told = TrialResult({}, seed, {"val_accuracy": 0.5, "model_bytes": 9.0, "test_accuracy": accuracy})
        trial.set_user_attr(RESULT, told.to_json())
        trial.set_user_attr(ROLE, {"role": "final", "of": 3, "seed": seed})
        companion.tell(trial, [0.5, 9.0])
    companion.set_user_attr("latency", {"3": {"median_ms": 1.25}})
    database = open_database(url)
    found = best(database, "ten", where=parse_where("latency_ms < 2ms and test_accuracy >= 75%"))
    (record,) = found.record()["trials"]
    assert record["number"] == 3
    assert record["metrics"]["test_accuracy"] == pytest.approx(0.75)
    assert record["metrics"]["test_std"] == pytest.approx(0.1 / 2**0.5)
    assert (record["metrics"]["test_seeds"], record["metrics"]["latency_ms"]) == (2, 1.25)
    assert controls_frame(database, "ten")["of"].tolist() == [3, 3]
    assert best(database, "ten", sort="test_accuracy").table.cells["number"][0] == 3
    assert [row["name"] for row in studies_records(database)] == ["ten"]


def test_a_storage_of_an_unknown_version_is_answered_by_optunas_classes(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    url = f"sqlite:///{path}"
    finished_study(url, "ten", tmp_path, constraints=["macs<=50k"])
    condition = parse_where("student.depth < 9 and seconds < 2s")
    fast = best(open_database(url), "ten", where=condition)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE version_info SET schema_version = 13")
    slow = best(open_database(url), "ten", where=condition)
    assert not open_database(url).known
    assert slow.record() == fast.record()
    assert metasearch.studies(storage=url)["feasible"].tolist() == [5]
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.9.a'")
    with pytest.raises(StorageError, match="is of another version of Optuna"):
        best(open_database(url), "ten")


def test_a_study_without_complete_trials_has_an_empty_front(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = create_study(new_storage(url), "new", describe(tmp_path))
    assert best(open_database(url), "new", where=parse_where("model_bytes < 1")).record()["trials"] == []
    study.tell(study.ask(), state=TrialState.FAIL)
    frame = metasearch.trials("new", where="state = 'FAIL'", storage=url)
    assert frame["feasible"].tolist() == [False]


def normalised(study: optuna.Study, ideal: Any, reference: Any) -> float:
    """Return the hypervolume of a study's best trials by Optuna's own, as a share of the box."""
    from optuna._hypervolume import compute_hypervolume

    costs = np.array([[trial.values[0], -trial.values[1]] for trial in study.best_trials])
    return float(compute_hypervolume((costs - ideal) / (reference - ideal), np.ones(2)))


def test_hypervolumes_on_a_common_reference_are_optunas(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    a, b = theirs(url, name="a"), theirs(url, name="b", trials=8, seed=1)
    found = compare(open_database(url), "a", "b")
    fronts = [np.array([[t.values[0], -t.values[1]] for t in study.best_trials]) for study in (a, b)]
    ideal = np.vstack(fronts).min(axis=0)
    reference = np.array([found.reference["value_0"], -found.reference["value_1"]])
    assert (reference > np.vstack(fronts).max(axis=0)).all()
    assert found.hypervolumes == pytest.approx([normalised(study, ideal, reference) for study in (a, b)])
    covered = np.mean([any((p <= point).all() for p in fronts[1]) for point in fronts[0]])
    assert found.covered[0] == pytest.approx(covered)
    for index, (name, best_of) in enumerate((("value_0", min), ("value_1", max))):
        expected = [best_of(trial.values[index] for trial in study.best_trials) for study in (a, b)]
        assert list(found.best_values[name]) == pytest.approx(expected)


def test_a_study_compared_with_itself_differs_in_nothing(ten: Database) -> None:
    found = compare(ten, "ten", "ten")
    assert (found.settings, found.parameters, found.covered) == ({}, {}, (1.0, 1.0))
    assert found.hypervolumes[0] == found.hypervolumes[1] > 0


def test_what_differs_between_two_studies_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    finished_study(url, "a", tmp_path)
    finished_study(url, "b", tmp_path, sampler="tpe", constraints=["macs<=50k"])
    frame = metasearch.compare("a", "b", storage=url)
    rows = {(row.kind, row.name): (row.a, row.b) for row in frame.itertuples(index=False)}
    assert rows["setting", "sampler"] == ("random", "tpe")
    assert rows["trials", "feasible"] == (9, 5)
    optuna.create_study(storage=url, study_name="c").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match="study c: must share an objective with a"):
        compare(open_database(url), "a", "c")


@pytest.mark.parametrize("evaluator", ["ped-anova", "fanova"])
@pytest.mark.parametrize("objective", ["value_0", "value_1"])
def test_importance_is_optunas_own(alone: optuna.Study, alone_url: str, evaluator: str, objective: str) -> None:
    study = alone
    sign, index = (1, 0) if objective == "value_0" else (-1, 1)
    chosen: Any = (
        optuna.importance.PedAnovaImportanceEvaluator()
        if evaluator == "ped-anova"
        else optuna.importance.FanovaImportanceEvaluator(seed=3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the target is taken to be minimized, as it is here
        expected = optuna.importance.get_param_importances(
            study, evaluator=chosen, target=lambda trial: sign * trial.values[index]
        )
    found = importances(open_database(alone_url), "theirs", objective=objective, evaluator=evaluator, seed=3)
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)
    assert sum(found.values()) == pytest.approx(1)


def test_importance_names_its_mistakes(ten: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean val_accuracy\?"):
        importances(ten, "ten", objective="val_acuracy")
    with pytest.raises(InputError, match="must be one of ped-anova, fanova"):
        importances(ten, "ten", evaluator="guess")
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    create_study(new_storage(url), "new", describe(tmp_path))
    with pytest.raises(NotFoundError, match="0 complete trials; importance needs two"):
        importances(open_database(url), "new")


def test_the_parameter_that_sets_the_size_matters_most_for_it(large: Database) -> None:
    frame = metasearch.importance("large", objective="model_bytes", storage=large.url)
    assert frame["parameter"][0] == "student.width"
    assert frame["importance"].is_monotonic_decreasing
    assert load_study(open_storage(large.url), "large").directions[1].name == "MINIMIZE"
