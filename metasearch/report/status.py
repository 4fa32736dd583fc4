"""Where a study stands, trial by trial and with its driver."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from metasearch.search.lease import holder_of
from metasearch.search.store import FAILURE, description_of, is_finished


def status_of(study: Study) -> dict[str, Any]:
    """Return where a study stands: counts by state, failures by reason, target, its driver, and the rate."""
    description = description_of(study)
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if is_finished(trial)]
    failures: dict[str, int] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL:
            reason = trial.user_attrs.get(FAILURE, {}).get("reason", "unknown")
            failures[reason] = failures.get(reason, 0) + 1
    return {
        "study": study.study_name,
        "task": description.task["text"],
        "trials": description.trials,
        "finished": len(finished),
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "failures": failures,
        "driver": holder_of(study),
        "teacher": study.user_attrs.get("teacher"),
    }
