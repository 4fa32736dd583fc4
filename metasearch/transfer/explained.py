"""What a search took from its prior studies: how far it believed them as results came, and which of them were right.

Both are answered from the finished trials of a study, with the models that proposed them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from metasearch.transfer.knowledge import Knowledge
from metasearch.transfer.mapping import fixed_choices
from metasearch.transfer.prior import Prior
from metasearch.transfer.results import Results

FEWEST = 5
"""Complete trials below which a rank correlation says nothing."""


@dataclass(frozen=True)
class Weights:
    """The share of belief in the prior studies after so many finished trials, in [0, 1], by objective."""

    trials: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """How a prior study alone ranks a study's configurations, against what the study found for an objective.

    trials: complete ones. correlation: Spearman's, in [-1, 1]; None where they are too few, or all alike.
    """

    prior: str
    task: str
    objective: str
    trials: int
    correlation: float | None


def knowledge_for(study: Prior, priors: Sequence[Prior]) -> Knowledge:
    """Return what the priors know on the space and for the objectives of a study."""
    searched = {name: d for name, d in study.distributions.items() if not d.single()}
    fixed = {name: value for name, value in study.fixed.items() if name not in searched}
    return Knowledge.of(priors, searched | fixed_choices(priors, fixed), study.directions, fixed)


def some_counts(total: int, most: int) -> list[int]:
    """Return about `most` numbers of trials from 1 to the total: the powers of two, and others evenly."""
    doubling = 2 ** np.arange(total.bit_length())
    evenly = np.linspace(1, total, min(total, max(most - len(doubling), 2))).round().astype(int)
    return [int(count) for count in np.union1d(doubling, evenly)]


def weights_over_trials(trials: Sequence[FrozenTrial], knowledge: Knowledge, *, most: int = 40) -> tuple[Weights, ...]:
    """Return the share of belief in the prior studies after the first n finished trials, for about `most` values of n.

    Objectives that no prior study measured are left out; so are the n before the first complete trial.
    """
    known = {name: m for m, name in enumerate(knowledge.directions) if knowledge.objectives[m].pool is not None}
    if not known or not trials:
        return ()
    encoding = knowledge.encoding(trials)
    found = []
    for count in some_counts(len(trials), most):
        results = Results.of(trials[:count], encoding, knowledge.signs, {})
        if results.measured.any():
            beliefs = knowledge.beliefs(results)
            found.append(Weights(count, {name: float(beliefs[m].related) for name, m in known.items()}))
    return tuple(found)


def agreements(trials: Sequence[FrozenTrial], knowledge: Knowledge) -> tuple[Agreement, ...]:
    """Return how well each prior study alone ranks the study's configurations, per objective, the best first.

    What a prior study lets expect is the pooled process given that study's points only. All are judged on the same
    configurations, those that the search chose: where it chose among good ones only, all correlations are lower.
    """
    results = Results.of(trials, knowledge.encoding(trials), knowledge.signs, {})
    x = results.encoding.encode(results.configurations)[results.measured]
    found = []
    for m, (name, objective) in enumerate(zip(knowledge.directions, knowledge.objectives, strict=True)):
        if objective.pool is None:
            continue
        values = results.values[results.measured, m]
        for index, prior in enumerate(knowledge.studies(name)):
            correlation = None
            if len(values) >= FEWEST:
                alone = objective.pool.alone(index)
                expected = alone.mean(alone.explained(x))
                if np.ptp(values) > 0 and np.ptp(expected) > 0:
                    correlation = float(spearmanr(expected, values).statistic)
            found.append(Agreement(prior.name, prior.task, name, len(values), correlation))
    mean = {prior.name: _mean([a.correlation for a in found if a.prior == prior.name]) for prior in knowledge.priors}
    return tuple(sorted(found, key=lambda a: -mean[a.prior]))


def _mean(correlations: Sequence[float | None]) -> float:
    known = [value for value in correlations if value is not None]
    return sum(known) / len(known) if known else -1.0
