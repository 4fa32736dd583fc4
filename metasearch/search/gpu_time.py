"""How much GPU time a study's trials have used: what `--gpu-hours` bounds, over any number of drivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.search.driver_storage import driven
from metasearch.search.names import BEGUN, LEFT, RUN, SPENT
from metasearch.search.patience import PATIENT
from metasearch.search.writing import TrialWriter


def gpu_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Return the GPU-seconds of the trials: of the attempts that ended, and of those before, lost or left."""
    kept = (trial.user_attrs for trial in trials)
    return sum(attempt_seconds(of_trial.get(RUN, {})) + float(of_trial.get(SPENT, 0.0)) for of_trial in kept)


def attempt_seconds(run: Mapping[str, Any]) -> float:
    """Return the GPU-seconds of one attempt: its share of a GPU for as long as it took. run: as a trial keeps it."""
    return float(run["gpus"] * (run["ended"] - run["started"])) if "gpus" in run else 0.0


def settle(study: Study, died: float) -> None:
    """Keep the GPU time of what ran when its driver died without a word of it. died: Unix time, by its own clock."""
    study, spent = driven(study), {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        known = trial.user_attrs
        begun = known.get(BEGUN)
        if begun is None or known.get(LEFT) or RUN in known:
            continue
        seconds = attempt_seconds(begun | {"ended": max(died, begun["started"])})
        spent[trial._trial_id] = {SPENT: known.get(SPENT, 0.0) + seconds, BEGUN: None}
    if spent:
        TrialWriter(study, PATIENT).note(spent, leaving=True)
