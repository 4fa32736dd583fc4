"""The driver's side of a study: what is asked, adopted, told and kept. Knows Optuna and files, not Ray.

Every trial that was ever asked ends exactly once: complete, pruned, or failed with a reason. What a dead driver left
running is adopted: same number, same parameters, same seed and artefact folder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.records import Config, EpochReport, TrialResult
from metasearch.search.attempts import Attempts
from metasearch.search.driver_storage import driven, written_together
from metasearch.search.early_stopping import SuccessiveHalving
from metasearch.search.gpu_time import attempt_seconds, gpu_seconds
from metasearch.search.kept_folders import KeptFolders
from metasearch.search.names import BEGUN
from metasearch.search.objectives import Constraint
from metasearch.search.pareto import Front
from metasearch.search.patience import PATIENT, Patience
from metasearch.search.store import CURVE, FAILURE, LEFT, LOST, RESULT, RUN, is_finished
from metasearch.search.writing import TrialWriter

OUT_OF_MEMORY = ("OutOfMemoryError", "low on memory")
"""Of the cause of a loss: what Ray says of a worker that it killed to save its node's memory."""

NOTHING_SPENT: Mapping[int, float] = MappingProxyType({})

MOST_LOST = 3
"""Trials lost to the machine in a row after which the search stops: the machine needs looking at."""


@dataclass(frozen=True)
class Proposal:
    """A configuration to run and how. seed: None for the trial's own, drawn from the study's seed and its number."""

    config: Config
    seed: int | None = None
    read_test: bool = False


