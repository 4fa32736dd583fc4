"""Optuna's own suite over TransferSampler: without prior studies, and with some that fit its spaces more or less."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from metasearch.transfer.prior import Prior, prior_of
from metasearch.transfer.sampler import TransferSampler


def numbers(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -5, 5) + trial.suggest_int("y", 1, 20, log=True)


def choices(trial: optuna.Trial) -> float:
    # the suite suggests numbers and other choices for x and y, and has conditions on them
    x = trial.suggest_categorical("x", [True, False, "a", 1, 0.5])
    return trial.suggest_float("y", 0, 0.5) if x is True else float(x == "a") + trial.suggest_int("z", 0, 3)


def prior(objective: Callable[[optuna.Trial], float], seed: int) -> Prior:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(objective, n_trials=10)
    return prior_of(study)


class TestWithoutPriors(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: TransferSampler(seed=0)


class TestWithOnePrior(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        priors = [prior(numbers, 0)]
        return lambda: TransferSampler(priors, seed=0)


@pytest.mark.slow
class TestWithTwoPriors(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        priors = [prior(choices, 1), prior(numbers, 2)]
        return lambda: TransferSampler(priors, seed=0)
