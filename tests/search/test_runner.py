"""Driving a study with Ray Tune: what workers do to trials, and what becomes of the books."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.study import Study

from metasearch.errors import MetasearchError, StorageError, TrialFailure
from metasearch.records import EpochReport, TrialResult
from metasearch.search import store
from metasearch.search.early_stopping import SuccessiveHalving
from metasearch.search.ledger import MOST_LOST, Ledger, trial_seed
from metasearch.search.patience import Patience
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.searcher import LedgerSearcher, Limits
from metasearch.search.stopping import StopFlag
from metasearch.search.store import FAILURE, LEFT, LOSSES, RUN, is_finished, open_storage, storage_errors
from metasearch.search.worker import TIMED_OUT, TrialRequest
from tests.search.driving import Steps, assert_done, evaluation, ledger, new_study, nothing, prepared, reasons

TWO = Resources(workers=2)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "nowhere.invalid:1")
        with ray_running(TWO):
            yield


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return new_study(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_ray_of_our_own_listens_on_the_loopback_whatever_the_environment_says() -> None:
    import ray  # not above: it reads what metasearch.search sets in the environment
    from ray._private import ray_constants

    assert os.environ["RAY_ADDRESS"]
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ  # a cluster joined later listens where it says
    assert ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_exactly_n_trials_finish_on_two_workers_whatever_becomes_of_them(study: Study) -> None:
    def act(request: TrialRequest, epoch: int) -> None:
        if request.number % 5 == 1:
            raise TrialFailure("diverged", "nan")
        if request.number % 5 == 2:
            raise ValueError("a fault in the trial's code")

    study.enqueue_trial({"x": 0.125})
    study.enqueue_trial({"x": 0.875})
    books = ledger(study, 40, halving=SuccessiveHalving(by_size=False))
    drive(books, evaluation(act, seconds=0.05), prepared, resources=TWO, stop=StopFlag())
    assert_done(study, 40)
    assert len(study.trials) == 40
    assert [trial.params["x"] for trial in study.trials[:2]] == [0.125, 0.875]
    assert reasons(study) == {n: "diverged" if n % 5 == 1 else "error" for n in range(40) if n % 5 in {1, 2}}
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED", "FAIL"}
    assert len({trial.user_attrs[RUN]["pid"] for trial in study.trials}) == 2  # a second worker that came to work
    assert "ValueError: a fault in the trial's code" in study.trials[2].user_attrs[FAILURE]["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_worker_is_killed_runs_again_and_four_times_is_given_up(
    study: Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def act(request: TrialRequest, epoch: int) -> None:
        if epoch == 2:
            killed = len(list(deaths.glob(f"{request.number}-*")))
            if request.number == 3 or (request.number == 1 and killed == 0):
                (deaths / f"{request.number}-{killed}-{request.seed}-{request.config['x']}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    books = ledger(study, 6)
    drive(books, evaluation(act, seconds=0.1), prepared, resources=TWO, stop=StopFlag())
    assert_done(study, 6)
    assert reasons(study) == {3: "lost"}
    assert len(study.trials) == 7
    again = study.trials[1]
    assert again.state.name == "COMPLETE"
    assert again.values[0] == again.params["x"]
    tried = [file.name.split("-", 2) for file in deaths.iterdir()]
    assert sorted((number, count) for number, count, _ in tried) == [("1", "0"), *(("3", str(n)) for n in range(4))]
    for number, _, rest in tried:
        trial = study.trials[int(number)]
        assert rest == f"{trial_seed(5, trial.number)}-{trial.params['x']}"
    assert "actor died" in study.trials[3].user_attrs[FAILURE]["message"]
    assert capfd.readouterr() == ("", "")  # nothing of Ray's


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_full_disk_stops_the_search_and_fails_no_configuration(study: Study) -> None:
    def full(request: TrialRequest, epoch: int) -> None:
        if request.number >= 2 and epoch == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MetasearchError, match=rf"study s: {MOST_LOST} trials in a row .*No space left.*resume s"):
        drive(ledger(study, 8), evaluation(full), prepared, resources=TWO, stop=StopFlag())
    finished = [trial.number for trial in study.trials if is_finished(trial)]
    assert finished
    assert set(finished) <= {0, 1}
    kept = {trial.number: trial.params for trial in study.trials}
    books = ledger(study, 8)
    assert set(books.failures) == {"lost"}
    assert books.failures["lost"] >= MOST_LOST  # more where a good trial ended between two lost ones
    drive(books, evaluation(nothing), prepared, resources=TWO, stop=StopFlag())
    assert_done(study, 8)
    assert all(study.trials[number].params == params for number, params in kept.items())
    assert set(reasons(study).values()) == {"lost"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_that_cannot_be_prepared_stop_the_search_with_the_cause(study: Study) -> None:
    def broken() -> None:
        raise FileNotFoundError("the data set has gone")

    one = Resources(workers=1)
    with pytest.raises(MetasearchError, match=r"FileNotFoundError.*the data set has gone"):
        drive(ledger(study, 4), evaluation(nothing), broken, resources=one, stop=StopFlag())
    assert sum(map(is_finished, study.trials)) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_stop_leaves_what_runs_to_the_next_driver(study: Study) -> None:
    stop = StopFlag()

    def progress(books: Ledger) -> None:
        if books.finished >= 3:
            stop.set("enough")

    drive(ledger(study, 8), evaluation(nothing, seconds=0.1), prepared, resources=TWO, stop=stop, progress=progress)
    left = [trial for trial in study.trials if not trial.state.is_finished()]
    assert 3 <= sum(map(is_finished, study.trials)) < 8
    assert left
    assert all(trial.user_attrs[LEFT] for trial in left)
    drive(ledger(study, 8), evaluation(nothing), prepared, resources=TWO, stop=StopFlag())
    assert_done(study, 8)
    assert len(study.trials) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_storage_that_is_locked_too_long_ends_the_search_and_nothing_told_is_lost(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.1)
    impatient = optuna.load_study(study_name="s", storage=open_storage(f"sqlite:///{tmp_path / 'studies.db'}"))
    lock = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)

    def progress(books: Ledger) -> None:
        if books.finished == 2 and not lock.in_transaction:
            lock.execute("BEGIN EXCLUSIVE")

    books = ledger(impatient, 8, patience=Patience(give_up_s=0.5))
    with pytest.raises(StorageError, match="database is locked"), storage_errors("sqlite:///x"):
        drive(books, evaluation(nothing), prepared, resources=TWO, stop=StopFlag(), progress=progress)
    lock.execute("ROLLBACK")
    assert sum(map(is_finished, study.trials)) == 2
    drive(ledger(study, 8), evaluation(nothing), prepared, resources=TWO, stop=StopFlag())
    assert_done(study, 8)


@pytest.mark.parametrize("tune_raises", [False, True])
def test_a_fault_of_the_driver_is_raised_as_it_was_and_no_trial_is_lost_by_it(
    study: Study, monkeypatch: pytest.MonkeyPatch, tune_raises: bool
) -> None:
    from ray import tune  # not above: it reads what metasearch.search sets in the environment

    def run(worker: None, search_alg: LedgerSearcher, **_: object) -> None:
        search_alg.suggest("a")
        assert search_alg.suggest("b") == "FINISHED"
        if tune_raises:
            raise RuntimeError("Tune's own")

    def progress(books: Ledger) -> None:
        raise ValueError("the driver's fault")

    monkeypatch.setattr(tune, "with_parameters", lambda *_, **__: None)
    monkeypatch.setattr(tune, "run", run)
    with pytest.raises(ValueError, match="the driver's fault"):
        drive(ledger(study, 4), evaluation(nothing), prepared, resources=TWO, stop=StopFlag(), progress=progress)
    assert [trial.user_attrs for trial in study.trials] == [{LEFT: True}]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_as_many_trials_run_at_once_as_fit_and_a_metric_that_is_not_finite_stops_nothing(study: Study) -> None:
    def evaluate(request: TrialRequest, shared: object) -> Steps:
        time.sleep(0.05)
        yield EpochReport("distill", 1, 2, 0.1, 0.5, 10, 0.1, 1.0, 0.1)
        value = math.nan if request.number == 1 else 0.5
        return TrialResult(request.config, request.seed, {"val_accuracy": value, "macs": 1.0})

    seen: list[int] = []
    drive(
        ledger(study, 8),
        evaluate,
        prepared,
        resources=Resources(workers=None),
        stop=StopFlag(),
        progress=lambda books: seen.append(len(books.running)),
    )
    assert_done(study, 8)
    assert reasons(study) == {1: "non_finite"}
    assert max(seen) == min(8, max(2, len(os.sched_getaffinity(0))))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_hangs_is_ended_with_its_process_and_the_others_go_on(study: Study) -> None:
    def act(request: TrialRequest, epoch: int) -> None:
        if request.number == 1 and epoch == 2:
            re.match(r"(a+)+$", "a" * 64 + "b")  # holds the interpreter's lock for years

    books = ledger(study, 4)
    drive(books, evaluation(act), prepared, resources=TWO, stop=StopFlag(), limits=Limits(trial_s=1.0))
    assert_done(study, 4)
    assert reasons(study) == {1: TIMED_OUT}
    message = study.trials[1].user_attrs[FAILURE]["message"]
    assert "hung: its process was ended" in message
    assert "in act" in message  # where it stood
    assert LOSSES not in study.trials[1].user_attrs
