"""Writing to a driven study's trials: what belongs together at once, and again while the storage is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.records import TrialResult
from metasearch.search.attempts import RETRIES
from metasearch.search.driver_storage import written_together
from metasearch.search.names import CURVE, FAILURE, LOST, RESULT
from metasearch.search.patience import Patience

LEAVE_S = 20.0
"""How long, at most, a driver that is to stop tries to write what it leaves, while the storage is away."""


class TrialWriter:
    """Writes how trials of a study end, and what is to be known of those that go on. patience: with its storage."""

    def __init__(self, study: Study, patience: Patience) -> None:
        self._study, self._patience = study, patience

    def end(
        self,
        trial: optuna.Trial,
        attributes: Mapping[str, Any],
        *,
        values: Sequence[float] | None = None,
        violations: Mapping[str, float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        """Write how a trial ended: its attributes first, from which the next driver can tell, too, if this one dies."""

        def write(again: bool) -> None:
            if again and self._study._storage.get_trial(trial._trial_id).state.is_finished():
                return  # only the answer was lost
            with written_together(self._study):
                for name, violation in (violations or {}).items():
                    trial.set_constraint(name, violation)
                for name, value in attributes.items():
                    trial.set_user_attr(name, value)
                self._study.tell(trial, values, state=state)

        self._patience.retried(write)

    def end_untold(self, trial: FrozenTrial, objectives: Sequence[str]) -> None:
        """End a trial as its attributes say that it ended; one of which they say nothing was lost with every driver."""
        known, attributes, values = trial.user_attrs, {}, None
        state: TrialState | None = TrialState.FAIL
        if RESULT in known:
            metrics = TrialResult.from_json(known[RESULT]).metrics
            state, values = None, [metrics[name] for name in objectives]
        elif CURVE in known:
            state = TrialState.PRUNED
        elif FAILURE not in known:
            attributes = {FAILURE: {"reason": LOST, "message": f"lost {RETRIES + 1} times with its worker or driver"}}
        self.end(optuna.Trial(self._study, trial._trial_id), attributes, values=values, state=state)

    def note(self, attributes: Mapping[int, Mapping[str, Any]], *, leaving: bool = False) -> None:
        """Write attributes of trials that go on, by Optuna's ids: all or none.

        leaving: by a driver that is to stop, which would else not wait, and waits LEAVE_S.
        """

        storage = self._study._storage

        def write(again: bool) -> None:
            with written_together(self._study):
                for trial_id, of_trial in attributes.items():
                    if storage.get_trial(trial_id).state.is_finished():
                        continue  # only the answer was lost when its end was written
                    for name, value in of_trial.items():
                        storage.set_trial_user_attr(trial_id, name, value)

        patience = self._patience
        if leaving:
            patience = replace(patience, stopped=lambda: False, give_up_s=min(LEAVE_S, patience.give_up_s))
        patience.retried(write)
