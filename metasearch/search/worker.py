"""The Ray Tune worker: one process that runs trial after trial, some epochs a step.

The task is opened once per process (memory-mapped), the teacher's logits come from Ray's object store without a copy.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from metasearch.errors import MetasearchError, TrialFailure
from metasearch.records import Config, EpochReport, TrialResult
from metasearch.search.store import LOST

Evaluate = Callable[["TrialRequest", Any], Generator[EpochReport, None, TrialResult]]
"""evaluate(request, shared) yields a report an epoch and returns the result; shared is what `prepare` made."""


@dataclass(frozen=True)
class TrialRequest:
    """What a worker is asked to run. folder: or URL, where its artefacts go; None for nowhere."""

    number: int
    config: Config
    seed: int
    folder: str | None = None
    read_test: bool = False


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial: a result, or a failure (LOST: the machine's); and where and when (Unix time) it ran.

    Of that, `inside_s` seconds were spent in its own steps, the rest on the way between worker and driver.
    """

    result: TrialResult | None
    failure: dict[str, str] | None
    worker: dict[str, Any] = field(default_factory=dict)


GRACE_S = 10.0
"""A trial past its time limit is ended between two epochs; one that has hung so much later, with its process."""
TIMED_OUT = "timed_out"
REPORT_EVERY_S = 0.5
"""Between reports, at least: each takes a turn of the driver's, for which the worker waits."""


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # ray has no types
    """Runs requests through `evaluate`; reused for the next trial by `reset_config`."""

    _steps: Generator[EpochReport, None, TrialResult] | None

    def setup(
        self,
        config: dict[str, Any],
        prepare: Callable[[], Any],
        evaluate: Evaluate,
        threads: int,
        limit_s: float | None = None,
        report_every_s: float = 0.0,
    ) -> None:
        """Make the process ready; what every trial shares is opened by the first one.

        limit_s: of each trial. report_every_s: epochs that end sooner are reported together.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self._prepare: Callable[[], Any] | None = prepare
        self._evaluate, self._limit_s, self._report_every_s = evaluate, limit_s, report_every_s
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial (Ray Tune's hook for reused actors)."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch, or as many as end in time; return their reports, and the outcome at the end."""
        reports: list[EpochReport] = []
        outcome = self._train(reports)
        # in a list: Tune flattens dicts
        return {"reports": reports} if outcome is None else {"reports": reports, "outcome": outcome, "done": True}

    def _train(self, reports: list[EpochReport]) -> TrialOutcome | None:
        """Add the reports of some epochs; return the outcome of the trial if it has ended."""
        if self._prepare is not None:
            try:
                self._shared = self._prepare()
            except Exception as error:  # whatever it is, no configuration did it; the next trial tries again
                return self._outcome(None, {"reason": LOST, "message": f"{type(error).__name__}: {error}"})
            self._prepare = None
            self._start_clock()
        until = time.monotonic() + self._report_every_s
        try:
            while not reports or time.monotonic() < until:
                if self._limit_s is not None and time.time() - self._started > self._limit_s:
                    message = f"took longer than its {self._limit_s:.0f} s"
                    return self._outcome(None, {"reason": TIMED_OUT, "message": message})
                reports.append(self._advance())
        except StopIteration as finished:
            return self._outcome(finished.value, None)
        except TrialFailure as failure:
            return self._outcome(None, {"reason": failure.reason, "message": failure.message})
        except MetasearchError as error:
            return self._outcome(None, {"reason": "refused", "message": str(error)})
        except OSError as error:  # a full or vanished disk is the machine's fault, whatever the configuration
            return self._outcome(None, {"reason": LOST, "message": f"{type(error).__name__}: {error}"})
        except (
            Exception
        ) as error:  # a fault in a trial's code: recorded with its traceback, told at the end, not retried
            message = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return self._outcome(None, {"reason": "error", "message": message})
        return None

    def _advance(self) -> EpochReport:
        entered = time.perf_counter()
        try:
            self._steps = self._steps or self._evaluate(self._request, self._shared)
            return next(self._steps)
        finally:
            self._inside_s += time.perf_counter() - entered

    def _begin(self, config: dict[str, Any]) -> None:
        self._request: TrialRequest = config["request"]
        self._inside_s = 0.0
        self._steps = None
        self._start_clock()

    def _start_clock(self) -> None:
        self._started = time.time()
        if self._limit_s is not None:  # of C, not of Python: it ends a process that holds the interpreter's lock, too
            faulthandler.dump_traceback_later(self._limit_s + GRACE_S, exit=True, file=sys.__stderr__ or sys.stderr)

    def _outcome(self, result: TrialResult | None, failure: dict[str, str] | None) -> TrialOutcome:
        faulthandler.cancel_dump_traceback_later()
        worker = {
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "ended": time.time(),
            "inside_s": self._inside_s,
            "seed": self._request.seed,
        }
        return TrialOutcome(result, failure, worker)
