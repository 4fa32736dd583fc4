from __future__ import annotations

import json
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from metasearch.configuration import Configuration
from metasearch.report.database import open_database
from metasearch.report.page.facts import Facts, drawn_rows, study_facts
from metasearch.report.page.figure import Figure, Parallel, figure_record
from metasearch.report.page.front import front_figures
from metasearch.report.page.origin import data_text
from metasearch.report.page.parameters import configuration_table, parallel_figure, searched_parameters
from metasearch.report.page.predictions import confusion_counts, described, distinct, precision_recall_f1
from metasearch.report.page.progress import box, cumulative_volumes, progress
from metasearch.report.page.report import make_report
from metasearch.report.page.slices import STEPS, curves_figure, slices
from metasearch.report.page.trials import failure_counts, timeline_figure
from metasearch.search.pareto import dominates
from metasearch.search.store import load_study, open_storage
from tests.report.studies import reported_study, strings_of


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("studies")
    found = f"sqlite:///{folder / 'studies.db'}"
    reported_study(found, folder, constraints=["model_bytes <= 3kB"])
    reported_study(found, folder, "one", objectives=["val_accuracy"], with_controls=False)
    return found


@pytest.fixture(scope="module")
def facts(url: str) -> Facts:
    return study_facts(open_database(url), "ten")


def series_of(figure: Figure, name: str) -> list[int]:
    return [number for series in figure.series if series.name == name for number in series.trials]


@given(count=st.integers(0, 60), most=st.integers(0, 60), data=st.data())
@settings(max_examples=50)
def test_a_sample_keeps_the_whole_front_and_no_row_twice(count: int, most: int, data: st.DataObject) -> None:
    front = data.draw(st.sets(st.integers(0, count - 1)) if count else st.just(set[int]()))
    rows = drawn_rows(count, front, most=most)
    assert list(rows) == sorted(set(rows))
    assert front <= set(rows) <= set(range(count))
    assert len(rows) == len(front) + min(most, count - len(front))


def test_the_front_is_what_no_feasible_trial_dominates(url: str, facts: Facts) -> None:
    trials = [t for t in load_study(open_storage(url), "ten").trials if t.state == optuna.trial.TrialState.COMPLETE]
    costs = {trial.number: (-trial.values[0], trial.values[1]) for trial in trials if trial.values[1] <= 3000}
    expected = {n for n, own in costs.items() if not any(dominates(other, own) for other in costs.values())}
    figure = front_figures(facts)[0]
    assert set(series_of(figure, "front")) == expected
    assert set(series_of(figure, "trials")) == set(costs) - expected
    assert set(series_of(figure, "trials that break a constraint")) == {t.number for t in trials} - set(costs)


def test_controls_teacher_and_constraint_are_drawn_with_the_front(facts: Facts) -> None:
    figure = front_figures(facts)[0]
    names = [series.name for series in figure.series]
    assert {"control: distilled directly at the same MACs", "control: trained without the teacher"} <= set(names)
    # the teacher has no bytes: its accuracy is a line across
    assert {(level.name, level.axis, level.value) for level in figure.levels} == {
        ("teacher", "y", 0.97),
        ("model_bytes <= 3kB", "x", 3000.0),
    }


def test_a_single_objective_is_drawn_as_its_history(url: str) -> None:
    alone = study_facts(open_database(url), "one")
    (figure,) = front_figures(alone)
    steps = next(series for series in figure.series if series.name == "best so far")
    values = [value for value in alone.table.cells["val_accuracy"] if value is not None]
    assert list(dict.fromkeys(steps.y)) == list(dict.fromkeys(np.maximum.accumulate(values).tolist()))


def test_latency_stands_with_half_its_spread_on_each_side(facts: Facts) -> None:
    for series in front_figures(facts)[-1].series:
        assert series.low == pytest.approx([x - 0.05 for x in series.x if isinstance(x, float)])
        assert series.high == pytest.approx([x + 0.05 for x in series.x if isinstance(x, float)])


