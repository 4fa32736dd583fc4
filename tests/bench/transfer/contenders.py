"""The samplers that are compared: how each starts from prior studies, and how many workers ask at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from metasearch.transfer.prior import Prior
from metasearch.transfer.sampler import TransferSampler
from tests.bench.transfer.priors import best_points
from tests.bench.transfer.tables import Params

ENQUEUED = 5
"""Prior points that a sampler without memory of its own is given first."""
WORKERS = 8

Start = tuple[BaseSampler, Sequence[Params]]
"""A sampler, and the points that its study tries first."""


@dataclass(frozen=True)
class Contender:
    """start: from prior studies and a seed. workers: how many ask before any of them tells."""

    start: Callable[[Sequence[Prior], int], Start]
    workers: int = 1


def _random(priors: Sequence[Prior], seed: int) -> Start:
    return RandomSampler(seed=seed), ()


def _tpe(priors: Sequence[Prior], seed: int) -> Start:
    sampler = TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
    return sampler, best_points(priors, ENQUEUED)


def _gp(priors: Sequence[Prior], seed: int) -> Start:
    return GPSampler(seed=seed, warn_independent_sampling=False), best_points(priors, ENQUEUED)


def _transfer(priors: Sequence[Prior], seed: int) -> Start:
    return TransferSampler(priors, seed=seed), ()


IN_PARALLEL = f", {WORKERS} workers"
CONTENDERS = {
    "random": Contender(_random),
    "tpe": Contender(_tpe),
    "gp": Contender(_gp),
    "transfer": Contender(_transfer),
    "tpe" + IN_PARALLEL: Contender(_tpe, WORKERS),
    "transfer" + IN_PARALLEL: Contender(_transfer, WORKERS),
}
"""TPE and GPSampler are cold without prior studies, and enqueue the best points of them where there are some."""
