"""One worker process, without Ray: what it makes of its trials and their time, and what the driver makes of its end."""

from __future__ import annotations

import errno
import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from optuna.study import Study

from metasearch import run as run_module
from metasearch.errors import InputError, TrialFailure
from metasearch.pipeline import Shared, pipeline_steps
from metasearch.records import EpochReport, TrialResult
from metasearch.search import pipeline_worker
from metasearch.search import searcher as searcher_module
from metasearch.search.attempts import RETRIES
from metasearch.search.hanging import MACHINE_S, Watch
from metasearch.search.ledger import MOST_LOST
from metasearch.search.searcher import LedgerSearcher, Limits, StopByLedger
from metasearch.search.stopping import StopFlag
from metasearch.search.store import LOSSES
from metasearch.search.worker import LONGEST_PAUSE_S, TIMED_OUT, Evaluate, TrialOutcome, TrialRequest, TrialWorker
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import Teacher
from tests.search.driving import Steps, evaluation, ledger, new_study, nothing, prepared, reasons


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return new_study(tmp_path)


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


def test_a_process_that_cannot_be_prepared_pauses_ever_longer_and_soon_ends_a_search_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise FileNotFoundError("the data set has gone")

    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    worker = worker_of(evaluation(nothing), missing)
    for number in range(20):
        assert not worker.step()["outcome"].opened
        worker.reset_config({"request": TrialRequest(number, {"x": 0.5}, seed=3)})
    assert pauses == sorted(pauses)
    assert sum(pauses[: MOST_LOST * (RETRIES + 1)]) < 5
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize("announced", [False, True])
def test_one_node_whose_workers_cannot_be_prepared_stops_no_search_of_others_that_are_at_work(
    study: Study, announced: bool
) -> None:
    stop, limits = StopFlag(), Limits(trial_s=60.0 if announced else None)
    books = ledger(study, 9)
    searcher = LedgerSearcher(books, at_once=lambda: 2, limits=limits, stop=stop)
    unopened = TrialOutcome(None, {"reason": "lost", "message": "no data"}, opened=False)
    searcher.suggest("good")
    epoch = EpochReport("distill", 1, 3, 0.1, 0.5, 10, 0.1, 1.0, 0.1)
    searcher.report("good", {"begun": None} if announced else {"reports": [epoch]})
    for index in range(20):
        searcher.suggest(f"bad{index}")
        searcher.on_trial_complete(f"bad{index}", {"outcome": unopened})
    assert not stop.is_set()
    assert (reasons(study), LOSSES in study.trials[1].user_attrs) == ({}, False)
    result = TrialResult({"x": 0.5}, 3, {"val_accuracy": 0.5, "macs": 1.0})
    searcher.on_trial_complete("good", {"outcome": TrialOutcome(result, None)})
    for index in range(MOST_LOST * (RETRIES + 1)):  # now it alone is there
        assert not stop.is_set()
        searcher.suggest(f"worse{index}")
        searcher.on_trial_complete(f"worse{index}", {"outcome": unopened})
    assert searcher.fault is None
    assert stop.reason == "too many trials were lost"


@pytest.mark.parametrize("sticky", [False, True])
def test_a_process_whose_cuda_is_broken_ends_as_the_next_trial_begins_there(
    sticky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(request: TrialRequest, epoch: int) -> None:
        if request.number == 0:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def synchronize() -> None:
        if sticky:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(os, "_exit", leave)
    worker = worker_of(evaluation(act))
    assert worker.step()["outcome"].failure["reason"] == "error"
    worker.reset_config({"request": TrialRequest(1, {"x": 0.5}, seed=3)})
    with pytest.raises(SystemExit) if sticky else nullcontext():
        assert "outcome" not in worker.step()


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
