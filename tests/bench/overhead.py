"""What a trial costs that does nothing: our runner beside Ray Tune used as its documentation teaches.

Both run the same trivial trials of two objectives on two slots, each in a process and a Ray of its own. The seconds
are those between two moments that Optuna itself records on both sides: the first trial is asked for (before the
process that will run it is started) and the last is told. ray.init lies outside.

A side is started by `run` as `python -m tests.bench.overhead ours|plain TRIALS RESULT_FILE`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.runner import Resources, drive
from metasearch.search.samplers import make_sampler
from metasearch.search.stopping import StopFlag
from metasearch.search.store import open_storage
from metasearch.search.worker import TrialRequest
from tests.bench.sides import SLOTS, Measured, Verdict, common_rows, conditions, print_table, run_side, start_ray

TRIALS, QUICK_TRIALS = 60, 6
TARGET = 15
"""Plain seconds per trial must be at least so many times ours."""
SEED = 0
OBJECTIVES = ("loss", "cost")


def run(*, quick: bool) -> Verdict:
    """Measure both sides and print the table."""
    trials = QUICK_TRIALS if quick else TRIALS
    before = conditions()
    ours, plain = (run_side("tests.bench.overhead", side, str(trials)) for side in ("ours", "plain"))
    ratio = plain["seconds"] / ours["seconds"]
    rows = [
        ("seconds a trial", *(f"{side['seconds'] / trials:.3f}" for side in (ours, plain))),
        ("seconds, first trial asked to last told", *(f"{side['seconds']:.2f}" for side in (ours, plain))),
        ("seconds, call to return", *(f"{side['call_seconds']:.2f}" for side in (ours, plain))),
        ("worker processes", *(str(side["processes"]) for side in (ours, plain))),
        *common_rows(ours, plain),
    ]
    notes = [
        before,
        f"{trials} trials, two objectives, {SLOTS} at once, TPE with seed {SEED}; torch imported in every worker",
        "ours: metasearch.search.runner.drive, study in a fresh SQLite file; "
        "plain: tune.Tuner over a function, OptunaSearch in memory, default loggers",
    ]
    print_table("Overhead of a trial", ("", "ours", "plain Tune"), rows, notes)
    text = f"{ratio:.1f} times less a trial than plain Tune (target: at least {TARGET})"
    return Verdict("overhead", None if quick else ratio >= TARGET, text)


def ours(trials: int) -> Measured:
    """Run the trials through our runner."""
    start_ray()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        study = optuna.create_study(
            storage=open_storage(f"sqlite:///{folder}/studies.db", create=True),
            directions=["minimize"] * len(OBJECTIVES),
            sampler=make_sampler("tpe", seed=SEED, trials_so_far=0),
        )
        ledger = Ledger(study, _propose, target=trials, seed=SEED, objectives=OBJECTIVES)
        called = time.time()
        drive(ledger, _evaluate, _import_torch, resources=Resources(workers=SLOTS), stop=StopFlag())
        returned = time.time()
        processes = {trial.user_attrs["run"]["pid"] for trial in study.trials}
        return _measured(study, trials, len(processes), returned - called)


def _propose(trial: optuna.Trial) -> Proposal:
    return Proposal({"x": trial.suggest_float("x", -4, 4), "y": trial.suggest_float("y", 0, 1)})


def _import_torch() -> Any:
    import torch

    return torch


def _evaluate(request: TrialRequest, torch: Any) -> Generator[EpochReport, None, TrialResult]:
    yield from ()
    x, y = torch.tensor(request.config["x"]), request.config["y"]
    metrics = {"loss": float(x**2 + y), "cost": float((x - 2) ** 2 + y)}
    return TrialResult(config=request.config, seed=request.seed, metrics=metrics)


def plain(trials: int) -> Measured:
    """Run the trials as https://docs.ray.io/en/latest/tune/examples/optuna_example.html does."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    start_ray()
    storage = optuna.storages.InMemoryStorage()  # OptunaSearch's default, in our hands to read the times from
    # Left to itself, Tune writes below ~/ray_results; a folder that can be removed changes nothing else.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        searcher = OptunaSearch(metric=list(OBJECTIVES), mode=["min", "min"], storage=storage, seed=SEED)
        tuner = tune.Tuner(
            tune.with_resources(_objective, {"cpu": 1}),
            param_space={"x": tune.uniform(-4, 4), "y": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=trials, max_concurrent_trials=SLOTS),
            run_config=tune.RunConfig(storage_path=folder),
        )
        called = time.time()
        results = tuner.fit()
        returned = time.time()
    study = optuna.load_study(study_name="optuna", storage=storage)
    return _measured(study, trials, len({result.metrics["pid"] for result in results}), returned - called)


def _objective(config: dict[str, float]) -> None:
    import torch
    from ray import tune

    x, y = torch.tensor(config["x"]), config["y"]
    tune.report({"loss": float(x**2 + y), "cost": float((x - 2) ** 2 + y)})


def _measured(study: optuna.Study, trials: int, processes: int, call_seconds: float) -> Measured:
    """Return the times of a study whose trials are all complete with two finite values; raise RuntimeError else."""
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE and len(t.values) == len(OBJECTIVES)]
    if len(complete) != trials or len(study.trials) != trials:
        raise RuntimeError(f"{len(complete)} of {len(study.trials)} trials are complete, {trials} wanted")
    starts = [t.datetime_start.timestamp() for t in complete if t.datetime_start is not None]
    ends = [t.datetime_complete.timestamp() for t in complete if t.datetime_complete is not None]
    return {"seconds": max(ends) - min(starts), "call_seconds": call_seconds, "processes": processes}


SIDES = {"ours": ours, "plain": plain}


def main() -> None:
    """Run the side that the command line names and write what was measured."""
    side, trials, result = sys.argv[1:]
    Path(result).write_text(json.dumps(SIDES[side](int(trials))), encoding="utf-8")


if __name__ == "__main__":
    main()
