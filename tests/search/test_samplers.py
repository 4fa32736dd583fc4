"""Samplers by name, and that a resumed search draws new points."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest

from metasearch.errors import InputError
from metasearch.search.samplers import SAMPLERS, check_sampler, make_sampler
from metasearch.transfer.sampler import RUNNING_A_PLAN


def drawn(name: str, *, seed: int, trials_so_far: int, count: int = 3) -> list[float]:
    study = optuna.create_study(sampler=make_sampler(name, seed=seed, trials_so_far=trials_so_far))
    return [study.ask().suggest_float("x", 0, 1) for _ in range(count)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_and_number_of_trials_draw_the_same_points(name: str) -> None:
    assert drawn(name, seed=1, trials_so_far=4) == drawn(name, seed=1, trials_so_far=4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_search_does_not_draw_the_first_points_again(name: str) -> None:
    assert not set(drawn(name, seed=1, trials_so_far=0)) & set(drawn(name, seed=1, trials_so_far=3))


def test_another_seed_draws_other_points() -> None:
    assert not set(drawn("random", seed=1, trials_so_far=0)) & set(drawn("random", seed=2, trials_so_far=0))


def test_an_unknown_sampler_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        InputError, match=r"--sampler: must be one of transfer, tpe, gp, nsga2, random .*nsga2.*got 'nsga'"
    ):
        check_sampler("nsga")


def test_tpe_is_optunas_own_while_few_trials_run() -> None:
    def asked(sampler: optuna.samplers.BaseSampler) -> list[dict[str, float]]:
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        running: list[optuna.Trial] = []
        for _ in range(40):
            running.append(study.ask())
            x, y = running[-1].suggest_float("x", 0, 1), running[-1].suggest_int("y", 1, 9)
            if len(running) == 4:
                study.tell(running.pop(0), [x, y])
        return [trial.params for trial in study.trials]

    seed = int(np.random.SeedSequence([1, 0]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        own = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    assert asked(make_sampler("tpe", seed=1, trials_so_far=0)) == asked(own)


def test_tpe_makes_its_densities_once_for_several_trials_where_many_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    build = optuna.samplers.TPESampler._build_parzen_estimator

    def counted(*args: Any, **options: Any) -> Any:
        made.append(1)
        return build(*args, **options)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_build_parzen_estimator", counted)
    study = optuna.create_study(sampler=make_sampler("tpe", seed=1, trials_so_far=0))
    for number in range(12):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + number)
    asked = [study.ask().suggest_float("x", 0, 1) for _ in range(3 * RUNNING_A_PLAN)]
    # two densities: for each of the first 32, for every second one of the next 32, for every third of the last
    assert len(made) <= 2 * RUNNING_A_PLAN * (1 + 1 / 2 + 1 / 3) + 6
    assert len(set(asked)) == len(asked)


def test_tpe_samples_parameters_that_few_trials_have_by_new_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler("tpe", seed=1, trials_so_far=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(12):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + trial.suggest_float("rare", 0, 1))
    made: list[set[str]] = []
    build = optuna.samplers.TPESampler._build_parzen_estimator

    def noted(self: Any, study: Any, space: dict[str, Any], *rest: Any, **options: Any) -> Any:
        made.append(set(space))
        return build(self, study, space, *rest, **options)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_build_parzen_estimator", noted)

    def sample_rare() -> None:
        number = study.ask().number
        sampler.sample_independent(study, study.trials[number], "rare", optuna.distributions.FloatDistribution(0, 1))

    for _ in range(5 * RUNNING_A_PLAN):
        study.ask()
    made.clear()
    sample_rare()
    assert {"rare"} in made
    for _ in range(10):  # more than the densities of so many running serve
        study.ask()
    made.clear()
    sample_rare()
    assert {"rare"} in made


@pytest.mark.parametrize("name", SAMPLERS)
def test_making_a_sampler_warns_of_nothing(name: str, recwarn: pytest.WarningsRecorder) -> None:
    make_sampler(name, seed=0, trials_so_far=0)
    assert not recwarn.list
