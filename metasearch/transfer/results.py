"""A study's own trials as points and values, ready to be modelled.

n points, M objectives, all minimized. A failed trial counts as the worst of the complete ones, so that its
neighbourhood is left alone; so does one that was stopped early, unless its last intermediate value is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from metasearch.transfer.encoding import Encoding, Params

Array = NDArray[np.float64]
MOST = 1_000
"""Own results that a model is conditioned on: the latest."""


@dataclass(frozen=True)
class Results:
    """configurations: of the rows of values (n, M). measured: (n,), which were complete. feasible: (n,), which keep all
    constraints. violations: constraint -> (n,), NaN where unknown. running: configurations that have no result yet.
    taken: (T, D), everything that was ever asked.
    """

    encoding: Encoding
    configurations: list[Params]
    values: Array
    measured: NDArray[np.bool_]
    feasible: NDArray[np.bool_]
    violations: Mapping[str, Array]
    running: list[Params]
    taken: Array

    @classmethod
    def of(
        cls, trials: Sequence[FrozenTrial], encoding: Encoding, signs: Array, plans: Mapping[int, Params]
    ) -> Results:
        """Return the results of trials. signs: (M,), -1 where an objective is maximized. plans: of running trials."""
        finished = [trial for trial in trials if trial.state.is_finished()][-MOST:]
        rows = [_values(trial, signs) for trial in finished]
        known = [row for row in rows if row is not None]
        worst = np.max(known, axis=0) if known else np.zeros(0)
        kept = [(trial, row) for trial, row in zip(finished, rows, strict=True) if row is not None or known]
        running = [{**plans.get(trial.number, {}), **trial.params} for trial in trials if not trial.state.is_finished()]
        names = {name for trial, _ in kept for name in trial.constraints}
        return cls(
            encoding=encoding,
            configurations=[dict(trial.params) for trial, _ in kept],
            values=np.array([worst if row is None else row for _, row in kept]).reshape(len(kept), len(signs)),
            measured=np.array([row is not None for _, row in kept], bool),
            feasible=np.array([row is not None and _feasible(trial) for trial, row in kept], bool),
            violations={
                name: np.array([trial.constraints.get(name, math.nan) for trial, _ in kept]) for name in sorted(names)
            },
            running=[config for config in running if config],
            taken=encoding.encode([*(trial.params for trial in trials if trial.state.is_finished()), *running]),
        )

    def unanswered(self) -> Results:
        """Return the same trials as if all of them still ran."""
        none = np.zeros(0, bool)
        return replace(
            self,
            configurations=[],
            values=self.values[:0],
            measured=none,
            feasible=none,
            violations={},
            running=[*self.configurations, *self.running],
        )


def _values(trial: FrozenTrial, signs: Array) -> Array | None:
    """Return (M,) values to minimize, or None for a trial that has none."""
    values: Iterable[float] = ()
    if trial.state == TrialState.COMPLETE:
        values = trial.values
    elif trial.state == TrialState.PRUNED and len(signs) == 1 and trial.intermediate_values:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    row = signs[: len(list(values))] * np.array(list(values), float)
    return row if len(row) == len(signs) and bool(np.isfinite(row).all()) else None


def _feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())
