"""The curves of many searches of one table, stacked and summarized: means over tasks, spread over seeds, paired losses.

K tasks, S seeds, T trials. A sampler is known by its contender's name and the kind of its priors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from tests.bench.transfer.curves import Curves
from tests.bench.transfer.replay import TRIALS, Run

Array = NDArray[np.float64]
Sampler = tuple[str, str]

COLD_TPE: Sampler = ("tpe", "none")
NEVER = TRIALS + 1
"""What counts as the trial at which a search that never reached a target did."""


@dataclass(frozen=True)
class Outcome:
    """What came out for a table. seeds: how many are wanted; a sampler whose curves are incomplete has fewer."""

    table: str
    tasks: tuple[str, ...]
    seeds: int
    curves: Curves

    def of(self, *samplers: Sampler) -> list[Array]:
        """Return (K, S, T) for each sampler, of the first seeds that all of them have on every task."""
        common = 0
        while common < self.seeds and all(
            Run(self.table, task, common, *sampler) in self.curves for sampler in samplers for task in self.tasks
        ):
            common += 1
        return [
            np.array(
                [[self.curves[Run(self.table, task, s, *sampler)] for s in range(common)] for task in self.tasks]
            ).reshape(len(self.tasks), common, TRIALS)
            for sampler in samplers
        ]

    def whole(self, *samplers: Sampler) -> bool:
        """Return whether the samplers have all the seeds that are wanted."""
        return len(self.of(*samplers)[0][0]) == self.seeds

    def first_trials(self, sampler: Sampler) -> Array:
        """Return (K, S), the first trial that reaches the task's mean hypervolume of cold TPE at the end."""
        (cold,), (curves,) = self.of(COLD_TPE), self.of(sampler)
        # curves are kept with four decimals
        reached = curves <= cold[:, :, -1].mean(1)[:, None, None] + 1e-4
        return np.where(reached.any(2), reached.argmax(2) + 1.0, NEVER)


def mean_and_error(curves: Array, trial: int) -> tuple[float, float]:
    """Return the regret after a trial, of curves (K, S, T), and its standard error over seeds; tasks are averaged."""
    of_seeds = curves[:, :, trial - 1].mean(0)
    error = of_seeds.std(ddof=1) / len(of_seeds) ** 0.5 if len(of_seeds) > 1 else np.nan
    return float(of_seeds.mean()), float(error)


def upper_bounds(losses: Array, *, level: float = 0.9) -> Array:
    """Return (K,), the one-sided upper bound of each task's mean loss (K, S), by Student's t over seeds."""
    seeds = losses.shape[1]
    if seeds < 2:
        return np.full(len(losses), np.nan)
    error = losses.std(axis=1, ddof=1) / seeds**0.5
    return np.asarray(losses.mean(1) + student.ppf(level, seeds - 1) * error)
