"""Driving a study with Ray Tune: what workers do to trials, and what becomes of the books."""

from __future__ import annotations

import errno
import faulthandler
import math
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.study import Study
from ray import tune

from metasearch import run as run_module
from metasearch.errors import InputError, MetasearchError, StorageError, TrialFailure
from metasearch.pipeline import Shared, pipeline_steps
from metasearch.records import EpochReport, TrialResult
from metasearch.search import pipeline_worker, store
from metasearch.search import searcher as searcher_module
from metasearch.search.attempts import RETRIES
from metasearch.search.early_stopping import SuccessiveHalving
from metasearch.search.hanging import MACHINE_S, Watch
from metasearch.search.ledger import MOST_LOST, Ledger, Proposal, trial_seed
from metasearch.search.patience import Patience
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.samplers import make_sampler
from metasearch.search.searcher import LedgerSearcher, Limits, StopByLedger
from metasearch.search.stopping import StopFlag
from metasearch.search.store import FAILURE, LEFT, LOSSES, RUN, is_finished, open_storage, storage_errors
from metasearch.search.worker import TIMED_OUT, Evaluate, TrialOutcome, TrialRequest, TrialWorker
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import Teacher
from tests.fakes import new_storage

TWO = Resources(workers=2)
Steps = Generator[EpochReport, None, TrialResult]
Act = Callable[[TrialRequest, int], None]


def evaluation(act: Act, *, seconds: float = 0.0) -> Evaluate:
    """Return a trial of three epochs that calls `act` with the request and each epoch, for example to die there."""

    def evaluate(request: TrialRequest, shared: object) -> Steps:
        x = request.config["x"]
        curve = []
        for epoch in (1, 2, 3):
            time.sleep(seconds)
            act(request, epoch)
            curve.append(EpochReport("distill", epoch, 3, 0.1, x, 10, 0.1, 1.0, 0.1))
            yield curve[-1]
        return TrialResult(request.config, request.seed, {"val_accuracy": x, "macs": (1 - x) ** 2}, curve=tuple(curve))

    return evaluate


def nothing(request: TrialRequest, epoch: int) -> None:
    """Let the trial be."""


def prepared() -> None:
    """Share nothing."""


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "nowhere.invalid:1")
        with ray_running(TWO):
            yield


@pytest.fixture
def study(tmp_path: Path) -> Study:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    return optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])


def ledger(study: Study, target: int, **options: Any) -> Ledger:
    study.sampler = make_sampler("random", seed=0, trials_so_far=len(study.trials))
    return Ledger(
        study,
        lambda trial: Proposal({"x": trial.suggest_float("x", 0, 1)}),
        target=target,
        seed=5,
        objectives=("val_accuracy", "macs"),
        **options,
    )


def reasons(study: Study) -> dict[int, str]:
    return {trial.number: trial.user_attrs[FAILURE]["reason"] for trial in study.trials if FAILURE in trial.user_attrs}


def assert_done(study: Study, target: int) -> None:
    trials = study.trials
    assert sum(map(is_finished, trials)) == target
    assert all(trial.state.is_finished() for trial in trials)
    assert [trial.number for trial in trials] == list(range(len(trials)))


# One worker process, without Ray


def outcome_of(evaluate: Evaluate, shared: object = None) -> TrialOutcome:
    """Run one request as the worker process does."""
    worker = TrialWorker.__new__(TrialWorker)
    worker.setup({"request": TrialRequest(0, {"x": 0.5}, seed=3)}, lambda: shared, evaluate, threads=1)
    while "outcome" not in (step := worker.step()):
        pass
    assert step["done"]
    outcome: TrialOutcome = step["outcome"]
    return outcome


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrialFailure("diverged", "loss is nan"), "diverged"),
        (InputError("width", "must be positive", 0), "refused"),
        (ZeroDivisionError("oops"), "error"),
        (OSError(errno.ENOSPC, "No space left on device"), "lost"),
    ],
)
def test_what_a_trial_raises_is_its_outcome_with_a_reason(error: Exception, reason: str) -> None:
    def act(request: TrialRequest, epoch: int) -> None:
        if epoch == 2:
            raise error

    outcome = outcome_of(evaluation(act))
    assert outcome.result is None
    assert outcome.failure is not None
    assert outcome.failure["reason"] == reason
    assert str(error).split(": ")[-1] in outcome.failure["message"]


def test_a_fault_of_the_code_that_prepares_is_lost_with_its_traceback_and_a_missing_file_in_a_line() -> None:
    def faulty() -> None:
        raise TypeError("a fault")

    def missing() -> None:
        raise FileNotFoundError("the data set has gone")

    for prepare, lines in ((faulty, True), (missing, False)):
        failure = worker_of(evaluation(nothing), prepare).step()["outcome"].failure
        assert failure["reason"] == "lost"
        assert ("in faulty" in failure["message"]) == lines
        assert ("\n" in failure["message"]) == lines


def test_a_trial_of_which_tune_wrote_no_error_is_lost_all_the_same(study: Study) -> None:
    searcher = LedgerSearcher(ledger(study, 1), at_once=lambda: 1, stop=StopFlag())
    searcher.suggest("a")
    StopByLedger(searcher).on_trial_error(None, SimpleNamespace(trial_id="a", error_file=None))
    searcher.on_trial_complete("a", error=True)
    assert searcher.fault is None
    assert study.trials[0].user_attrs[LOSSES] == 1


def test_a_worker_says_where_when_and_with_which_seed_a_trial_ran() -> None:
    before = time.time()
    outcome = outcome_of(evaluation(nothing))
    assert outcome.result is not None
    assert outcome.worker["pid"] == os.getpid()
    assert outcome.worker["seed"] == 3
    assert before <= outcome.worker["started"] <= outcome.worker["ended"]


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def torch_allocation() -> None:
    torch.empty(2**50)


