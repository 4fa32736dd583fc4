"""The prior studies of a replayed search, good and bad ones, and the points that they would have one try first.

Each holds 100 uniformly random configurations of one of the other tasks; the task itself is never among them. They
depend on the table, the task and the seed alone, so that all contenders have the same ones, and bad priors are the
good ones with other values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from metasearch.transfer.prior import Prior, PriorTrial
from tests.bench.transfer.measure import gains
from tests.bench.transfer.tables import Params, Table

TRIALS = 100
"""Trials of a prior study."""
OBJECTIVES = ("objective_0", "objective_1")
"""The names that a study's objectives have where it gives them none."""

Array = NDArray[np.float64]


def prior_studies(table: Table, task: str, *, seed: int, kind: str) -> list[Prior]:
    """Return what a search of `task` may start from. kind: of KINDS."""
    position = table.tasks.index(task)
    rng = np.random.default_rng([seed, position])
    others = [other for other in table.tasks if other != task]
    good = [prior_study(table, other, TRIALS, rng) for other in others]
    return KINDS[kind](good, np.random.default_rng([seed, position, 1]))


def prior_study(table: Table, task: str, trials: int, rng: np.random.Generator) -> Prior:
    """Return a study of random configurations on a task."""
    values = table.values(task)
    rows = rng.choice(len(values), min(trials, len(values)), replace=False)
    return Prior(
        name=task,
        directions=dict.fromkeys(OBJECTIVES, "minimize"),
        distributions=table.distributions,
        trials=tuple(PriorTrial(table.params(task, int(row)), _metrics(values[row])) for row in rows),
    )


def values_of(prior: Prior) -> Array:
    """Return (T, 2), the objectives of a study's trials."""
    return np.array([[trial.metrics[name] for name in OBJECTIVES] for trial in prior.trials])


def shuffled(prior: Prior, rng: np.random.Generator) -> Prior:
    """Return a study whose configurations have one another's results."""
    return _with_values(prior, rng.permutation(values_of(prior)))


def inverted(prior: Prior) -> Prior:
    """Return a study whose best results are its worst: the largest and the smallest less each value."""
    values = values_of(prior)
    return _with_values(prior, values.max(0) + values.min(0) - values)


def _one_irrelevant(good: list[Prior], rng: np.random.Generator) -> list[Prior]:
    chosen = good[int(rng.integers(len(good)))]
    return [*good, replace(shuffled(chosen, rng), name="irrelevant")]


KINDS: dict[str, Callable[[list[Prior], np.random.Generator], list[Prior]]] = {
    "none": lambda good, rng: [],
    "good": lambda good, rng: good,
    "shuffled": lambda good, rng: [shuffled(prior, rng) for prior in good],
    "inverted": lambda good, rng: [inverted(prior) for prior in good],
    "one irrelevant": _one_irrelevant,
}
"""Every study good, shuffled or inverted; or all good and, beside them, a shuffled copy of one."""


def best_points(priors: Sequence[Prior], count: int) -> list[Params]:
    """Return the prior configurations of the largest mean hypervolume over the studies, chosen greedily.

    Each study's values are min-max scaled, below (1, 1). A configuration counts in the studies that evaluated it.
    """
    places: dict[tuple[tuple[str, object], ...], int] = {}
    configurations: list[Params] = []
    studies: list[dict[int, Array]] = []
    for prior in priors:
        values = values_of(prior)
        spread = np.maximum(values.max(0) - values.min(0), 1e-12)
        study: dict[int, Array] = {}
        for trial, scaled in zip(prior.trials, (values - values.min(0)) / spread, strict=True):
            place = places.setdefault(tuple(sorted(trial.params.items())), len(places))
            if place == len(configurations):
                configurations.append(dict(trial.params))
            study[place] = scaled
        studies.append(study)
    chosen: list[int] = []
    for _ in range(min(count, len(configurations))):
        total = np.zeros(len(configurations))
        for study in studies:
            front = np.array([study[i] for i in chosen if i in study]).reshape(-1, 2)
            total[list(study)] += gains(np.array(list(study.values())), front)
        total[chosen] = -1.0
        chosen.append(int(np.argmax(total)))
    return [configurations[i] for i in chosen]


def _with_values(prior: Prior, values: Array) -> Prior:
    trials = zip(prior.trials, values, strict=True)
    return replace(prior, trials=tuple(replace(trial, metrics=_metrics(row)) for trial, row in trials))


def _metrics(row: Array) -> dict[str, float]:
    return dict(zip(OBJECTIVES, map(float, row), strict=True))
