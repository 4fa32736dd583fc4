"""The driver's side of a study: what is asked, adopted, told and kept. Knows Optuna and files, not Ray.

Every trial that was ever asked ends exactly once: complete, pruned, or failed with a reason. What a dead driver left
running is adopted: same number, same parameters, same seed and artefact folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import InputError
from metasearch.records import Config, EpochReport, TrialResult
from metasearch.search import artefacts as folders
from metasearch.search.driver_storage import driven, written_together
from metasearch.search.early_stopping import SuccessiveHalving
from metasearch.search.gpu_time import attempt_seconds, gpu_seconds
from metasearch.search.names import SPENT
from metasearch.search.objectives import Constraint
from metasearch.search.pareto import Front
from metasearch.search.patience import PATIENT, Patience
from metasearch.search.store import CURVE, FAILURE, LEFT, LOSSES, LOST, RESULT, RUN, is_finished

RETRIES = 3
"""How often a trial lost with its worker, node or driver is run again before it is a failure."""

OUT_OF_MEMORY = ("OutOfMemoryError", "low on memory")
"""Of the cause of a loss: what Ray says of a worker that it killed to save its node's memory."""

LEAVE_S = 20.0
"""How long a driver that is to stop tries to write what it leaves, while the storage is away."""

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
        self.study, self.artefacts, self.halving = driven(study), artefacts, halving
        self._only_queued, self._patience = target is None, patience
        self._propose, self._seed, self._objectives, self._constraints = propose, seed, objectives, constraints
        self.front = Front.of([direction.name.lower() for direction in study.directions])
        self.metrics: dict[int, dict[str, float]] = {}
        self.failures: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.running: dict[int, EpochReport | None] = {}
        self.lost_in_a_row = 0
        self.last_lost = ""
        self._asked: dict[int, tuple[optuna.Trial, Proposal]] = {}
        self._losses: Counter[int] = Counter()
        self._spent: dict[int, float] = {}
        self._again: deque[int] = deque()  # Optuna's ids of the trials to run again
        self._settle()
        for trial in self.study.get_trials(deepcopy=False):
            self._take_in(trial)
        queued = len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        self.target = self.finished + len(self._again) + queued if target is None else target
        self._remove_strays()

    @property
    def finished(self) -> int:
        """Trials that count: complete, pruned, or failed by their own configuration."""
        return sum(self.states.values())

    @property
    def wanted(self) -> int:
        """Trials still to be asked: so many that `target` finish if none is lost, and all that are run again."""
        return max(self.target - self.finished - len(self.running), len(self._again))

    @property
    def gpu_seconds(self) -> float:
        """The GPU time that the study's trials have used so far, those of earlier drivers too."""
        return gpu_seconds(self.study.get_trials(deepcopy=False))

    def ask(self) -> tuple[int, Proposal, int]:
        """Return the next trial's number, proposal and seed: one lost or left running, else a new one."""
        trial, proposal = self._patience.retried(self._ask)
        self._asked[trial.number] = trial, proposal
        self.running[trial.number] = None
        return trial.number, proposal, self.seed_of(trial.number, proposal)

    def _ask(self, again: bool) -> tuple[optuna.Trial, Proposal]:
        if again:
            self._adopt_unanswered()
        with written_together(self.study):
            trial = optuna.Trial(self.study, self._again[0]) if self._again else self.study.ask()
            proposal = self._propose(trial)
        if self._again:
            self._again.popleft()
        return trial, proposal

    def _adopt_unanswered(self) -> None:
        """Queue the trial that the storage made before its answer, or a parameter, was lost on the way."""
        known = {*self._again, *(trial._trial_id for trial, _ in self._asked.values())}
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._again.extend(trial._trial_id for trial in running if trial._trial_id not in known)

    def seed_of(self, number: int, proposal: Proposal) -> int:
        """Return the seed that a trial is run with."""
        return trial_seed(self._seed, number) if proposal.seed is None else proposal.seed

    def folder_of(self, number: int) -> str | None:
        """Return the folder or URL of a trial's artefacts."""
        return None if self.artefacts is None else folders.trial_folder(self.artefacts, number)

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
        self._end(
            trial,
            {RUN: dict(worker), RESULT: result.to_json()},
            values=[result.metrics[name] for name in self._objectives],
            violations={str(c): c.violation(result.metrics) for c in self._constraints if c.metric in result.metrics},
        )
        self._remove_folders(self._enter(number, result))
        self._close(number, "COMPLETE")

    def tell_pruned(self, number: int, curve: list[EpochReport], worker: Mapping[str, Any]) -> None:
        """Record a trial that early stopping ended, with its learning curve so far."""
        trial, _ = self._asked[number]
        self._end(trial, {RUN: dict(worker), CURVE: [asdict(report) for report in curve]}, state=TrialState.PRUNED)
        self._close(number, "PRUNED")

    def tell_lost(self, number: int, cause: str, worker: Mapping[str, Any]) -> None:
        """Put a trial that was lost with its worker back at the head of the queue; RETRIES times, then it failed.

        One that a machine has killed for its memory so often has failed by its own doing.
        """
        trial, _ = self._asked[number]
        self._losses[number] += 1
        given_up = self._losses[number] > RETRIES
        spent = {} if given_up else self._spend(number, attempt_seconds(worker))  # of the last attempt RUN tells
        self._note({trial._trial_id: {LOSSES: self._losses[number]} | spent})
        if given_up:
            starved = any(text in cause for text in OUT_OF_MEMORY)
            self.tell_failure(number, "out_of_memory" if starved else LOST, cause, worker)
            return
        self._again.appendleft(trial._trial_id)
        self._forget(number)

    def leave_running(self, spent: Mapping[int, float] = NOTHING_SPENT) -> None:
        """Note on the trials not ended that they are left in good order, not lost with their driver.

        spent: the GPU-seconds of what is running, by the trials' numbers.
        """
        left: dict[int, dict[str, Any]] = {trial_id: {LEFT: True} for trial_id in self._again}
        for number, (trial, _) in self._asked.items():
            left[trial._trial_id] = {LEFT: True} | self._spend(number, spent.get(number, 0.0))
        self._note(left, replace(self._patience, stopped=lambda: False, give_up_s=LEAVE_S))

    def tell_failure(self, number: int, reason: str, message: str, worker: Mapping[str, Any]) -> None:
        """Record a failed trial with its reason; one lost to the machine does not count as finished."""
        trial, _ = self._asked[number]
        failure = {"reason": reason, "message": message}
        self._end(trial, {RUN: dict(worker), FAILURE: failure}, state=TrialState.FAIL)
        self.failures[reason] += 1
        self._remove_folders([number])
        if reason == LOST:
            self.lost_in_a_row += 1
            self.last_lost = message
            if self._only_queued:
                self.target -= 1  # nothing takes its place
            self._forget(number)
        else:
            self._close(number, "FAIL")

    def _end(
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
            if again and self.study._storage.get_trial(trial._trial_id).state.is_finished():
                return  # only the answer was lost
            with written_together(self.study):
                for name, violation in (violations or {}).items():
                    trial.set_constraint(name, violation)
                for name, value in attributes.items():
                    trial.set_user_attr(name, value)
                self.study.tell(trial, values, state=state)

        self._patience.retried(write)

    def _note(self, attributes: Mapping[int, Mapping[str, Any]], patience: Patience | None = None) -> None:
        """Write attributes of trials that go on, by Optuna's ids: all or none."""

        def write(again: bool) -> None:
            with written_together(self.study):
                for trial_id, of_trial in attributes.items():
                    for name, value in of_trial.items():
                        self.study._storage.set_trial_user_attr(trial_id, name, value)

        (patience or self._patience).retried(write)

    def _spend(self, number: int, seconds: float) -> dict[str, float]:
        """Count the GPU time of an attempt that comes to nothing; return what to keep with the trial."""
        self._spent[number] = self._spent.get(number, 0.0) + seconds
        return {SPENT: self._spent[number]} if seconds else {}

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

    def _settle(self) -> None:
        """Queue what a dead driver left running, and end what it only had not told of."""
        queued: dict[int, dict[str, Any]] = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number, known = trial.number, trial.user_attrs
            lost = not known.get(LEFT)
            self._losses[number] = known.get(LOSSES, 0) + lost
            self._spent[number] = known.get(SPENT, 0.0)
            if self._losses[number] > RETRIES or not known.keys().isdisjoint({RESULT, CURVE, FAILURE}):
                self._end_untold(trial)
            else:
                queued[trial._trial_id] = {LOSSES: self._losses[number]} if lost else {LEFT: False}
        self._note(queued)
        self._again.extend(queued)

    def _end_untold(self, trial: FrozenTrial) -> None:
        """End a trial as the storage says that it ended; one of which it says nothing was lost with every driver."""
        known, attributes, values = trial.user_attrs, {}, None
        state: TrialState | None = TrialState.FAIL
        if RESULT in known:
            metrics = TrialResult.from_json(known[RESULT]).metrics
            state, values = None, [metrics[name] for name in self._objectives]
        elif CURVE in known:
            state = TrialState.PRUNED
        elif FAILURE not in known:
            attributes = {FAILURE: {"reason": LOST, "message": f"lost {RETRIES + 1} times with its worker or driver"}}
        self._end(optuna.Trial(self.study, trial._trial_id), attributes, values=values, state=state)

    def _remove_strays(self) -> None:
        """Remove what a dead driver left: folders of trials off the front, half of one that is run again."""
        if self.artefacts is not None:
            kept = self.metrics if self._only_queued else self.front.members
            for number in folders.trial_numbers(self.artefacts):
                if number not in kept:
                    folders.remove(folders.trial_folder(self.artefacts, number))

    def _remove_folders(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            folder = self.folder_of(number)
            if folder is not None and not self._only_queued:
                folders.remove(folder)


def check_distinct(configurations: Sequence[Config], place: str) -> None:
    """Raise InputError for a configuration that is the same as an earlier one."""
    seen: set[str] = set()
    for position, config in enumerate(configurations):
        key = json.dumps(config, sort_keys=True)
        if key in seen:
            raise InputError(f"{place}: [{position}]", "is the same as an earlier one")
        seen.add(key)