def trial_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial: a function of the study's seed and the trial's number alone."""
    return int(np.random.SeedSequence([study_seed, number]).generate_state(1)[0])


class Ledger:
    """The books of one study while it is driven.

    propose: completes a fresh (or adopted) Optuna trial into a Proposal. target: finished trials wanted; None (of a
    companion): whatever is queued and nothing in its place, and every complete trial keeps its artefacts rather than
    those of the feasible front alone. objectives: metric names in the study's order. artefacts: the folder or URL of
    the study's artefact folders, or None. patience: with a storage that is away for a moment.
    """

    def __init__(
        self,
        study: Study,
        propose: Callable[[optuna.Trial], Proposal],
        *,
        target: int | None,
        seed: int,
        objectives: tuple[str, ...],
        constraints: tuple[Constraint, ...] = (),
        artefacts: str | None = None,
        halving: SuccessiveHalving | None = None,
        patience: Patience = PATIENT,
    ) -> None:
        self.study, self.halving, self._patience = driven(study), halving, patience
        self._only_queued = target is None
        self._folders = KeptFolders(artefacts, all_complete=self._only_queued)
        self._writer, self._attempts = TrialWriter(self.study, patience), Attempts()
        self._propose, self._seed, self._objectives, self._constraints = propose, seed, objectives, constraints
        self.front = Front.of([direction.name.lower() for direction in study.directions])
        self.metrics: dict[int, dict[str, float]] = {}
        self.failures: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.running: dict[int, EpochReport | None] = {}
        self.lost_in_a_row = 0
        self.last_lost = ""
        self._asked: dict[int, tuple[optuna.Trial, Proposal]] = {}
        self._adopt()
        for trial in self.study.get_trials(deepcopy=False):
            self._take_in(trial)
        queued = len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        self.target = self.finished + len(self._attempts.again) + queued if target is None else target
        self._folders.drop_strays(front=self.front.members, complete=self.metrics)

    @property
    def finished(self) -> int:
        """Trials that count: complete, pruned, or failed by their own configuration."""
        return sum(self.states.values())

    @property
    def wanted(self) -> int:
        """Trials still to be asked: so many that `target` finish if none is lost, and all that are run again."""
        return max(self.target - self.finished - len(self.running), len(self._attempts.again))

    @property
    def gpu_seconds(self) -> float:
        """The GPU time that the study's trials have used so far, those of earlier drivers too."""
        return gpu_seconds(self.study.get_trials(deepcopy=False))

    def ask(self) -> tuple[int, Proposal, int]:
        """Return the next trial's number, proposal and seed: one lost or left running, else a new one."""
        trial, proposal = self._patience.retried(self._ask)
        self._asked[trial.number] = trial, proposal
        self.running[trial.number] = None
        seed = trial_seed(self._seed, trial.number) if proposal.seed is None else proposal.seed
        return trial.number, proposal, seed

    def _ask(self, retried: bool) -> tuple[optuna.Trial, Proposal]:
        if retried:
            self._attempts.adopt_unanswered(self.study, {trial._trial_id for trial, _ in self._asked.values()})
        again = self._attempts.again
        with written_together(self.study):
            trial = optuna.Trial(self.study, again[0]) if again else self.study.ask()
            if again:
                trial.set_user_attr(LEFT, False)
                if BEGUN in trial.user_attrs:
                    trial.set_user_attr(BEGUN, None)
            proposal = self._propose(trial)
        if again:
            again.popleft()
        return trial, proposal

    def folder_of(self, number: int) -> str | None:
        """Return the folder or URL of a trial's artefacts."""
        return self._folders.of(number)

    def tell_begun(self, number: int, attempt: Mapping[str, float]) -> None:
        """Keep when a trial has begun and on what share of a GPU, which `settle` reads if this driver dies."""
        trial, _ = self._asked[number]
        self._writer.note({trial._trial_id: {BEGUN: dict(attempt)}})

    def report(self, number: int, report: EpochReport) -> bool:
        """Take an epoch's report; return whether the trial should go on."""
        self.running[number] = report
        return self.halving is None or self.halving.goes_on(number, report)

    def tell_result(self, number: int, result: TrialResult, worker: Mapping[str, Any]) -> None:
        """Record a finished trial. A metric of an objective or constraint that is not finite makes it a failure."""
        trial, _ = self._asked[number]
        names = {*self._objectives, *(c.metric for c in self._constraints if c.metric in result.metrics)}
        odd = sorted(name for name in names if not math.isfinite(result.metrics.get(name, math.nan)))
        if odd:
            self.tell_failure(number, "non_finite", f"{odd[0]} is {result.metrics.get(odd[0])}", worker)
            return
        self._writer.end(
            trial,
            {RUN: dict(worker), RESULT: result.to_json()},
            values=[result.metrics[name] for name in self._objectives],
            violations={str(c): c.violation(result.metrics) for c in self._constraints if c.metric in result.metrics},
        )
        self._folders.drop(self._enter(number, result))
        self._close(number, "COMPLETE")

    def tell_pruned(self, number: int, curve: list[EpochReport], worker: Mapping[str, Any]) -> None:
        """Record a trial that early stopping ended, with its learning curve so far."""
        trial, _ = self._asked[number]
        self._writer.end(
            trial, {RUN: dict(worker), CURVE: [asdict(report) for report in curve]}, state=TrialState.PRUNED
        )
        self._close(number, "PRUNED")

    def tell_lost(self, number: int, cause: str, worker: Mapping[str, Any], *, counts: bool = True) -> None:
        """Put a trial that was lost with its worker back at the head of the queue; RETRIES times, then it failed.

        One that a machine has killed for its memory so often has failed by its own doing. counts: whether this is one
        of those times.
        """
        trial, _ = self._asked[number]
        kept = self._attempts.lost(number) if counts else {}
        if self._attempts.is_given_up(number):
            self._writer.note({trial._trial_id: kept})  # the time of this attempt is told by RUN
            starved = any(text in cause for text in OUT_OF_MEMORY)
            self.tell_failure(number, "out_of_memory" if starved else LOST, cause, worker)
            return
        self._writer.note({trial._trial_id: kept | self._attempts.left(number, attempt_seconds(worker))})
        self._attempts.again.appendleft(trial._trial_id)
        self._forget(number)

    def leave_running(self, spent: Mapping[int, float] = NOTHING_SPENT) -> None:
        """Note on the trials that run that they are left in good order, not lost with their driver.

        spent: the GPU-seconds of what is running, by the trials' numbers.
        """
        asked = {number: trial._trial_id for number, (trial, _) in self._asked.items()}
        left = {of_trial: self._attempts.left(number, spent.get(number, 0.0)) for number, of_trial in asked.items()}
        self._writer.note(left, leaving=True)

    def tell_failure(self, number: int, reason: str, message: str, worker: Mapping[str, Any]) -> None:
        """Record a failed trial with its reason; one lost to the machine does not count as finished."""
        trial, _ = self._asked[number]
        failure = {"reason": reason, "message": message}
        self._writer.end(trial, {RUN: dict(worker), FAILURE: failure}, state=TrialState.FAIL)
        self.failures[reason] += 1
        self._folders.drop([number])
        if reason == LOST:
            self.lost_in_a_row += 1
            self.last_lost = message
            if self._only_queued:
                self.target -= 1  # nothing takes its place
            self._forget(number)
        else:
            self._close(number, "FAIL")

    def _enter(self, number: int, result: TrialResult) -> list[int]:
        """Enter a complete trial; return the trials off the front now, which the artefact rule drops."""
        self.metrics[number] = metrics = dict(result.metrics)
        known = [constraint for constraint in self._constraints if constraint.metric in metrics]
        if any(constraint.violation(metrics) > 0 for constraint in known):
            return [number]
        return self.front.add(number, [metrics[name] for name in self._objectives])

    def _close(self, number: int, state: str) -> None:
        self.states[state] += 1
        self.lost_in_a_row = 0
        self._forget(number)

    def _forget(self, number: int) -> None:
        del self._asked[number]
        del self.running[number]

    def _take_in(self, trial: FrozenTrial) -> None:
        """Enter a trial that the storage holds already."""
        result = TrialResult.from_json(trial.user_attrs[RESULT]) if RESULT in trial.user_attrs else None
        if trial.state == TrialState.FAIL:
            self.failures[trial.user_attrs.get(FAILURE, {}).get("reason", "unknown")] += 1
        if not is_finished(trial):
            return
        self.states[trial.state.name] += 1
        curve = [EpochReport(**report) for report in trial.user_attrs.get(CURVE, [])]
        if result is not None:
            self._enter(trial.number, result)
            curve = list(result.curve)
        if self.halving is not None:
            self.halving.refill(trial.number, curve)

    def _adopt(self) -> None:
        """Queue what a dead driver left running, and end what it only had not told of."""
        kept, over = self._attempts.adopted(self.study)
        for trial in over:
            self._writer.end_untold(trial, self._objectives)
        self._writer.note(kept)
