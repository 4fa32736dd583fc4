"""Driving a study with Ray Tune: our searcher over the ledger, reused workers, and one way to stop.

Ray Tune schedules processes and nothing else: its own searchers, loggers, progress output and experiment state are
left aside; the ledger (an Optuna study in a database) is what a search resumes from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from metasearch.errors import MetasearchError
from metasearch.records import EpochReport
from metasearch.search.connect import check_reachable
from metasearch.search.hanging import Watch, word_of
from metasearch.search.ledger import MOST_LOST, RETRIES, Ledger
from metasearch.search.placement import slots
from metasearch.search.store import LOST
from metasearch.search.worker import REPORT_EVERY_S, TIMED_OUT, Evaluate, TrialOutcome, TrialRequest, TrialWorker

Progress = Callable[[Ledger], None]


@dataclass(frozen=True)
class Resources:
    """What the trials of a search may use. workers: most at once, None for as many as fit.

    threads: of torch, in each worker; a trial takes as many CPUs. gpus: of each trial, fractions share a device.
    address: of a Ray cluster; None starts Ray on this machine.
    """

    workers: int | None = None
    threads: int = 1
    gpus: float = 0.0
    address: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a search may use at most; None: as much as it needs. trial_s: of each trial's own steps.

    gpu_hours: of all trials of the study, those of earlier drivers too (see `gpu_time.py`).
    """

    trial_s: float | None = None
    gpu_hours: float | None = None


GPU_HOURS_USED = "the GPU-hours are used up"


class StopFlag:
    """Set once, with a reason, by a signal, the time limit, another process or a fault; read by the Tune loop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """Ask the search to stop; the first reason stays."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def clear(self) -> None:
        """Take the request back."""
        self._event.clear()
        self.reason = ""

    def is_set(self) -> bool:
        """Whether the search is to stop."""
        return self._event.is_set()


@contextlib.contextmanager
def stopping_on_signals(stop: StopFlag) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a clean stop; a second one interrupts at once."""

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set("interrupted" if number == signal.SIGINT else "terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ray_running(resources: Resources) -> Iterator[None]:
    """Connect to the cluster at the address, or run Ray on this machine for as long as the block lasts.

    Raises MetasearchError for a cluster that does not answer, or refuses us.
    """
    if ray.is_initialized():
        yield
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    logs: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if resources.address is None:
        ray.init(include_dashboard=False, num_cpus=_local_cpus(resources), **logs)
    else:
        check_reachable(resources.address)
        try:
            ray.init(address=resources.address, **logs)
        except (ConnectionError, RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise MetasearchError(f"Ray at {resources.address}: {cause}; outside its nodes use --submit") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # ray.init takes SIGTERM, and would exit where it stands
    try:
        yield
    finally:
        ray.shutdown()


def _local_cpus(resources: Resources) -> int:
    available = len(os.sched_getaffinity(0))
    return max(available, (resources.workers or 1) * resources.threads)


def _most_at_once(resources: Resources) -> int:
    """Return how many trials may run at once: as asked, else as many as fit the nodes that are there now.

    At least one, which waits where none fits: an autoscaler starts a node for it.
    """
    if resources.workers is not None:
        return resources.workers
    return max(1, slots(ray.nodes(), cpus=resources.threads, gpus=resources.gpus))


def drive(
    ledger: Ledger,
    evaluate: Evaluate,
    prepare: Callable[[], Any],
    *,
    resources: Resources,
    stop: StopFlag,
    progress: Progress | None = None,
    limits: Limits = Limits(),
) -> None:
    """Run trials until the ledger's target is reached or `stop` is set. Ray must be running.

    prepare: called once in every worker; its result is handed to `evaluate` with each request. progress: called after
    every change of the ledger. Raises MetasearchError when MOST_LOST trials in a row were lost to the machine.
    """
    if stop.is_set():
        ledger.leave_running()
    if ledger.wanted <= 0 or stop.is_set():
        return
    _set_up_tune(at_once=_most_at_once(resources))
    searcher = _LedgerSearcher(ledger, resources, limits, stop, progress or (lambda _: None))
    worker = tune.with_parameters(
        TrialWorker,
        prepare=prepare,
        evaluate=evaluate,
        threads=resources.threads,
        limit_s=limits.trial_s,
        report_every_s=REPORT_EVERY_S if ledger.halving is None else 0.0,  # early stopping looks at every epoch
        announced=searcher.announced,
    )
    with tempfile.TemporaryDirectory(prefix="metasearch-") as scratch:
        # tune.run, not tune.Tuner: the Tuner pickles itself, our searcher and the storage's URL with it, into a file.
        tune.run(
            worker,
            name="study",
            search_alg=searcher,
            scheduler=_StopByLedger(searcher),
            stop=_FlagStopper(stop),
            num_samples=-1,
            resources_per_trial={"cpu": resources.threads, "gpu": resources.gpus},
            reuse_actors=True,
            max_failures=0,  # the ledger runs a lost trial again: Tune gives up on one lost between two trials
            raise_on_failed_trial=False,
            storage_path=scratch,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            verbose=0,
        )
    if searcher.fault is not None:
        raise searcher.fault
    if stop.is_set():
        ledger.leave_running(searcher.gpu_seconds_of_running())
    if ledger.lost_in_a_row >= MOST_LOST:
        raise MetasearchError(
            f"study {ledger.study.study_name}: {ledger.lost_in_a_row} trials in a row were lost to the machine, "
            f"each {RETRIES + 1} times; the last: {ledger.last_lost}; "
            f"nothing finished is lost. Once that is mended: metasearch resume {ledger.study.study_name}"
        )


def _set_up_tune(*, at_once: int) -> None:
    """Have Tune write nothing, leave signals alone, and start `at_once` workers together."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "inf"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # With Tune's default of 1 workers would start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


