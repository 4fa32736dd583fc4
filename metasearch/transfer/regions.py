"""Where the good values of each parameter lie in one study and the next, and whether they are the same everywhere.

Good are the best fifth of a study's complete trials, by non-dominated sorting, the last front cut by crowding distance
(Deb et al. 2002). Two permutation tests per parameter decide the verdict:

- it matters, if the good values lie otherwise than a random fifth of the same study's values would. The statistic is
  chi-squared over the choices of a categorical parameter and five equally frequent cells of any other, for each study;
  their probabilities are combined by Cauchy's distribution, which holds for studies of the same configurations too,
  whose accidents are the same (Liu and Xie 2020);
- it differs, if, too, the good values of one study lie otherwise than those of the others (the statistic is the
  variance between studies, of the place on the parameter's scale or of the choices' shares), and not all studies have a
  middle half, or a commonest choice, in common.

A study that a sampler chose the trials of has most where the sampler looked; its own fifth says less than one of random
trials. A parameter that a configuration does not have is judged on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from metasearch.transfer.encoding import Axis
from metasearch.transfer.hypervolume import non_dominated
from metasearch.transfer.prior import Prior

Array = NDArray[np.float64]
SHARE = 0.2
FEWEST = 3
"""Good trials that have a parameter, below which a study says nothing of it."""
CELLS = 5
SHUFFLES, LEVEL = 2_000, 0.01
"""Permutations, and how improbable by chance it must be: there are some twenty parameters."""
SAME, DIFFERS, IDLE, MATTERS = "same everywhere", "differs", "does not matter", "matters"


@dataclass(frozen=True)
class Region:
    """Where the good values of a parameter lie in a study. trials: the good ones that have it.

    low, high: the middle half of a number's. choice, share: the commonest choice of another one's, and its share.
    """

    study: str
    trials: int
    low: Any = None
    high: Any = None
    choice: Any = None
    share: float | None = None


@dataclass(frozen=True)
class GoodRegions:
    """A parameter's good regions in the studies that say something of it, and what they say together.

    verdict: "same everywhere", "differs" or "does not matter"; "matters" where one study only knows it, "" where none
    does. chance: the probability of regions so narrow if the parameter did not matter.
    """

    parameter: str
    verdict: str
    chance: float
    regions: tuple[Region, ...]


def good_regions(
    studies: Sequence[Prior], distributions: Mapping[str, BaseDistribution], *, seed: int = 0
) -> tuple[GoodRegions, ...]:
    """Return the good regions of each parameter in the studies; those that differ first, those that do not matter last.

    studies: mapped to the distributions, the study in question among them. seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    fifths = [(study, best_share(study)) for study in studies if study.complete]
    found = [_regions(Axis(name, d), fifths, rng) for name, d in distributions.items() if not d.single()]
    order = (DIFFERS, SAME, MATTERS, IDLE, "")
    return tuple(sorted(found, key=lambda regions: (order.index(regions.verdict), regions.chance)))


def best_share(study: Prior, share: float = SHARE) -> NDArray[np.bool_]:
    """Return (n,), which complete trials of a study are its best share, of all its objectives together."""
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in study.directions.values()])
    values = signs * np.array([[trial.metrics[name] for name in study.directions] for trial in study.complete])
    wanted = max(round(share * len(values)), 1)
    left, chosen = np.arange(len(values)), np.zeros(len(values), bool)
    while wanted:
        front = left[non_dominated(values[left])]
        taken = front[np.argsort(-_crowding(values[front]), kind="stable")][:wanted]
        chosen[taken] = True
        wanted -= len(taken)
        left = np.setdiff1d(left, front)
    return chosen


def _crowding(values: Array) -> Array:
    """Return (n,), the distance between the neighbours of each point of a front, in its units; inf at the ends."""
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        width = float(np.ptp(column)) or 1.0
        distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / width
        distances[order[[0, -1]]] = np.inf
    return distances


