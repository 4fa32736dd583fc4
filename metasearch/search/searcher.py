"""Between Ray Tune and the ledger: what Tune asks for, hears of and stops; nothing that it would save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from metasearch.records import EpochReport
from metasearch.search.hanging import Watch, word_of
from metasearch.search.ledger import MOST_LOST, Ledger
from metasearch.search.stopping import StopFlag
from metasearch.search.store import LOST
from metasearch.search.worker import TIMED_OUT, TrialOutcome, TrialRequest

Progress = Callable[[Ledger], None]
GPU_HOURS_USED = "the GPU-hours are used up"


@dataclass(frozen=True)
class Limits:
    """What a search may use at most; None: as much as it needs. trial_s: of each trial's own steps.

    gpu_hours: of all trials of the study, those of earlier drivers too (see `gpu_time.py`).
    """

    trial_s: float | None = None
    gpu_hours: float | None = None


UNLIMITED = Limits()


class _NotSaved:
    """Pickles as nothing: Tune writes its experiment state to a file, where neither study nor URL belongs."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearcher(_NotSaved, Searcher):  # type: ignore[misc]  # ray has no types
    """Hands Tune what the ledger asks, and the ledger what Tune reports.

    at_once: how many trials may run now. gpus: of each. progress: called after every change of the ledger. announced:
    whether trials are to say when they begin, and where: their GPU time counts from then, and a hang is looked for
    there. fault: what went wrong on the driver's side, a storage that is away for instance. Tune would log it, and go
    on as if the trial had failed; here it ends the search.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        at_once: Callable[[], int],
        stop: StopFlag,
        gpus: float = 0.0,
        limits: Limits = UNLIMITED,
        progress: Progress = lambda ledger: None,
    ) -> None:
        super().__init__()
        self._ledger, self._at_once, self._gpus = ledger, at_once, gpus
        self._limits, self._stop, self._progress = limits, stop, progress
        self._numbers: dict[str, int] = {}
        self._curves: dict[int, list[EpochReport]] = {}
        self._started: dict[int, float] = {}
        self._ended_early: set[str] = set()
        self._watches: dict[str, Watch | None] = {}
        self._causes: dict[str, str] = {}
        self.announced = limits.trial_s is not None or gpus > 0
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
        if self._ledger.wanted <= 0 or running >= self._at_once():
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
                number, now = self._numbers[trial_id], time.time()
                self._started[number], self._watches[trial_id] = now, result["begun"]
                if self._gpus:
                    self._ledger.tell_begun(number, {"started": now, "gpus": self._gpus})
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
        worker = {"started": self._started.get(number, ended), "ended": ended, "gpus": self._gpus}
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
            # Where others are at work it is the fault of one node, and a worker of theirs takes the trial.
            counts = outcome.opened or not self._others_at_work()
            self._ledger.tell_lost(number, outcome.failure["message"], worker | outcome.worker, counts=counts)
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

    def _others_at_work(self) -> bool:
        """Whether a trial has begun, as far as is known, and has not ended."""
        return any(self._curves.values()) or (self.announced and bool(self._started))

    def _stop_if_used(self) -> None:
        """End the search where the study's trials, those of earlier drivers too, have used its GPU-hours."""
        hours = self._limits.gpu_hours
        if hours is not None and self._ledger.gpu_seconds >= 3600 * hours:
            self._stop.end_trials(GPU_HOURS_USED)

    def gpu_seconds_of_running(self) -> dict[int, float]:
        """Return the GPU time of the trials that have begun and not ended, by their numbers."""
        return {number: (time.time() - since) * self._gpus for number, since in self._started.items()}

    @contextlib.contextmanager
    def _faults_kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fault = self.fault or error
            self._stop.set("a fault")

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing: the study is the state."""


class StopByLedger(_NotSaved, FIFOScheduler):  # type: ignore[misc]  # ray has no types
    """First in, first out; stops a trial when the ledger says so."""

    def __init__(self, searcher: LedgerSearcher) -> None:
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
        if trial.error_file is None:  # nothing was written of it
            return
        with open(trial.error_file, encoding="utf-8") as file:  # a line that numbers the failure, then the error
            cause = " ".join(file.read().partition("\n")[2].split())
        self._searcher.note_cause(trial.trial_id, cause[:500])


class FlagStopper(_NotSaved, tune.Stopper):  # type: ignore[misc]  # ray has no types
    """Ends the experiment when the flag is set."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the experiment."""
        return self._stop.is_set()
