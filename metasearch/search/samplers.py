"""Samplers by name: Optuna's, and ours, which starts from prior studies.

What a seed fixes: a trial's own seed is a function of the study's and its number, always. Random parameters depend on
nothing but the seed and how many trials were asked before, so they are the same on any number of workers. The other
samplers answer to the results they have when they are asked: on one worker the same trials come again, on several only
if trials end in the same order, which no machine promises. An interrupted search draws with another seed from there on
(a function of how many trials there were): two interrupted after the same trial go on alike, but not like one that was
not interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import InputError
from metasearch.spelling import hint
from metasearch.transfer.prior import NOTHING, Prior
from metasearch.transfer.sampler import RUNNING_A_PLAN, TransferSampler


class _TPE(optuna.samplers.TPESampler):
    """TPE whose densities serve several trials where many run: one more for each RUNNING_A_PLAN.

    At 10,000 trials its densities take a second to make. Made for every trial they would keep 1,000 slots of ten-minute
    trials waiting; each trial knows all results but the last few, of which it would know as little a moment earlier.
    """

    def __init__(self, seed: int) -> None:
        # Grouped, so that conditional parameters are modelled together with those they appear with; the constant liar
        # keeps parallel workers from being sent to the same point.
        super().__init__(seed=seed, multivariate=True, group=True, constant_liar=True)
        self._made: list[Any] = []
        self._kept: dict[frozenset[tuple[str, BaseDistribution]], tuple[list[Any], int]] = {}
        """By the parameters sampled together: their densities, and the number of the last trial that these serve."""

    def _build_parzen_estimator(self, *args: Any, **options: Any) -> Any:
        self._made.append(super()._build_parzen_estimator(*args, **options))
        return self._made[-1]

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        key = frozenset(search_space.items())
        densities, last = self._kept.get(key, ([], -1))
        if trial.number > last:  # by trials, not by uses: parameters that few trials have would be sampled by old ones
            self._made = []
            found = super()._sample(study, trial, search_space)
            running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) - 1
            self._kept[key] = self._made, trial.number + running // RUNNING_A_PLAN
            return found
        below, above = densities
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: domain.to_external_repr(best[name]) for name, domain in search_space.items()}


Computed = Mapping[str, Callable[[Mapping[str, Any]], float]]
SAMPLERS: dict[str, Callable[[int, Sequence[Prior], Mapping[str, Any], Computed], BaseSampler]] = {
    "transfer": lambda seed, priors, fixed, computed: TransferSampler(
        priors, seed=seed, fixed=fixed, computed=computed
    ),
    "tpe": lambda seed, *_: _TPE(seed),
    "gp": lambda seed, *_: optuna.samplers.GPSampler(seed=seed),
    "nsga2": lambda seed, *_: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed, *_: optuna.samplers.RandomSampler(seed=seed),
}
SAMPLERS_WITH_PRIORS = ("transfer",)
"""Those that make use of prior studies."""


def check_sampler(name: str) -> str:
    """Return the name. Raises InputError if it is not that of a sampler."""
    if name not in SAMPLERS:
        raise InputError("--sampler", f"must be one of {', '.join(SAMPLERS)} {hint(name, SAMPLERS)}", name)
    return name


def make_sampler(
    name: str,
    *,
    seed: int,
    trials_so_far: int,
    priors: Sequence[Prior] = (),
    fixed: Mapping[str, Any] = NOTHING,
    computed: Computed = NOTHING,
) -> BaseSampler:
    """Return a sampler for a study that holds `trials_so_far` trials.

    priors: what it may start from. fixed: what its space does not search. computed: objectives that need no trial to be
    known, by functions of what a trial chooses; only a sampler that knows priors makes use of them, too.

    The number is part of its seed: a resumed search must not draw again what was drawn before it was interrupted.
    """
    drawn = int(np.random.SeedSequence([seed, trials_so_far]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[check_sampler(name)](drawn, priors, fixed, computed)