def _regions(axis: Axis, fifths: Sequence[tuple[Prior, NDArray[np.bool_]]], rng: np.random.Generator) -> GoodRegions:
    regions, places, chances = [], [], []
    for study, good in fifths:
        has = np.array([axis.name in trial.params for trial in study.complete])
        if (good & has).sum() < FEWEST:
            continue
        values = [trial.params[axis.name] for trial in study.complete if axis.name in trial.params]
        chosen = good[has]
        place = np.array([axis.encode(value) for value in values])
        regions.append(_region(axis, study.name, [v for v, kept in zip(values, chosen, strict=True) if kept]))
        places.append(place[chosen])
        chances.append(_chance(chosen, _cells(place), rng))
    if not regions:
        return GoodRegions(axis.name, "", 1.0, ())
    chance = float(0.5 - np.arctan(np.mean(np.tan((0.5 - np.array(chances)) * np.pi))) / np.pi)
    if chance > LEVEL:
        verdict = IDLE
    elif len(regions) == 1:
        verdict = MATTERS
    else:
        verdict = SAME if _overlap(axis, regions) or not _apart(places, rng) else DIFFERS
    return GoodRegions(axis.name, verdict, chance, tuple(regions))


def _region(axis: Axis, study: str, values: Sequence[Any]) -> Region:
    if axis.ordered:
        ordered = sorted(values)
        last = len(ordered) - 1
        return Region(study, len(values), low=ordered[round(0.25 * last)], high=ordered[round(0.75 * last)])
    choice = max(axis.choices or (), key=values.count)
    return Region(study, len(values), choice=choice, share=values.count(choice) / len(values))


def _overlap(axis: Axis, regions: Sequence[Region]) -> bool:
    """Return whether all regions have a value in common."""
    if axis.ordered:
        return bool(max(region.low for region in regions) <= min(region.high for region in regions))
    return len({axis.encode(region.choice).index(max(axis.encode(region.choice))) for region in regions}) == 1


def _cells(place: Array) -> Array:
    """Return (n, C), 1 for the cell that a value is in; places (n, D) as an axis encodes them."""
    if place.shape[1] > 1:
        return np.asarray(place > 0, float)
    edges = np.unique(np.quantile(place, np.arange(1, CELLS) / CELLS))
    return np.eye(len(edges) + 1)[np.searchsorted(edges, place[:, 0], side="left")]


def _chance(chosen: NDArray[np.bool_], cells: Array, rng: np.random.Generator) -> float:
    """Return how probable it is that so many values, chosen at random, lie so unevenly in the cells (n, C)."""
    shuffled = rng.permuted(np.tile(chosen, (SHUFFLES, 1)), axis=1)
    expected = chosen.mean() * cells.sum(0)
    found, *by_chance = ((np.vstack([chosen, shuffled]) @ cells - expected) ** 2 / np.maximum(expected, 1e-12)).sum(1)
    return _at_least(found, np.array(by_chance))


def _at_least(found: float, by_chance: Array) -> float:
    """Return the share of values that are no smaller, counting what was found; never quite 1, where tan is infinite."""
    return float(0.5 + (by_chance >= found - 1e-9).sum()) / (1 + len(by_chance))


def _apart(places: Sequence[Array], rng: np.random.Generator) -> bool:
    """Return whether the good places (n, D) of the studies differ by more than chance."""
    everything = np.vstack(places)
    study = np.repeat(np.arange(len(places)), [len(place) for place in places])
    member = np.eye(len(places))
    sizes = np.array([len(place) for place in places])

    def between(labels: NDArray[np.intp]) -> float:
        means = member[labels].T @ everything / sizes[:, None]
        return float((sizes[:, None] * means**2).sum())

    found = between(study)
    shuffled = np.array([between(rng.permutation(study)) for _ in range(SHUFFLES)])
    return _at_least(found, shuffled) <= LEVEL