def numpy_allocation() -> None:
    np.ones(2**50)


@pytest.mark.parametrize("exhaust", [out_of_gpu_memory, torch_allocation, numpy_allocation])
def test_a_pipeline_that_runs_out_of_memory_is_a_failure_of_its_configuration(
    exhaust: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> Iterator[object]:
        exhaust()
        yield None

    monkeypatch.setattr(run_module, "train", train)
    task = load_task(TaskSource("digits"))
    config = {"student.family": "mlp", "student.width": 4, "student.depth": 1, "alpha": 0.0}
    outcome = outcome_of(lambda request, shared: pipeline_steps(Shared(task), config))
    assert outcome.failure is not None
    assert outcome.failure["reason"] == "out_of_memory"
    assert "\n" not in outcome.failure["message"]


# Drives


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


# Limits


def worker_of(evaluate: Evaluate, prepare: Callable[[], Any] = prepared, **options: Any) -> TrialWorker:
    worker = TrialWorker.__new__(TrialWorker)
    worker.setup({"request": TrialRequest(0, {"x": 0.5}, seed=3)}, prepare, evaluate, threads=1, **options)
    return worker


def test_a_trial_past_its_time_limit_is_ended_between_two_epochs() -> None:
    worker = worker_of(evaluation(nothing, seconds=0.2), limit_s=0.3)
    steps = [worker.step() for _ in range(3)]
    worker.cleanup()
    assert ["outcome" in step for step in steps] == [False, False, True]
    assert steps[-1]["outcome"].failure == {"reason": TIMED_OUT, "message": "took longer than its 0 s"}


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> set[float]:
    """The seconds that the process has been given, while its timer runs."""
    now: set[float] = set()

    def arm(seconds: float, **_: object) -> None:
        now.clear()
        now.add(seconds)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", arm)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", now.clear)
    return now


def test_the_timer_runs_in_a_trials_own_steps_alone(armed: set[float]) -> None:
    seen: list[bool] = []

    def see(*_: object) -> None:
        seen.append(bool(armed - {MACHINE_S}))

    worker = worker_of(evaluation(see), lambda: see(), limit_s=60.0)
    for _ in range(2):
        worker.step()
        assert not armed
    worker.reset_config({"request": TrialRequest(1, {"x": 0.5}, seed=3)})  # the first was stopped early
    assert not armed
    while "outcome" not in worker.step():
        assert not armed
    worker.cleanup()
    assert seen == [False] + 5 * [True]
    assert not armed


def test_a_machine_that_hangs_while_a_worker_is_prepared_ends_its_process(armed: set[float]) -> None:
    worker = worker_of(evaluation(nothing), lambda: armed.copy())
    worker.step()
    assert worker._shared == {MACHINE_S}
    assert not armed


def test_a_trial_is_published_within_the_machines_time_not_its_own(
    armed: set[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def steps(*_: object, **__: object) -> Steps:
        assert armed
        yield EpochReport("distill", 1, 1, 0.1, 0.5, 10, 0.1, 1.0, 0.1)
        return TrialResult({}, 0, {"val_accuracy": 0.5})

    def publish(made: Path, folder: str) -> dict[str, str]:
        assert armed == {MACHINE_S}
        return {"made": folder}

    monkeypatch.setattr(pipeline_worker, "pipeline_steps", steps)
    monkeypatch.setattr(pipeline_worker, "publish", publish)
    shared = Shared(load_task(TaskSource("digits")), Teacher("none", 0, {}, {}))
    worker = worker_of(pipeline_worker.run_request, lambda: shared, limit_s=60.0)
    worker.reset_config({"request": TrialRequest(0, {}, seed=3, folder=str(tmp_path))})
    worker.step()
    assert worker.step()["outcome"].result.artefacts == {"made": str(tmp_path)}
    worker.cleanup()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("left", ["", "Thread 0x1 (most recent call first): ..."])
def test_a_worker_that_died_late_has_hung_only_if_its_timer_left_word_of_that(
    study: Study, begun: bool, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher_module, "word_of", lambda watch: left)
    searcher = LedgerSearcher(ledger(study, 1), at_once=lambda: 1, limits=Limits(trial_s=0.01), stop=StopFlag())
    searcher.suggest("a")
    if begun:
        searcher.report("a", {"begun": Watch("a node", "a file")})
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    searcher.on_trial_complete("a", error=True)
    assert searcher.fault is None
    hung = begun and bool(left)
    assert reasons(study) == ({0: TIMED_OUT} if hung else {})
    assert study.trials[0].user_attrs.get(LOSSES) == (None if hung else 1)


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


def test_a_trial_that_its_machine_kills_for_its_memory_has_failed_by_its_own_doing(study: Study) -> None:
    books = ledger(study, 1)
    for _ in range(RETRIES + 1):
        number, _, _ = books.ask()
        books.tell_lost(number, "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low", {})
    assert reasons(study) == {0: "out_of_memory"}
    assert books.wanted == 0


def test_epochs_that_end_soon_are_reported_together_and_none_is_left_out() -> None:
    def reports_of(report_every_s: float) -> list[list[int]]:
        worker = TrialWorker.__new__(TrialWorker)
        worker.setup(
            {"request": TrialRequest(0, {"x": 0.5}, seed=3)},
            lambda: None,
            evaluation(nothing, seconds=0.02),
            threads=1,
            report_every_s=report_every_s,
        )
        steps = [worker.step()]
        while "outcome" not in steps[-1]:
            steps.append(worker.step())
        return [[report.epoch for report in step["reports"]] for step in steps]

    assert reports_of(0.0) == [[1], [2], [3], []]
    assert reports_of(60.0) == [[1, 2, 3]]