@given(seed=st.integers(0, 10**6), count=st.integers(1, 25), objectives=st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_hypervolume_over_trials_is_optunas_after_every_trial(seed: int, count: int, objectives: int) -> None:
    # coarse values, so that there are ties
    costs = np.random.default_rng(seed).integers(0, 11, (count, objectives)) / 10
    expected = [compute_hypervolume(costs[: n + 1], np.ones(objectives)) for n in range(count)]
    assert cumulative_volumes(costs) == pytest.approx(expected)


def test_hypervolume_of_three_objectives_is_near_optunas() -> None:
    costs = np.random.default_rng(0).random((40, 3))
    expected = [compute_hypervolume(costs[: n + 1], np.ones(3)) for n in range(40)]
    assert cumulative_volumes(costs) == pytest.approx(expected, abs=0.01)


def test_progress_never_falls_and_ends_with_the_last_finished_trial(facts: Facts) -> None:
    found = progress(facts, *box([facts]))
    assert list(found.volume) == sorted(found.volume)
    assert list(found.finished) == sorted(found.finished)
    assert found.finished[-1] == len(facts.table)


def test_policies_are_drawn_as_training_follows_them(url: str, facts: Facts) -> None:
    database = open_database(url)
    figure = curves_figure(facts, "pruning_ratio")
    assert figure is not None
    shown = {series.trials[0]: series.y for series in figure.series}
    table = study_facts(database, "ten").table
    for number, values in shown.items():
        config = table.take([table.cells["number"].index(number)]).records()[0]["params"]
        policy = Configuration.of(config).pruning_ratio
        assert values == pytest.approx([policy(step / STEPS) for step in range(STEPS + 1)])


def test_every_searched_parameter_has_one_slice(facts: Facts) -> None:
    searched = searched_parameters(facts)
    assert {figure.title for one in slices(facts, searched) for figure in one.figures} == set(searched)
    assert "quantize" not in searched  # it is int8 everywhere


def test_parallel_coordinates_hold_each_trials_own_values(facts: Facts) -> None:
    searched = searched_parameters(facts)
    figure = parallel_figure(facts, searched)
    assert isinstance(figure, Parallel)
    assert {number for number, front in zip(figure.trials, figure.front, strict=True) if front} == set(
        facts.numbers(facts.front)
    )
    width = [axis.label for axis in figure.axes].index("student.width")
    for number, row in zip(figure.trials, figure.rows, strict=True):
        assert row[width] == facts.table.cells["student.width"][facts.table.cells["number"].index(number)]


def test_the_timeline_has_each_trial_where_and_when_it_ran(facts: Facts) -> None:
    figure = timeline_figure(facts)
    assert figure is not None
    assert sorted(number for series in figure.series for number in series.trials) == list(range(30))
    for series in figure.series:
        for number, start, end, worker in zip(series.trials, series.x, series.end, series.y, strict=True):
            assert (start, end) == pytest.approx((3 * number / 60, (3 * number + 2) / 60))
            assert worker == f"here {number % 2}"


def test_failures_are_counted_by_reason(facts: Facts) -> None:
    assert failure_counts(facts) == {"diverged": 6}


def test_hovering_knows_the_configuration_of_each_drawn_trial(facts: Facts) -> None:
    known = configuration_table(facts)
    assert known["numbers"] == facts.numbers(facts.drawn)
    column = known["columns"][known["names"].index("temperature")]
    assert column == facts.column("temperature", facts.drawn)


def test_figures_are_json_without_nan(url: str) -> None:
    for figure in make_report(open_database(url), ["ten", "one"]).figures:
        record = json.loads(json.dumps(figure_record(figure), allow_nan=False))
        assert record["alt"]
        assert record["title"] in strings_of(record)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6))
@settings(max_examples=25)
def test_scores_by_class_are_scikit_learns(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(classes, size=(2, 30))
    counts = confusion_counts(labels, predicted, classes)
    every = list(range(classes))
    assert counts.tolist() == confusion_matrix(labels, predicted, labels=every).tolist()
    expected = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    assert precision_recall_f1(counts) == pytest.approx(np.column_stack(expected[:3]))


def test_wrong_images_are_the_wrong_ones_and_the_surest_come_first() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    images = np.zeros((4, 1, 2, 2), np.uint8)
    found = described(logits, images, np.array([0, 0, 1, 1]), ["cat", "dog"], index=0)
    assert found.accuracy == 0.5
    assert [(one.label, one.predicted) for one in found.wrong] == [("dog", "cat"), ("cat", "dog")]
    assert found.wrong[0].confidence == pytest.approx(1 / (1 + np.exp(-3)))


def test_classes_of_one_name_stay_apart() -> None:
    assert distinct(["a", "b", "a", "a"]) == ("a", "b", "a (2)", "a (3)")


def test_a_study_larger_than_a_picture_keeps_its_front_and_says_what_is_drawn(url: str) -> None:
    facts = study_facts(open_database(url), "ten", most=5)
    figure = front_figures(facts)[0]
    assert set(series_of(figure, "front")) == set(facts.numbers(facts.front))
    assert len(facts.drawn) == 5 + len(facts.front)
    assert "complete trials are drawn, all of the front among them" in figure.caption


def test_the_data_of_a_task_are_told_from_its_features() -> None:
    sizes = {"log_classes": 10, "log_channels": 1, "log_height": 16, "log_width": 28}
    features = {name: math.log(size) for name, size in sizes.items()} | {"log_examples": math.log1p(2000)}
    assert data_text(features | {"is_image": 1}) == ": 2,000 training images of 16 x 28 x 1 in 10 classes"
    assert data_text(features | {"is_image": 0}) == ": 2,000 training examples in 10 classes"
    assert data_text({}) == ""
