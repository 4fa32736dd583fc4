"""A prior: what a finished study knows, without its storage.

A study of Optuna's, made by metasearch or not, becomes one; so does a file of priors. Objectives are matched by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class PriorTrial:
    """One configuration and what it gave.

    params: the searched parameters that were active. metrics: name -> finite number, the objectives among them; empty
    for a trial that failed or was stopped early. state: complete, pruned or fail. curve: validation accuracy after each
    epoch, where it was kept.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    state: str = "complete"
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prior:
    """The trials of one study.

    directions: objective -> minimize or maximize. distributions: every parameter that was searched, the conditional
    ones too. fixed: the parameters that were not searched, with their value. task, fingerprint, features: of the task,
    its text, its digest, and name -> number. versions: of the programs that made it.
    """

    name: str
    directions: Mapping[str, str]
    distributions: Mapping[str, BaseDistribution]
    trials: tuple[PriorTrial, ...]
    task: str = ""
    features: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def complete(self) -> tuple[PriorTrial, ...]:
        """The trials that have metrics."""
        return tuple(trial for trial in self.trials if trial.state == "complete")


def prior_of(
    study: Study,
    *,
    metrics: Callable[[FrozenTrial], Mapping[str, float]] = lambda trial: NOTHING,
    curve: Callable[[FrozenTrial], Sequence[float]] = lambda trial: (),
    finished: Callable[[FrozenTrial], bool] = lambda trial: trial.state.is_finished(),
    task: str = "",
    features: Mapping[str, float] = NOTHING,
    versions: Mapping[str, str] = NOTHING,
    fixed: Mapping[str, Any] = NOTHING,
    fingerprint: str = "",
) -> Prior:
    """Return what a study knows. metrics: what else than its objectives a trial measured. finished: which trials count.

    Objectives without a name (`Study.set_metric_names`) are called objective_0, objective_1, ... Trials that still run
    or wait are left out; one whose objectives are not all finite counts as failed.
    """
    names = objective_names(study)
    trials, distributions = [], dict[str, BaseDistribution]()
    for trial in study.get_trials(deepcopy=False):
        if not finished(trial):
            continue
        for name, distribution in trial.distributions.items():
            distributions[name] = _covering(distributions.get(name, distribution), distribution)
        state, measured = trial.state, dict[str, float]()
        if state == TrialState.COMPLETE:
            measured = {**dict(zip(names, trial.values, strict=True)), **metrics(trial)}
            if not all(map(math.isfinite, trial.values)):
                state, measured = TrialState.FAIL, {}
        trials.append(PriorTrial(trial.params, measured, state.name.lower(), tuple(curve(trial))))
    return Prior(
        name=study.study_name,
        directions={n: d.name.lower() for n, d in zip(names, study.directions, strict=True)},
        distributions=distributions,
        trials=tuple(trials),
        task=task,
        features=dict(features),
        versions=dict(versions),
        fixed=dict(fixed),
        fingerprint=fingerprint,
    )


def _covering(first: BaseDistribution, second: BaseDistribution) -> BaseDistribution:
    """Return a distribution of all values of both: Optuna lets a study change the range of a number."""
    if first == second or isinstance(second, CategoricalDistribution):
        return second
    assert isinstance(first, (FloatDistribution, IntDistribution))
    assert isinstance(second, (FloatDistribution, IntDistribution))
    low, high = min(first.low, second.low), max(first.high, second.high)
    if isinstance(second, IntDistribution):
        return IntDistribution(int(low), int(high), log=second.log)
    return FloatDistribution(low, high, log=second.log)


def objective_names(study: Study) -> tuple[str, ...]:
    """Return the names of a study's objectives, in its order."""
    return tuple(study.metric_names or (f"objective_{index}" for index in range(len(study.directions))))
