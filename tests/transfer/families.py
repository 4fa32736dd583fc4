"""A synthetic family of related tasks: one smooth loss over four parameters whose optimum differs a little by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study

from metasearch.transfer.prior import Prior, PriorTrial

SPACE: dict[str, BaseDistribution] = {
    "act": CategoricalDistribution(["relu", "gelu", "tanh"]),
    "dropout": FloatDistribution(0.0, 0.8),
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "width": IntDistribution(1, 64, log=True),
}
PENALTY = {"relu": 0.3, "gelu": 0.0, "tanh": 0.6}


def suggested(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "act": trial.suggest_categorical("act", ["relu", "gelu", "tanh"]),
        "dropout": trial.suggest_float("dropout", 0.0, 0.8),
        "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        "width": trial.suggest_int("width", 1, 64, log=True),
    }


def loss(params: Mapping[str, Any], task: int) -> float:
    """Return the loss of a configuration on a task; 0 is the least there is, random ones give about 1."""
    shift = 0.05 * math.sin(1 + 3 * task)
    lr, width = math.log10(params["lr"]) / -4, math.log(params["width"]) / math.log(64)
    distances = lr - 0.7 - shift, width - 0.8 + shift, params["dropout"] - 0.15 - shift
    return PENALTY[params["act"]] + 4 * sum(distance**2 for distance in distances)


def prior(
    task: int, *, trials: int = 40, seed: int = 0, change: Callable[[list[float]], Sequence[float]] = list
) -> Prior:
    """Return a study of random configurations on a task. change: of the losses, to make it mislead."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed + 100 * task))
    configurations = [suggested(study.ask()) for _ in range(trials)]
    losses = change([loss(config, task) for config in configurations])
    told = [PriorTrial(config, {"loss": y}) for config, y in zip(configurations, losses, strict=True)]
    return Prior(f"task {task}", {"loss": "minimize"}, SPACE, tuple(told), task=f"task {task}")


def inverted(losses: list[float]) -> list[float]:
    return [max(losses) + min(losses) - y for y in losses]


def shuffled(losses: list[float]) -> list[float]:
    return [float(y) for y in np.random.default_rng(len(losses)).permutation(losses)]


def named_study(sampler: optuna.samplers.BaseSampler, *names: str, **options: Any) -> Study:
    """Return a study whose objectives are minimized and have names."""
    study = optuna.create_study(directions=["minimize"] * len(names), sampler=sampler, **options)
    study.set_metric_names(list(names))
    return study


def best_after(sampler: optuna.samplers.BaseSampler, task: int, trials: int) -> list[float]:
    """Return the smallest loss so far after each of the trials on a task."""
    study = named_study(sampler, "loss")
    study.optimize(lambda trial: loss(suggested(trial), task), n_trials=trials)
    return list(accumulate((trial.values[0] for trial in study.trials), min))
