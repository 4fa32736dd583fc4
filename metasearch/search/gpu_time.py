"""How much GPU time a study's trials have used: what `--gpu-hours` bounds, over any number of drivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from metasearch.search.names import RUN, SPENT


def gpu_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Return the GPU-seconds of the trials: of the attempts that ended, and of those before, lost or left."""
    kept = (trial.user_attrs for trial in trials)
    return sum(attempt_seconds(of_trial.get(RUN, {})) + float(of_trial.get(SPENT, 0.0)) for of_trial in kept)


def attempt_seconds(run: Mapping[str, Any]) -> float:
    """Return the GPU-seconds of one attempt: its share of a GPU for as long as it took. run: as a trial keeps it."""
    return float(run["gpus"] * (run["ended"] - run["started"])) if "gpus" in run else 0.0
