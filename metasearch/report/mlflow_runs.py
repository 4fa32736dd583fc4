"""A study as runs of MLflow: an experiment a study, a run a trial, each written once however often it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from metasearch.errors import InputError, StorageError
from metasearch.report.database import Database
from metasearch.report.trial_logs import EPOCH_METRICS, TrialLog, trial_logs

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRIAL, WHOLE = "metasearch.trial", "metasearch.whole"
"""Tags of a run: the trial's number, and that all of it was written."""
STATUSES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
MOST_METRICS, MOST_PARAMETERS = 1000, 100
"""That a server of MLflow takes in one request."""
PAGE = 1000
MOST_CHARACTERS = 6000
"""Of a parameter's value."""


def write_runs(database: Database, names: Sequence[str], uri: str) -> dict[str, int]:
    """Write the ended trials of studies that the server at `uri` does not have yet; return how many by study.

    A run that was not written whole is deleted and written again. Raises InputError for a missing extra or a password
    in `uri`, StorageError if the server is away or refuses.
    """
    if urlsplit(uri).password:
        raise InputError("--mlflow", "must not hold a password; set MLFLOW_TRACKING_USERNAME and _PASSWORD")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise InputError("--mlflow", f'needs {error.name}: pip install "metasearch[mlflow]"') from error
    try:
        client = MlflowClient(tracking_uri=uri)
        return {name: _write_study(database, name, client) for name in names}
    except MlflowException as error:
        raise StorageError(f"--mlflow: {' '.join(str(error).split())[:500]}") from error


def _write_study(database: Database, name: str, client: MlflowClient) -> int:
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if found is None else found.experiment_id
    there = set()
    for run in _runs(client, experiment):
        if WHOLE in run.data.tags:
            there.add(int(run.data.tags[TRIAL]))
        elif TRIAL in run.data.tags:
            client.delete_run(run.info.run_id)
    count = 0
    for log in trial_logs(database, name, without=there):
        _write_trial(client, experiment, log)
        count += 1
    return count


def _runs(client: MlflowClient, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        runs = client.search_runs([experiment], max_results=PAGE, page_token=token)
        yield from runs
        token = runs.token
        if not token:
            return


def _write_trial(client: MlflowClient, experiment: str, log: TrialLog) -> None:
    from mlflow.entities import Metric, Param

    started, ended = (None if when is None else round(1000 * when) for when in (log.started, log.ended))
    tags = {TRIAL: str(log.number), "metasearch.state": log.state}
    run = client.create_run(experiment, start_time=started, run_name=f"trial {log.number}", tags=tags).info.run_id
    parameters = [Param(path, str(value)[:MOST_CHARACTERS]) for path, value in log.parameters.items()]
    metrics = [
        Metric(name, getattr(report, name), round(1000 * when), report.epoch)
        for report, when in log.epochs()
        for name in EPOCH_METRICS
    ]
    metrics += [Metric(f"result/{name}", value, ended or 0, len(log.curve)) for name, value in log.metrics.items()]
    for first in range(0, len(parameters), MOST_PARAMETERS):
        client.log_batch(run, params=parameters[first : first + MOST_PARAMETERS])
    for first in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run, metrics=metrics[first : first + MOST_METRICS])
    client.set_terminated(run, status=STATUSES[log.state], end_time=ended)
    client.set_tag(run, WHOLE, "yes")
