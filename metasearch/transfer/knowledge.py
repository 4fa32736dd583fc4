"""What prior studies say of a study's space and objectives, fitted once; and, with its own results, what to believe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from scipy.special import expit, logit

from metasearch.transfer.encoding import Encoding, Params
from metasearch.transfer.gp import Beliefs, Hyperparameters, fit
from metasearch.transfer.hypervolume import non_dominated
from metasearch.transfer.mapping import map_prior
from metasearch.transfer.prior import NOTHING, Prior
from metasearch.transfer.results import Results
from metasearch.transfer.surrogates import Location, Mixture, Pool, Process, deviation_of, fit_pool
from metasearch.transfer.warp import Warp, choose_warp

Array = NDArray[np.float64]

PRIOR_ODDS = 0.8
"""The odds at the start that the prior studies are of use for the task."""
KINSHIP = (0.95, 0.3)
"""How probable it is that they are of use for one objective, given that they are, and are not, for the task at all."""
LEAST_TRUST = 0.01
"""The weight of prior studies in every objective below which the study goes on as if there were none."""
LEAST_AGREEMENT = 1 / 3
"""Rank correlation of prior studies with one another, of either sign, that must be possible for them to be heard."""
FENCE = 1.5
"""Quartile distances beyond the upper quartile from which a value is an outlier (Tukey 1977)."""
MOST_POINTS = 1_000
"""Points of prior studies that are kept, of all together."""
MOST_FITTED = 200
"""Own results that hyperparameters are fitted to."""
FEWEST_COMMON, MOST_COMMON = 20, 300
"""Configurations that several prior studies tried: how many make a portfolio, and how many are looked at."""
MOST_STARTS = 100
"""Good configurations of prior studies that are candidates."""


@dataclass(frozen=True)
class Objective:
    """What is known of one objective before the study. pool: None if no prior study measured it, or these have
    nothing in common. warp: None if it is to be chosen by the study's own values.
    """

    pool: Pool | None = None
    warp: Warp | None = None


@dataclass
class Knowledge:
    """Prior studies on the space of a study. distributions: its parameters and those that only prior studies have.

    directions: objective -> minimize or maximize. priors: mapped to both. fixed: parameters among these that the study
    does not choose, with the value that all of its configurations have.
    """

    distributions: Mapping[str, BaseDistribution]
    directions: Mapping[str, str]
    priors: tuple[Prior, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    _fits: dict[str, tuple[int, Hyperparameters]] = field(default_factory=dict)
    _believed: tuple[bytes, list[Mixture]] | None = None

    @classmethod
    def of(
        cls,
        priors: Sequence[Prior],
        distributions: Mapping[str, BaseDistribution],
        directions: Mapping[str, str],
        fixed: Mapping[str, Any] = NOTHING,
    ) -> Knowledge:
        """Return what the priors know; those that share no parameter or no objective are left out."""
        mapped = [map_prior(prior, distributions, directions) for prior in priors]
        return cls(distributions, directions, tuple(m.prior for m in mapped if not m.refused), fixed)

    @cached_property
    def signs(self) -> Array:
        """(M,), -1 where an objective is maximized."""
        return np.array([1.0 if direction == "minimize" else -1.0 for direction in self.directions.values()])

    @cached_property
    def starts(self) -> list[Params]:
        """The configurations of each prior that no other one of it dominates, those of all priors in turn."""
        fronts = []
        for prior in self.priors:
            y = np.array([[t.metrics[n] for n in prior.directions] for t in prior.complete])
            signs = np.array([1.0 if d == "minimize" else -1.0 for d in prior.directions.values()])
            fronts.append([dict(prior.complete[i].params) for i in non_dominated(y * signs)])
        longest = max(map(len, fronts), default=0)
        in_turn = (front[i] for i in range(longest) for front in fronts if i < len(front))
        distinct = {_key(config): config for config in in_turn}
        return list(distinct.values())[:MOST_STARTS]

    @cached_property
    def portfolio(self) -> list[Params]:
        """The configurations that several prior studies have tried alike, if there are FEWEST_COMMON of them.

        What these give is known beyond what any smooth model of few points in many dimensions tells; the others are
        worth a trial only after the best of these.
        """
        tried = Counter(config for prior in self.priors for config in {_key(trial.params) for trial in prior.complete})
        common = [dict(config) for config, studies in tried.items() if studies >= max(2, min(3, len(self.priors)))]
        return common[:MOST_COMMON] if len(common) >= FEWEST_COMMON else []

    def encoding(self, trials: Sequence[FrozenTrial]) -> Encoding:
        """Return the encoding of the space, its conditions learned from the priors and the study's own trials."""
        own = [{**self.fixed, **trial.params} for trial in trials if trial.state.is_finished() and trial.params]
        return Encoding.of(self.distributions, [*self._examples, *own], self.fixed)

    @cached_property
    def _examples(self) -> list[Mapping[str, Any]]:
        return thinned([trial.params for prior in self.priors for trial in prior.trials])

    @cached_property
    def _cube(self) -> Encoding:
        return Encoding.of(self.distributions)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What is known of each objective before the study; fitted when it is first asked for."""
        return tuple(self._objective(name, sign) for name, sign in zip(self.directions, self.signs, strict=True))

    def studies(self, name: str) -> tuple[Prior, ...]:
        """Return the prior studies that the pool of an objective is made of, in its order."""
        return tuple(prior for prior in self.priors if name in prior.directions)[: MOST_POINTS // 10]

    def _objective(self, name: str, sign: float) -> Objective:
        priors = self.studies(name)
        if not priors:
            return Objective()
        most = max(MOST_POINTS // len(priors), 10)
        studies = []
        for prior in priors:
            trials = prior.complete
            trials = tuple(trials[i] for i in np.linspace(0, len(trials) - 1, min(most, len(trials))).astype(int))
            values = sign * np.array([trial.metrics[name] for trial in trials])
            studies.append((self._cube.encode([trial.params for trial in trials]), values))
        warp = choose_warp([values for _, values in studies])
        warped = [(x, winsorized(warp(values))) for x, values in studies]
        pool = fit_pool(warped, self._cube.parameter, self._beliefs)
        return Objective(pool, warp) if pool.agreement >= LEAST_AGREEMENT else Objective()

    @property
    def _beliefs(self) -> Beliefs:
        return Beliefs(log_scale=float(np.log(len(self.distributions) ** 0.5 / 2)))

    def warp(self, index: int, results: Results) -> Warp:
        """Return the scale on which an objective is modelled."""
        known = self.objectives[index].warp
        return choose_warp([results.values[results.measured, index]]) if known is None else known

    def beliefs(self, results: Results) -> list[Mixture]:
        """Return what to believe of each objective, on its warped scale; kept until there are other results.

        Whether the prior studies are of use is judged by each objective's own results, and by the other objectives':
        a task that is unlike its priors is mostly so in all of them, but sizes may transfer where accuracies do not.
        """
        x = results.encoding.encode(results.configurations)
        key = x.tobytes() + results.values.tobytes()
        if self._believed is not None and self._believed[0] == key:
            return self._believed[1]
        mixtures = []
        for m, name in enumerate(self.directions):
            y = winsorized(self.warp(m, results)(results.values[:, m]))
            mixtures.append(self._mixture(name, x, y, self.objectives[m].pool))
        self._believed = key, self._weighed(mixtures)
        return self._believed[1]

    @property
    def complete(self) -> bool:
        """Whether prior studies know every objective."""
        return all(objective.pool is not None for objective in self.objectives)

    def doubted(self, results: Results) -> bool:
        """Return whether no objective is left in which the prior studies are of use.

        They say nothing of one in which they have nothing in common, or where results leave them less than LEAST_TRUST.
        """
        known = [m for m, objective in enumerate(self.objectives) if objective.pool is not None]
        if not known or not len(results.values):
            return not known
        beliefs = self.beliefs(results)
        return max(beliefs[m].related for m in known) < LEAST_TRUST

    @cached_property
    def without_priors(self) -> Knowledge:
        """The same space and objectives, of which nothing is known before the study."""
        return Knowledge(self.distributions, self.directions, (), self.fixed)

    def _weighed(self, mixtures: Sequence[Mixture]) -> list[Mixture]:
        """Return the beliefs with the weights that all results together give to the prior studies.

        They are of use for the task or not (PRIOR_ODDS); given that, they are of use for one objective with the
        probability KINSHIP, less where the prior studies have nothing in common with each other in it.
        """
        ratios = {m: mixture.evidence_ratio for m, mixture in enumerate(mixtures) if len(mixture.processes) > 1}
        kinships = {m: [kinship * self._worth(m) for kinship in KINSHIP] for m in ratios}
        logs = [
            math.log(odds)
            + sum(np.logaddexp(math.log(k[i]) + ratios[m], math.log1p(-k[i])) for m, k in kinships.items())
            for i, odds in enumerate((PRIOR_ODDS, 1 - PRIOR_ODDS))
        ]
        of_use = float(expit(logs[0] - logs[1]))
        weighed = list(mixtures)
        for m, ratio in ratios.items():
            given_use, given_none = (float(expit(logit(kinship) + ratio)) for kinship in kinships[m])
            weighed[m] = replace(mixtures[m], related=of_use * given_use + (1 - of_use) * given_none)
        return weighed

    def _worth(self, index: int) -> float:
        """Return 1 where half of an objective's variance or more is common to the prior studies, less for less."""
        pool = self.objectives[index].pool
        return min(1.0, 2 * pool.worth + 1e-3) if pool is not None else 0.0

    def constraints(self, results: Results) -> list[Mixture]:
        """Return what to believe of each constraint; 0 stays 0 on its scale."""
        beliefs = []
        x = results.encoding.encode(results.configurations)
        for name, values in results.violations.items():
            known = np.isfinite(values)
            beliefs.append(self._mixture(f"constraint {name}", x[known], values[known], None))
        return beliefs

    def _mixture(self, name: str, x: Array, y: Array, pool: Pool | None) -> Mixture:
        """Return the beliefs about values y (n,) at points x (n, D), with and without prior studies; not weighed."""
        parameter = self._cube.parameter
        if pool is None:
            return Mixture((Process(x, y, parameter, self._fitted(name, x, y), Location.of_values(y)),))
        related = Process(x, y, parameter, pool.hyper, pool.location, pool)
        if not len(y):
            return Mixture((related,))
        return Mixture((related, Process(x, y, parameter, self._fitted(name, x, y), pool.location)))

    def _fitted(self, name: str, x: Array, y: Array) -> Hyperparameters:
        """Return hyperparameters of own values, fitted again only when a tenth more of them have come."""
        count, known = self._fits.get(name, (0, None))
        if known is not None and count <= len(y) < max(count + 1, 1.1 * count):
            return known
        chosen = np.unique(np.linspace(0, len(y) - 1, min(MOST_FITTED, len(y))).astype(int))
        standardized = (y[chosen] - y.mean()) / deviation_of(y) if len(y) else y
        found = fit(x[chosen], standardized, self._cube.parameter, self._beliefs, start=known, steps=40)
        self._fits[name] = len(y), found
        return found


def _key(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(config.items()))


def thinned(configurations: Sequence[Mapping[str, Any]], most: int = 300) -> list[Mapping[str, Any]]:
    """Return about so many of the configurations, evenly."""
    return list(configurations[:: max(1, len(configurations) // most)])


def winsorized(y: Array) -> Array:
    """Return values (n,) to minimize, those that are outliers on the bad side brought to the edge of the others.

    A failed training says that its neighbourhood is bad, not how much; its value would bend the model all around it.
    """
    if len(y) < 5:
        return y
    low, high = np.quantile(y, [0.25, 0.75])
    return np.asarray(np.minimum(y, high + FENCE * (high - low)))
