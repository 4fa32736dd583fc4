"""Latency as what a search improves: predicted for a device from the shapes of its trials' networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metasearch.latency.model import fit
from metasearch.latency.network import works_of
from metasearch.latency.work import Work
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import lower
from metasearch.pipeline import run_pipeline
from metasearch.records import TrialResult
from metasearch.report.database import open_database
from metasearch.report.queries import best
from metasearch.report.tables import front_table
from metasearch.search.benchmarks import KnownLatency, bring_back, latency_of
from metasearch.search.foreknown import foreknown
from metasearch.search.launch import run_study
from metasearch.search.names import MEASURED_MS
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources, ray_running
from metasearch.search.space import parse_space
from metasearch.search.store import RESULT, description_of, load_study
from metasearch.tasks import TaskSource
from tests.command_line import Run
from tests.fakes import new_storage
from tests.latency.devices import networks, record
from tests.synthetic import knowing_teacher, synthetic_task

SPACE = """
objectives: [val_accuracy, macs]
policies:
  learning_rate: {kind: constant, value: {low: 0.01, high: 0.05, log: true}}
  temperature: 4.0
  student.width: {low: 2, high: 12}
parameters:
  student.family: {choices: [convnet, mobilenet]}
  student.depth: {low: 2, high: 3}
  alpha: 0.5
  epochs: 1
  fine_tune_epochs: 0
  quantize: {choices: [none, int8]}
"""
PRUNING = SPACE.replace("  temperature", "  pruning_ratio: {kind: cubic, final: {low: 0.2, high: 0.5}}\n  temperature")
MEASURED = networks(6)
KNOWN = KnownLatency("old", "board", fit(MEASURED))
CHOSEN = {"learning_rate.value": 0.02, "student.width": 5, "student.family": "mobilenet", "student.depth": 3}


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_latency_that_is_foreknown_is_that_of_the_trial(quantize: str) -> None:
    task, space = synthetic_task(), parse_space(SPACE, place="test")
    known = foreknown(space, task, KNOWN)["latency_ms"]
    chosen = CHOSEN | {"quantize": quantize}
    result = run_pipeline(
        task,
        {**space.fixed, **chosen},
        teacher=knowing_teacher(task),
        latency_model=KNOWN.model,  # as a driver does
    )
    assert result.metrics["latency_ms"] == known(chosen) > 0


def test_a_trial_tells_what_its_network_does_whether_or_not_a_device_is_known() -> None:
    task = synthetic_task()
    config = {**parse_space(SPACE, place="test").fixed, **CHOSEN, "quantize": "none"}
    result = run_pipeline(task, config, teacher=knowing_teacher(task))
    network = build_network(NetworkSpec("mobilenet", 5, 3), input_shape=(1, 8, 8), classes=3, seed=0)
    lowered = lower(network, normalisation=task.normalisation, input_shape=(1, 8, 8))
    again = TrialResult.from_json(result.to_json())
    assert tuple(Work.from_plain(work) for work in again.details["works"]) == works_of(lowered)
    assert "latency_ms" not in result.metrics


def test_nothing_is_foreknown_of_students_that_are_pruned_or_without_a_model() -> None:
    task, space = synthetic_task(), parse_space(SPACE, place="test")
    assert foreknown(space, task, None) == {}
    assert foreknown(parse_space(PRUNING, place="test"), task, KNOWN) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_built_in")
def test_a_search_for_latency_starts_from_one_for_macs_and_says_what_is_predicted(
    metasearch: Run, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = new_storage(url)
    options = Options(
        TaskSource("digits", max_train=100, augment="none"),
        parse_space(SPACE, place="test"),
        3,
        "old",
        teacher="mlp:width=4,depth=1",
        device="cpu",
        warm_start="none",
        artefacts=str(tmp_path / "artefacts"),
    )
    asked = replace(
        options,
        name="new",
        objectives=("val_accuracy", "latency_ms"),
        constraints=("latency_ms <= 1s",),
        warm_start="old",
        latency_from="old",
    )
    with ray_running(Resources(workers=1)):
        prepare_study(storage, options)
        run_study(storage, "old", resources=Resources(workers=1), final=False)
        bring_back(load_study(storage, "old"), "board", [record(network) for network in MEASURED])
        prepare_study(storage, asked)
        run_study(storage, "new", resources=Resources(workers=1))
    study = load_study(storage, "new")
    known = latency_of(description_of(study))
    assert known == KNOWN
    for trial in study.trials:
        result = TrialResult.from_json(trial.user_attrs[RESULT])
        works = [Work.from_plain(work) for work in result.details["works"]]
        assert trial.values[1] == result.metrics["latency_ms"] == pytest.approx(known.model.predict(works))
        assert list(trial.constraints.values()) == [pytest.approx(result.metrics["latency_ms"] - 1000)]
    table = best(open_database(url), "new").table
    predicted, measured = table.cells["latency_ms"], table.cells[MEASURED_MS]
    assert all(one > 0 and other > 0 and one != other for one, other in zip(predicted, measured, strict=True))
    assert [str(column.header) for column in front_table(table.frame()).columns][-2:] == ["ms", "ms here"]
    code, out, _ = metasearch("best", "new", "--storage", url)
    assert code == 0
    assert "ms: predicted for board from what it measured of 6 networks of old; ms here: measured on" in out
