"""Trials of a parameter `x` that take moments: what a test lets happen to them is all that does.

Workers import this module with what they are sent of it, so it imports little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.store import FAILURE, is_finished
from metasearch.search.worker import Evaluate, TrialRequest
from tests.fakes import new_storage

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


def new_study(folder: Path) -> Study:
    """Return an empty study of two objectives in a storage of its own."""
    storage = new_storage(f"sqlite:///{folder / 'studies.db'}")
    return optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])


def ledger(study: Study, target: int, **options: Any) -> Ledger:
    from metasearch.search.samplers import make_sampler  # SciPy takes long

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
