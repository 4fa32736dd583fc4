"""Runs as MLflow itself gives them back, from a tracking store in a SQLite file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from metasearch.errors import InputError
from metasearch.records import TrialResult
from metasearch.report import mlflow_runs
from metasearch.report.database import open_database
from metasearch.report.mlflow_runs import write_runs
from metasearch.search.names import RESULT
from tests.command_line import Run
from tests.report.studies import reported_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(found, tmp_path, trials=6)
    return found


def runs_at(uri: str) -> dict[str, Any]:
    """Return the runs of study ten by the trial's number."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("ten")
    assert experiment is not None
    return {run.data.tags[mlflow_runs.TRIAL]: run for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.slow
def test_mlflow_has_every_trial_once_with_its_curve(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    from mlflow import MlflowClient

    uri, database = f"sqlite:///{tmp_path / 'mlflow.db'}", open_database(url)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(MlflowClient, "set_tag", lambda *values: sys.exit(9))  # in the middle of the first run
        with pytest.raises(SystemExit):
            write_runs(database, ["ten"], uri)
    assert write_runs(database, ["ten"], uri) == {"ten": 6}
    study = optuna.load_study(storage=url, study_name="ten")
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert write_runs(database, ["ten"], uri) == {"ten": 1}
    assert write_runs(database, ["ten"], uri) == {"ten": 0}
    runs = runs_at(uri)
    assert sorted(runs) == [str(number) for number in range(7)]
    assert {number for number, run in runs.items() if run.info.status == "FAILED"} == {"4", "6"}
    result = TrialResult.from_json(study.trials[2].user_attrs[RESULT])
    run = runs["2"]
    assert run.data.params == {path: str(value) for path, value in result.config.items()}
    assert {name: run.data.metrics[f"result/{name}"] for name in result.metrics} == pytest.approx(dict(result.metrics))
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [
        (report.epoch, pytest.approx(report.val_accuracy)) for report in result.curve
    ]


def test_without_the_extra_one_line_says_how_to_get_it(
    metasearch: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, out, err = metasearch("report", "ten", "--mlflow", "sqlite:///mlflow.db", "--storage", url)
    assert (code, out) == (2, "")
    assert err == 'metasearch: --mlflow: needs mlflow: pip install "metasearch[mlflow]"\n'


def test_a_password_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="--mlflow: must not hold a password") as caught:
        write_runs(open_database(url), ["ten"], "https://u:canary@host")
    assert "canary" not in str(caught.value)
