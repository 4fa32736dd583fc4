"""A search on many slots in little time: the driver's own work is real, the trials' time passes on a virtual clock.

A discrete-event simulation (Law 2015, chapter 1) around the real searcher, ledger, sampler and database. One driver
serves all slots: while it suggests or closes a trial the virtual clock goes on by the seconds that this really takes,
and by what Ray Tune takes per trial, which is measured elsewhere and added. What ends meanwhile waits for it.
"""

from __future__ import annotations

import heapq
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.samplers import make_sampler
from metasearch.search.searcher import LedgerSearcher
from metasearch.search.space import load_space
from metasearch.search.stopping import StopFlag
from metasearch.search.store import create_study, load_study
from metasearch.search.worker import TrialOutcome, TrialRequest
from metasearch.transfer.prior import prior_of
from tests.bench.counting import counted_statements, peak_mb
from tests.fakes import describe

SPACE = "distill_compress"
MEAN_S, SPREAD = 600.0, 0.3
"""Of a trial's seconds, and of their logarithm."""
SEED = 0
EPOCHS = 14
CURVE = tuple(
    EpochReport("distill", epoch, EPOCHS, 2.0 / epoch, 0.7 * epoch / EPOCHS, 400_000, 0.01, 4.0, 0.3)
    for epoch in range(1, EPOCHS + 1)
)


@dataclass(frozen=True)
class Setting:
    """What is simulated. tune_s: Ray Tune's own work per trial. prior: trials of a prior study."""

    sampler: str
    trials: int
    slots: int
    tune_s: float = 0.0
    prior: int = 0


@dataclass
class Course:
    """What came of it. busy: share of the slots' time between the first start and the last in which a trial ran there.

    driver_s, cpu_s: real seconds of each suggestion and each closing, by the wall clock and of this process's CPU.
    asked_s: those of the suggestions alone, by the wall clock. peak_mb: of this process. statements: sent to the
    database, for each trial.
    """

    busy: float = 0.0
    driver_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    statements: float = 0.0


def simulate(storage: RDBStorage, name: str, setting: Setting) -> Course:
    """Run a new study of this name to its end. Raises RuntimeError unless exactly its trials are finished then."""
    space = load_space(SPACE)
    study = create_study(storage, name, replace(describe(Path(), trials=setting.trials), space=space.text))
    priors = [prior_of(_prior_study(setting))] if setting.prior else []
    study.sampler = make_sampler(setting.sampler, seed=SEED, trials_so_far=0, priors=priors, fixed=space.fixed)
    ledger = Ledger(
        study,
        lambda trial: Proposal(space.suggest(trial)),
        target=setting.trials,
        seed=SEED,
        objectives=("val_accuracy", "model_bytes"),
    )
    searcher = LedgerSearcher(ledger, at_once=lambda: setting.slots, stop=StopFlag())
    with counted_statements(storage.engine) as count:
        course = _run(searcher, setting)
    course.statements = count.sent / setting.trials
    if searcher.fault is not None:
        raise searcher.fault
    states = [trial.state.name for trial in load_study(storage, name).trials]
    if states != ["COMPLETE"] * setting.trials:
        raise RuntimeError(f"{states.count('COMPLETE')} of {len(states)} trials are complete, {setting.trials} wanted")
    return course


def _run(searcher: LedgerSearcher, setting: Setting) -> Course:
    rng = np.random.default_rng([SEED, 1])
    durations = np.exp(rng.normal(math.log(MEAN_S) - SPREAD**2 / 2, SPREAD, setting.trials))
    course, now = Course(), 0.0
    starts: list[float] = []
    running: list[tuple[float, int, TrialRequest]] = []  # by their end
    while len(starts) < setting.trials or running:
        due = running and running[0][0] <= now
        request = None
        if not due and len(starts) < setting.trials:
            began = time.perf_counter(), time.process_time()
            suggested = searcher.suggest(str(len(starts)))
            now += _spent(course, began) + setting.tune_s
            request = suggested["request"] if isinstance(suggested, dict) else None
        if request is not None:
            course.asked_s.append(course.driver_s[-1])
            heapq.heappush(running, (now + durations[len(starts)], len(starts), request))
            starts.append(now)
            continue
        if not running:
            break  # a fault: the searcher has nothing to say
        end, index, request = heapq.heappop(running)
        now = max(now, end)
        began = time.perf_counter(), time.process_time()
        searcher.on_trial_complete(str(index), _outcome(request, end - durations[index], end))
        now += _spent(course, began)
    window = starts[-1] - starts[0]
    inside = sum(min(starts[-1], start + durations[index]) - start for index, start in enumerate(starts))
    course.busy = inside / (window * setting.slots) if window else 1.0
    course.peak_mb = peak_mb()
    return course


def _spent(course: Course, began: tuple[float, float]) -> float:
    """Return the wall-clock seconds since `began` and enter them."""
    seconds = time.perf_counter() - began[0]
    course.driver_s.append(seconds)
    course.cpu_s.append(time.process_time() - began[1])
    return seconds


def _outcome(request: TrialRequest, started: float, ended: float) -> dict[str, Any]:
    result = TrialResult(request.config, request.seed, _metrics(request.config, request.seed), curve=CURVE)
    worker = {"node": "simulated", "pid": 1, "started": started, "ended": ended, "seed": request.seed}
    return {"outcome": TrialOutcome(result, None, worker)}


def _metrics(config: dict[str, Any], seed: int) -> dict[str, float]:
    """Return a smooth function of what decides most, and noise."""
    noise = float(np.random.default_rng(seed).normal(0, 0.01))
    size = 300.0 * config["student.width"] ** 2 * config["student.depth"]
    rate = config.get("learning_rate.peak", config.get("learning_rate.start", 0.01))
    accuracy = 1 - 0.5 / (1 + math.log1p(size) / 8) - 0.05 * abs(math.log10(rate / 0.01)) - 0.02 * config["alpha"]
    return {"val_accuracy": accuracy + noise, "model_bytes": round(1.1 * size), "macs": round(40 * size)}


def _prior_study(setting: Setting) -> optuna.Study:
    """Return a study of the same space at random whose accuracies lie a little elsewhere."""
    space = load_space(SPACE)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=make_sampler("random", seed=9, trials_so_far=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["val_accuracy", "model_bytes"])
    for number in range(setting.prior):
        trial = study.ask()
        metrics = _metrics(space.suggest(trial), number)
        study.tell(trial, [metrics["val_accuracy"] - 0.05, metrics["model_bytes"]])
    return study
