"""The Ray Tune worker: one process that runs trial after trial, some epochs a step.

The task is opened once per process (memory-mapped), the teacher's logits come from Ray's object store without a copy.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from metasearch.errors import MetasearchError, TrialFailure
from metasearch.records import Config, EpochReport, TrialResult
from metasearch.search.hanging import HangTimer, Watch, disarm, machines_turn
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

    Of that, `inside_s` seconds were spent in its own steps, the rest on the way between worker and driver. opened:
    whether what trials share was there, else the trial never began.
    """

    result: TrialResult | None
    failure: dict[str, str] | None
    worker: dict[str, Any] = field(default_factory=dict)
    opened: bool = True


GRACE_S = 10.0
"""A trial past its time limit is ended between two epochs; one that hangs so much longer, with its process."""
TIMED_OUT = "timed_out"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 10.0
"""Of the pauses before a process that cannot be prepared gives a trial back; each is twice the one before. The twelve
losses that end a search of one such process take 4 s, and one bad node among good ones keeps nobody busy."""
BROKEN_EXIT = 70
"""The exit status of a process that can run no further trial."""
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
        announced: bool = False,
    ) -> None:
        """Make the process ready; what every trial shares is opened by the first one.

        limit_s: of each trial's own steps. report_every_s: epochs that end sooner are reported together. announced:
        whether the first step of a trial only says that it begins, and where; each takes a turn of the driver's.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self._prepare: Callable[[], Any] | None = prepare
        self._evaluate, self._report_every_s, self._announced = evaluate, report_every_s, announced
        self._timer = None if limit_s is None else HangTimer()
        self._limit_s = math.inf if limit_s is None else limit_s
        self._broken, self._pause_s = False, FIRST_PAUSE_S
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial (Ray Tune's hook for reused actors)."""
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Leave nothing behind (Ray Tune's hook at the end of an actor)."""
        if self._timer is not None:
            self._timer.close()

    def step(self) -> dict[str, Any]:
        """Begin a trial, or train an epoch, or as many as end in time; return their reports, the outcome at the end."""
        if self._steps is None:
            failure = self._open()
            if failure is None and self._announced:
                return {"begun": self._watch()}
            if failure is not None:
                return {"reports": [], "outcome": self._outcome(None, failure, opened=False), "done": True}
        reports: list[EpochReport] = []
        outcome = self._train(reports)
        # in a list: Tune flattens dicts
        return {"reports": reports} if outcome is None else {"reports": reports, "outcome": outcome, "done": True}

    def _open(self) -> dict[str, str] | None:
        """Begin the trial, its clock too, once what trials share is there; return why that could not be opened.

        A broken process ends instead: this trial is lost once, and runs again in a new one.
        """
        if self._broken:
            self.cleanup()
            os._exit(BROKEN_EXIT)
        if self._prepare is not None:
            try:
                with machines_turn():
                    self._shared = self._prepare()
            except (MetasearchError, OSError) as error:  # no configuration did it; the next trial tries again
                return self._unopened(f"{type(error).__name__}: {error}")
            except Exception as error:  # nor this, but it may be a fault of the code
                return self._unopened(_with_traceback(error))
            self._prepare = None
        self._started = time.time()
        self._steps = self._evaluate(self._request, self._shared)
        return None

    def _unopened(self, message: str) -> dict[str, str]:
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return {"reason": LOST, "message": message}

    def _watch(self) -> Watch | None:
        return None if self._timer is None else Watch(ray.get_runtime_context().get_node_id(), self._timer.path)

    def _train(self, reports: list[EpochReport]) -> TrialOutcome | None:
        """Add the reports of some epochs; return the outcome of the trial if it has ended."""
        until = time.monotonic() + self._report_every_s
        try:
            while not reports or time.monotonic() < until:
                if self._inside_s > self._limit_s:
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
            self._broken = _cuda_is_broken()
            return self._outcome(None, {"reason": "error", "message": _with_traceback(error)})
        return None

    def _advance(self) -> EpochReport:
        assert self._steps is not None
        entered = time.perf_counter()
        if self._timer is not None:  # for this epoch: between two of them the worker only waits for the driver
            self._timer.arm(max(0.0, self._limit_s - self._inside_s) + GRACE_S)
        try:
            return next(self._steps)
        finally:
            if self._timer is not None:
                disarm()
            self._inside_s += time.perf_counter() - entered

    def _begin(self, config: dict[str, Any]) -> None:
        self._request: TrialRequest = config["request"]
        self._started, self._inside_s = time.time(), 0.0
        self._steps = None

    def _outcome(
        self, result: TrialResult | None, failure: dict[str, str] | None, *, opened: bool = True
    ) -> TrialOutcome:
        worker = {
            "node": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "ended": time.time(),
            "inside_s": self._inside_s,
            "seed": self._request.seed,
        }
        return TrialOutcome(result, failure, worker, opened)


def _cuda_is_broken() -> bool:
    """Whether this process can use its GPU no more: after a failed assertion on the device, or an illegal access, every
    call of CUDA raises for as long as the process lives.
    """
    torch = sys.modules.get("torch")  # which a trial that never used it does not load
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _with_traceback(error: Exception) -> str:
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
