"""Trials saved: how many trials a search without prior studies needs for what a search with them had found.

What a search has found is its hypervolume, counted on the warped scale of each objective, below the worst that was
seen. n trials, M objectives (all minimized). Constraints are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial

from metasearch.transfer.encoding import Encoding
from metasearch.transfer.hypervolume import Hypervolume
from metasearch.transfer.knowledge import Knowledge
from metasearch.transfer.results import Results
from metasearch.transfer.sampler import TransferSampler
from metasearch.transfer.surrogates import Mixture
from metasearch.transfer.warp import Warp, choose_warp

Array = NDArray[np.float64]
SEEDS = 5
PROPOSALS = 400
"""Configurations that all simulated searches together may propose: one takes about 0.05 s."""


@dataclass(frozen=True)
class Saved:
    """What a search had after so many trials, and the trials that each search without priors needed for as much.

    trials: finished ones. volume: of the box of all values seen, 0 to 1. cold: None where one never
    got there. limit: trials of the longest of these searches, which is where those that never got there ended.
    """

    trials: int
    volume: float
    cold: tuple[int | None, ...]
    limit: int

    @property
    def median(self) -> float | None:
        """The median of the searches without priors; None where half of them never got there."""
        middle = float(np.median([math.inf if count is None else count for count in self.cold]))
        return middle if math.isfinite(middle) else None


def trials_saved(
    trials: Sequence[FrozenTrial], knowledge: Knowledge, *, against: Sequence[FrozenTrial] | None = None
) -> tuple[Saved, ...]:
    """Return, after 1, 2, 4, ... and all of a study's finished trials, what a search without priors needs for as much.

    against: the finished trials of a real search of the same task without priors. Where it is None, such searches are
    simulated: what is believed of the objectives in the end, given all results and the prior studies, stands for the
    task, for both sides. It is smoother than the task and knows it best where the study looked. They get twice the
    study's trials; up to five of them, fewer for a long study, which would take minutes.
    """
    own = _values(trials, knowledge.signs)
    if not np.isfinite(own).any():
        return ()
    if against is None:
        return _simulated(trials, knowledge, np.asarray(np.isfinite(own).all(1)))
    cold = _values(against, knowledge.signs)
    both = np.vstack([own, cold])
    warps = [choose_warp([column[np.isfinite(column)]]) for column in both.T]
    warped = [np.column_stack([w(side[:, m]) for m, w in enumerate(warps)]) for side in (own, cold)]
    return saved_by(warped[0], [warped[1]], _measure(np.vstack(warped)))


def saved_by(own: Array, cold: Sequence[Array], measure: Hypervolume) -> tuple[Saved, ...]:
    """Return what the values (n, M) of searches without priors needed for as much as the first n of `own` have.

    Values that are NaN are those of a trial that has none.
    """
    mine, theirs = _volumes(own, measure), [_volumes(values, measure) for values in cold]
    counts = [2**power for power in range(len(own).bit_length())]
    limit = max(map(len, cold))
    return tuple(
        Saved(n, float(mine[n - 1]), tuple(_first(volumes, mine[n - 1]) for volumes in theirs), limit)
        for n in dict.fromkeys([*counts, len(own)])
    )


def _values(trials: Sequence[FrozenTrial], signs: Array) -> Array:
    """Return (n, M) values to minimize, NaN for trials that are not complete."""
    rows = [t.values if t.state == TrialState.COMPLETE else [math.nan] * len(signs) for t in trials]
    values = np.array(rows, float).reshape(len(trials), len(signs)) * signs
    return np.where(np.isfinite(values).all(1, keepdims=True), values, math.nan)


def _measure(values: Array) -> Hypervolume:
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    return Hypervolume.of(high, np.maximum(high - low, 1e-12))


def _volumes(values: Array, measure: Hypervolume) -> Array:
    """Return (n,), the hypervolume after each trial."""
    at_worst = np.where(np.isfinite(values), values, measure.reference)
    return np.asarray(measure.constant * np.maximum.accumulate(measure.lengths(at_worst), axis=0).mean(1))


def _first(volumes: Array, wanted: float) -> int | None:
    reached = np.flatnonzero(volumes >= wanted - 1e-9)
    return int(reached[0]) + 1 if len(reached) else None


@dataclass(frozen=True)
class _Simulation:
    """A task as it is believed to be: configurations give what is expected of them.

    beliefs, warps: of each objective.
    """

    encoding: Encoding
    beliefs: Sequence[Mixture]
    warps: Sequence[Warp]

    def values(self, configurations: Sequence[Mapping[str, Any]]) -> Array:
        """Return (n, M), on the warped scales."""
        x = self.encoding.encode(configurations)
        return np.column_stack([belief.mean(x) for belief in self.beliefs])

    def search(self, *, seed: int, trials: int, measure: Hypervolume, enough: float) -> Array:
        """Return the values (n, M) that a search without priors finds, until it has enough, in at most n trials."""
        sampler = TransferSampler(seed=seed)
        study = optuna.create_study(directions=["minimize"] * len(self.beliefs))
        asked = create_trial(state=TrialState.RUNNING)
        domains = {axis.name: axis.distribution for axis in self.encoding.axes}
        found = np.zeros((0, len(self.beliefs)))
        while len(found) < trials and (not len(found) or _volumes(found, measure)[-1] < enough - 1e-9):
            drawn = self.encoding.conditions.kept(sampler.sample_relative(study, asked, domains))
            found = np.vstack([found, self.values([drawn])])
            raw = [float(warp.inverse(value)) for warp, value in zip(self.warps, found[-1], strict=True)]
            study.add_trial(create_trial(params=drawn, distributions={n: domains[n] for n in drawn}, values=raw))
        return found


def _simulated(trials: Sequence[FrozenTrial], knowledge: Knowledge, complete: NDArray[np.bool_]) -> tuple[Saved, ...]:
    encoding = knowledge.encoding(trials)
    results = Results.of(trials, encoding, knowledge.signs, {})
    warps = [knowledge.warp(m, results) for m in range(len(knowledge.signs))]
    task = _Simulation(encoding, knowledge.beliefs(results), warps)
    own = np.full((len(trials), len(warps)), math.nan)
    own[complete] = task.values([trial.params for trial, kept in zip(trials, complete, strict=True) if kept])
    measure = _measure(own)
    enough = float(_volumes(own, measure)[-1])
    most = min(2 * len(trials), PROPOSALS // 2)
    cold = [
        task.search(seed=seed, trials=most, measure=measure, enough=enough)
        for seed in range(min(SEEDS, PROPOSALS // most))
    ]
    return saved_by(own, cold, measure)
