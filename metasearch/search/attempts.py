"""Attempts at a trial that came to nothing: how many were lost, what GPU time all took, and which trials run again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.search.names import CURVE, FAILURE, LEFT, LOSSES, RESULT, SPENT

RETRIES = 3
"""How often a trial lost with its worker, node or driver is run again before it is a failure."""


class Attempts:
    """The attempts at the trials of a study by all its drivers. What a method returns is to be kept with the trial.

    again: Optuna's ids of the trials to run again, the next one first. LEFT is true of each until it is asked, so that
    the end of a driver that never came to it is no loss.
    """

    def __init__(self) -> None:
        self.again: deque[int] = deque()
        self._losses: Counter[int] = Counter()
        self._spent: dict[int, float] = {}

    def adopted(self, study: Study) -> tuple[dict[int, dict[str, Any]], list[FrozenTrial]]:
        """Queue what a dead driver left running; return what to keep, by Optuna's ids, and the trials that are over.

        These are lost once too often, or ended without the dead driver having told the study so.
        """
        kept: dict[int, dict[str, Any]] = {}
        over = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            known, number = trial.user_attrs, trial.number
            lost = not known.get(LEFT)
            self._losses[number] = known.get(LOSSES, 0) + lost
            self._spent[number] = known.get(SPENT, 0.0)
            if self.is_given_up(number) or not known.keys().isdisjoint({RESULT, CURVE, FAILURE}):
                over.append(trial)
                continue
            self.again.append(trial._trial_id)
            if lost:
                kept[trial._trial_id] = {LOSSES: self._losses[number], LEFT: True}
        return kept, over

    def adopt_unanswered(self, study: Study, asked: Container[int]) -> None:
        """Queue the trial that the storage made before its answer, or a parameter, was lost on the way.

        asked: Optuna's ids of the trials that run.
        """
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ids = [trial._trial_id for trial in running]
        self.again.extend(each for each in ids if each not in asked and each not in self.again)

    def lost(self, number: int) -> dict[str, Any]:
        """Count an attempt that was lost; `is_given_up` then tells whether it was the last."""
        self._losses[number] += 1
        return {LOSSES: self._losses[number]}

    def is_given_up(self, number: int) -> bool:
        """Whether a trial has been lost more often than it is run again."""
        return self._losses[number] > RETRIES

    def left(self, number: int, seconds: float) -> dict[str, Any]:
        """Count the GPU time of an attempt that came to nothing, of a trial that is to be run again."""
        self._spent[number] = self._spent.get(number, 0.0) + seconds
        spent, losses = self._spent[number], self._losses[number]  # these, too: the note of a loss may have failed
        return {LEFT: True} | ({SPENT: spent} if spent else {}) | ({LOSSES: losses} if losses else {})