class _NotSaved:
    """Pickles as nothing: Tune writes its experiment state to a file, where neither study nor URL belongs."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _LedgerSearcher(_NotSaved, Searcher):  # type: ignore[misc]  # ray has no types
    """Hands Tune what the ledger asks, and the ledger what Tune reports.

    announced: whether trials are to say when they begin: their GPU time counts from there, and there a hang is looked
    for. fault: what went wrong on the driver's side, a storage that is away for instance. Tune would log it, and go on
    as if the trial had failed; here it ends the search.
    """

    def __init__(
        self, ledger: Ledger, resources: Resources, limits: Limits, stop: StopFlag, progress: Progress
    ) -> None:
        super().__init__()
        self._ledger, self._resources, self._limits, self._stop = ledger, resources, limits, stop
        self._progress = progress
        self._numbers: dict[str, int] = {}
        self._curves: dict[int, list[EpochReport]] = {}
        self._started: dict[int, float] = {}
        self._ended_early: set[str] = set()
        self._watches: dict[str, Watch | None] = {}
        self._causes: dict[str, str] = {}
        self.announced = limits.trial_s is not None or resources.gpus > 0
        self.fault: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next request, None while no more may run, FINISHED when nothing is left to ask."""
        with self._faults_kept():
            if not self._stop.is_set():
                return self._next_request(trial_id)
        return str(Searcher.FINISHED)

    def _next_request(self, trial_id: str) -> dict[str, Any] | str | None:
        self._stop_if_used()
        running = len(self._ledger.running)
        if self._stop.is_set() or (self._ledger.wanted <= 0 and not running):
            return str(Searcher.FINISHED)
        if self._ledger.wanted <= 0 or running >= _most_at_once(self._resources):
            return None
        number, proposal, seed = self._ledger.ask()
        self._numbers[trial_id], self._curves[number] = number, []
        if not self.announced:
            self._started[number] = time.time()
        request = TrialRequest(
            number, proposal.config, seed, folder=self._ledger.folder_of(number), read_test=proposal.read_test
        )
        self._progress(self._ledger)
        return {"request": request}

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take reports as they arrive; return whether the trial should go on."""
        with self._faults_kept():
            if "begun" in result:
                self._started[self._numbers[trial_id]], self._watches[trial_id] = time.time(), result["begun"]
            self._enter_reports(trial_id, result)
            self._progress(self._ledger)
        return trial_id not in self._ended_early

    def _enter_reports(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        for report in result.get("reports", ()):
            self._curves[number].append(report)
            if not self._ledger.report(number, report):
                self._ended_early.add(trial_id)
                return

    def note_cause(self, trial_id: str, cause: str) -> None:
        """Take in why a trial is about to be lost."""
        self._causes[trial_id] = cause

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Close the books on a trial, or leave it running for the next driver to adopt if the search is stopping."""
        with self._faults_kept():
            self._close(trial_id, result or {}, error)

    def _close(self, trial_id: str, result: dict[str, Any], error: bool) -> None:
        if "outcome" in result:  # else Tune has shown these reports before
            self._enter_reports(trial_id, result)
        number = self._numbers.pop(trial_id)
        ended = time.time()
        worker = {"started": self._started.get(number, ended), "ended": ended, "gpus": self._resources.gpus}
        outcome: TrialOutcome | None = result.get("outcome")
        lost = outcome is not None and outcome.failure is not None and outcome.failure["reason"] == LOST
        curve = self._curves.pop(number)
        if (error or lost) and self._stop.is_set():
            return  # the trial is left to the next driver, whatever stops this one
        self._started.pop(number, None)
        watch = self._watches.pop(trial_id, None)
        if error and watch is not None and (stood := word_of(watch)):
            message = f"took longer than its {self._limits.trial_s:.0f} s, and hung: its process was ended\n{stood}"
            self._ledger.tell_failure(number, TIMED_OUT, message, worker)
        elif error:
            self._ledger.tell_lost(number, self._causes.pop(trial_id, "no cause given"), worker)
        elif lost and outcome is not None and outcome.failure is not None:
            self._ledger.tell_lost(number, outcome.failure["message"], worker | outcome.worker)
        elif outcome is not None and outcome.result is not None:
            self._ledger.tell_result(number, outcome.result, worker | outcome.worker)
        elif outcome is not None and outcome.failure is not None:
            self._ledger.tell_failure(
                number, outcome.failure["reason"], outcome.failure["message"], worker | outcome.worker
            )
        elif trial_id in self._ended_early:
            where = {"node": result.get("hostname"), "pid": result.get("pid")}
            self._ledger.tell_pruned(number, curve, worker | where)
        if self._ledger.lost_in_a_row >= MOST_LOST:
            self._stop.set("too many trials were lost")
        self._stop_if_used()
        self._progress(self._ledger)

    def _stop_if_used(self) -> None:
        hours = self._limits.gpu_hours
        if hours is not None and self._ledger.gpu_seconds >= 3600 * hours:
            self._stop.set(GPU_HOURS_USED)

    def gpu_seconds_of_running(self) -> dict[int, float]:
        """Return the GPU time of the trials that have begun and not ended, by their numbers."""
        return {number: (time.time() - since) * self._resources.gpus for number, since in self._started.items()}

    @contextlib.contextmanager
    def _faults_kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fault = self.fault or error
            self._stop.set("a fault")

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing: the study is the state."""


class _StopByLedger(_NotSaved, FIFOScheduler):  # type: ignore[misc]  # ray has no types
    """First in, first out; stops a trial when the ledger says so."""

    def __init__(self, searcher: _LedgerSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none: Tune's queue then gives a free worker the next new trial.

        The first in line may have a worker of its own on the way. Chosen here it would take the free one, and Tune
        would kill the other as it starts, over and over: with short trials the second worker never came to work.
        """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether Tune should continue with the trial."""
        goes_on = self._searcher.report(trial.trial_id, result)
        return str(FIFOScheduler.CONTINUE if goes_on else FIFOScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Hand the cause on: Tune tells a searcher only that there was an error, and its callbacks too late."""
        with open(trial.error_file, encoding="utf-8") as file:  # a line that numbers the failure, then the error
            cause = " ".join(file.read().partition("\n")[2].split())
        self._searcher.note_cause(trial.trial_id, cause[:500])


class _FlagStopper(_NotSaved, tune.Stopper):  # type: ignore[misc]  # ray has no types
    """Ends the experiment when the flag is set."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the experiment."""
        return self._stop.is_set()
