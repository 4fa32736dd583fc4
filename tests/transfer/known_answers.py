"""A family of tasks with known answers: where each parameter is best, on which task, and which one does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import create_trial

from metasearch.transfer.encoding import Axis

SPACE: dict[str, BaseDistribution] = {
    "steady": FloatDistribution(0, 1),
    "moving": FloatDistribution(0, 1),
    "idle": IntDistribution(1, 40, log=True),
    "kind": CategoricalDistribution(("worst", "middle", "best")),
}
DIRECTIONS = {"accuracy": "maximize", "cost": "minimize"}
BONUS = {"worst": 0.0, "middle": 0.4, "best": 0.8}

Values = Callable[[Mapping[str, Any]], tuple[float, float]]


def task(moving: float, *, sign: float = 1.0) -> Values:
    """Return accuracy and cost of a configuration. moving: where that parameter is best. sign: -1 turns all about."""

    def values(params: Mapping[str, Any]) -> tuple[float, float]:
        loss = 4 * (params["steady"] - 0.3) ** 2 + 4 * (params["moving"] - moving) ** 2 - BONUS[params["kind"]]
        return -sign * loss, 3 + sign * loss

    return values


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Return random configurations of the space."""
    rng = np.random.default_rng(seed)
    return [{name: Axis(name, domain).draw(rng) for name, domain in SPACE.items()} for _ in range(count)]


def random_study(values: Values, *, count: int = 60, seed: int = 0, name: str = "new") -> Study:
    """Return a study of random configurations."""
    study = optuna.create_study(directions=["maximize", "minimize"], study_name=name)
    study.set_metric_names(list(DIRECTIONS))
    for params in drawn(count, seed):
        study.add_trial(create_trial(params=params, distributions=SPACE, values=values(params)))
    return study
