"""Driving a study with Ray Tune: a session of Ray, our searcher over the ledger, and reused workers.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError

from metasearch.errors import MetasearchError, StorageError
from metasearch.search.attempts import RETRIES
from metasearch.search.connect import check_reachable, on_loopback
from metasearch.search.ledger import MOST_LOST, Ledger
from metasearch.search.placement import check_share, slots
from metasearch.search.searcher import UNLIMITED, FlagStopper, LedgerSearcher, Limits, Progress, StopByLedger
from metasearch.search.stopping import StopFlag
from metasearch.search.store import storage_errors
from metasearch.search.worker import REPORT_EVERY_S, Evaluate, TrialWorker


@dataclass(frozen=True)
class Resources:
    """What the trials of a search may use. workers: most at once, None for as many as fit.

    threads: of torch, in each worker; a trial takes as many CPUs. gpus: of each trial, fractions share a device.
    address: of a Ray cluster; None starts Ray on this machine. Raises InputError for `gpus` that Ray does not know.
    """

    workers: int | None = None
    threads: int = 1
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        check_share(self.gpus)


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
        with on_loopback():  # "local": else RAY_ADDRESS, or the last `ray start` on this machine, would be joined
            ray.init(address="local", include_dashboard=False, num_cpus=_local_cpus(resources), **logs)
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
    limits: Limits = UNLIMITED,
) -> None:
    """Run trials until the ledger's target is reached or `stop` is set. Ray must be running.

    prepare: called once in every worker; its result is handed to `evaluate` with each request. progress: called after
    every change of the ledger. Raises MetasearchError when MOST_LOST trials in a row were lost to the machine.
    """
    if ledger.wanted <= 0 or stop.is_set():
        return
    _set_up_tune(at_once=_most_at_once(resources))
    searcher = LedgerSearcher(
        ledger,
        at_once=lambda: _most_at_once(resources),
        gpus=resources.gpus,
        limits=limits,
        stop=stop,
        progress=progress or (lambda _: None),
    )
    worker = _worker_class(ledger, evaluate, prepare, resources=resources, limits=limits, announced=searcher.announced)
    try:
        _run_tune(worker, searcher, resources=resources, stop=stop)
    finally:
        if searcher.fault is not None:  # what Tune itself raises after it tells less
            with contextlib.suppress(StorageError), storage_errors(""):  # the fault may be that the storage is away
                ledger.leave_running(searcher.gpu_seconds_of_running())
            raise searcher.fault
    if stop.is_set():
        ledger.leave_running(searcher.gpu_seconds_of_running())
    _check_not_lost(ledger)


def _worker_class(
    ledger: Ledger,
    evaluate: Evaluate,
    prepare: Callable[[], Any],
    *,
    resources: Resources,
    limits: Limits,
    announced: bool,
) -> Any:
    """Return what Tune makes workers of: TrialWorker with its arguments, which are sent once, not with each trial."""
    return tune.with_parameters(
        TrialWorker,
        prepare=prepare,
        evaluate=evaluate,
        threads=resources.threads,
        limit_s=limits.trial_s,
        report_every_s=REPORT_EVERY_S if ledger.halving is None else 0.0,  # early stopping looks at every epoch
        announced=announced,
    )


def _run_tune(worker: Any, searcher: LedgerSearcher, *, resources: Resources, stop: StopFlag) -> None:
    """Let Tune run trials until the searcher has no more or `stop` is set."""
    with tempfile.TemporaryDirectory(prefix="metasearch-") as scratch:
        # tune.run, not tune.Tuner: the Tuner pickles itself, our searcher and the storage's URL with it, into a file.
        tune.run(
            worker,
            name="study",
            search_alg=searcher,
            scheduler=StopByLedger(searcher),
            stop=FlagStopper(stop),
            num_samples=-1,
            resources_per_trial={"cpu": resources.threads, "gpu": resources.gpus},
            reuse_actors=True,
            max_failures=0,  # the ledger runs a lost trial again: Tune gives up on one lost between two trials
            raise_on_failed_trial=False,
            storage_path=scratch,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            verbose=0,
        )


def _check_not_lost(ledger: Ledger) -> None:
    """Raise MetasearchError where MOST_LOST trials in a row were lost to the machine."""
    if ledger.lost_in_a_row >= MOST_LOST:
        raise MetasearchError(
            f"study {ledger.study.study_name}: {ledger.lost_in_a_row} trials in a row were lost to the machine, "
            f"each {RETRIES + 1} times; the last: {ledger.last_lost}; "
            f"nothing finished is lost. Once that is mended: metasearch resume {ledger.study.study_name}"
        )


def _set_up_tune(*, at_once: int) -> None:
    """Have Tune write nothing, leave signals alone, start `at_once` workers together, outlive one without memory."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "inf"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # With Tune's default of 1 workers would start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # Tune (Ray 2.60) knows two kinds of errors of a worker, and ends the search at a third: that Ray killed it, since
    # its node's memory was nearly full. isinstance takes a tuple, too; to Tune it is a worker that died.
    actor_manager.RayActorError = (RayActorError, OutOfMemoryError)
