"""Samplers by name: Optuna's, and ours, which starts from prior studies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from metasearch.errors import InputError
from metasearch.spelling import hint
from metasearch.transfer.prior import NOTHING, Prior
from metasearch.transfer.sampler import TransferSampler


def _tpe(seed: int) -> BaseSampler:
    # Grouped, so that conditional parameters are modelled together with those they appear with; the constant liar
    # keeps parallel workers from being sent to the same point.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


SAMPLERS: dict[str, Callable[[int, Sequence[Prior], Mapping[str, Any]], BaseSampler]] = {
    "transfer": lambda seed, priors, fixed: TransferSampler(priors, seed=seed, fixed=fixed),
    "tpe": lambda seed, *_: _tpe(seed),
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
) -> BaseSampler:
    """Return a sampler for a study that holds `trials_so_far` trials.

    priors: what it may start from. fixed: what its space does not search.

    The number is part of its seed: a resumed search must not draw again what was drawn before it was interrupted.
    """
    drawn = int(np.random.SeedSequence([seed, trials_so_far]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[check_sampler(name)](drawn, priors, fixed)
