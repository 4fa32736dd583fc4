"""The next configuration to try: of many candidates, the one that promises the largest gain of hypervolume.

n own points, M objectives (all minimized), Q candidates, S samples. Gains are counted on the warped scale of each
objective, where they do not depend on its units, below the worst that a random configuration may give: below what is
expected of one, the ends of the front would count for too little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from metasearch.transfer.encoding import Encoding, Params, repeats
from metasearch.transfer.hypervolume import Hypervolume, non_dominated
from metasearch.transfer.results import Results
from metasearch.transfer.surrogates import Mixture

Array = NDArray[np.float64]
RANDOM, MUTANTS, ROUNDS = 300, 120, 3
"""Random candidates; mutants of the best in each round; rounds."""
SAMPLES = 32
RAYS = 32


@dataclass(frozen=True)
class Judged:
    """Q candidates and what is believed of them.

    x: (Q, D), their points. samples: (S, Q, M), what each may give. odds: (Q,), that it is feasible. gains: (Q,) of
    hypervolume, expected of each; below 0 for those that are not to be proposed.
    """

    candidates: list[Params]
    x: Array
    samples: Array
    odds: Array
    gains: Array

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """Return the candidates of all parts in their order."""
        return cls(
            [config for part in parts for config in part.candidates],
            np.vstack([part.x for part in parts]),
            np.concatenate([part.samples for part in parts], axis=1),
            np.concatenate([part.odds for part in parts]),
            np.concatenate([part.gains for part in parts]),
        )


Computed = Callable[[Sequence[Mapping[str, Any]]], Array]
"""From configurations to the values (Q,) of an objective that no trial is needed for, on its warped scale."""


def propose(
    results: Results,
    warped: Array,
    objectives: Sequence[Mixture | Computed],
    constraints: Sequence[Mixture],
    starts: Sequence[Params],
    rng: np.random.Generator,
    *,
    only_starts: bool = False,
    count: int = 1,
) -> list[Params]:
    """Return the candidates of the largest expected gain of hypervolume, weighted by the odds that each is feasible.

    count: of them, at most. They are chosen one after the other among the same candidates, each for what it adds to
    those before it, sample by sample (Wilson et al. 2018, section 3.2): all that is costly is done once.

    warped: (n, M), the results on the scales of the objectives. objectives: a belief each, or a function that computes
    it. starts: candidates beside random ones, such as the best of earlier studies; only_starts: there are no others.
    Trials that still run are taken to give what is expected of them.
    """
    encoding = results.encoding
    if results.running:
        x = encoding.encode(results.running)
        expected = [o.mean(x) if isinstance(o, Mixture) else o(results.running) for o in objectives]
        objectives = [o.given(x, y) if isinstance(o, Mixture) else o for o, y in zip(objectives, expected, strict=True)]
        reached = np.vstack([warped[results.feasible], np.column_stack(expected)])
    else:
        reached = warped[results.feasible]
    drawn = [encoding.draw(rng) for _ in range(RANDOM)]
    own = [results.configurations[i] for i in non_dominated(warped)] if len(warped) else []
    near = [encoding.mutated(own[i % len(own)], rng) for i in range(MUTANTS)] if own else []
    normals = _normals(len(objectives), rng)
    chosen = [_chosen(objective, rng) for objective in objectives]
    candidates = [*drawn, *(encoding.completed(start, rng) for start in starts), *near]
    rounds: list[Judged] = []
    for _ in range(1 if only_starts else ROUNDS):
        x = encoding.encode(candidates)
        samples = np.stack(
            [_sampled(o, candidates, x, normals[:, m], chosen[m]) for m, o in enumerate(objectives)], axis=2
        )
        if not rounds:
            seen = np.vstack([*samples[:, :RANDOM], warped])
            low, high = seen.min(0), seen.max(0)
            measure = Hypervolume.of(high, np.maximum(high - low, 1e-12), count=RAYS)
            so_far = measure.best(reached)
        odds = _odds(constraints, x)
        gains = measure.improvement(samples, so_far) * odds
        gains[repeats(x, results.taken)] = -1.0
        if only_starts:
            gains[:RANDOM] = gains[RANDOM + len(starts) :] = -1.0
        rounds.append(Judged(candidates, x, samples, odds, gains))
        top = [candidates[i] for i in np.argsort(-gains, kind="stable")[:5]]
        candidates = [encoding.mutated(top[i % len(top)], rng, spread=0.1) for i in range(MUTANTS)]
    best = _best(Judged.joined(rounds), count, measure, so_far)
    return best or [encoding.untried(results.taken, rng) or drawn[0], *drawn[1:count]]


def _best(judged: Judged, count: int, measure: Hypervolume, reached: Array) -> list[Params]:
    """Return the candidate of the largest gain, then others, each chosen for what it adds to those before it.

    None where all were tried already. The same random numbers serve every candidate, so that what lies close together
    gains next to nothing together.
    """
    gains, found = judged.gains, list[Params]()
    gone = gains < 0
    while gains[index := int(np.argmax(gains))] >= 0:
        found.append(judged.candidates[index])
        if len(found) == count:
            break
        gone |= (np.abs(judged.x - judged.x[index]) < 1e-9).all(axis=1)
        reached = np.maximum(reached, measure.lengths(judged.samples[:, index]))
        gains = np.where(gone, -1.0, measure.improvement(judged.samples, reached) * judged.odds)
    return found


def spread_out(encoding: Encoding, taken: Array, rng: np.random.Generator, *, count: int = 64) -> Params:
    """Return the random configuration that is farthest from those taken (T, D); none of them, where others are left."""
    drawn = [encoding.draw(rng) for _ in range(count)]
    if not len(taken):
        return drawn[0]
    x = encoding.encode(drawn)
    distances = ((x[:, None] - taken[None]) ** 2).sum(2).min(1)
    farthest = int(np.argmax(distances))
    if distances[farthest] < 1e-18:
        return encoding.untried(taken, rng) or drawn[farthest]
    return drawn[farthest]


def _normals(objectives: int, rng: np.random.Generator) -> Array:
    """Return (S, M) normal numbers, each column stratified; the same ones serve every candidate."""
    strata = norm.ppf((np.arange(SAMPLES) + 0.5) / SAMPLES)
    return np.column_stack([rng.permutation(strata) for _ in range(objectives)])


def _chosen(objective: Mixture | Computed, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return (S,), which of the beliefs of a mixture each sample is drawn from."""
    weights = objective.weights if isinstance(objective, Mixture) else np.ones(1)
    counts = np.floor(np.cumsum(weights) * SAMPLES + 0.5).astype(int)
    return rng.permutation(np.searchsorted(counts, np.arange(SAMPLES), side="right").clip(max=len(weights) - 1))


def _sampled(
    objective: Mixture | Computed,
    candidates: Sequence[Params],
    x: Array,
    normals: Array,
    chosen: NDArray[np.intp],
) -> Array:
    """Return (S, Q) values of one objective."""
    if not isinstance(objective, Mixture):
        return np.broadcast_to(objective(candidates), (SAMPLES, len(x)))
    believed = objective.predict(x)
    means, deviations = np.array([p.mean for p in believed]), np.array([p.deviation for p in believed])
    return np.asarray(means[chosen] + normals[:, None] * deviations[chosen])


def _odds(constraints: Sequence[Mixture], x: Array) -> Array:
    """Return (Q,), the odds that every constraint is at most 0."""
    odds = np.ones(len(x))
    for constraint in constraints:
        believed = zip(constraint.weights, constraint.predict(x), strict=True)
        odds *= np.sum([weight * norm.cdf(-p.mean / p.deviation) for weight, p in believed], axis=0)
    return odds
