"""Samplers by name, and that a resumed search draws new points."""

from __future__ import annotations

import optuna
import pytest

from metasearch.errors import InputError
from metasearch.search.samplers import SAMPLERS, check_sampler, make_sampler


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


@pytest.mark.parametrize("name", SAMPLERS)
def test_making_a_sampler_warns_of_nothing(name: str, recwarn: pytest.WarningsRecorder) -> None:
    make_sampler(name, seed=0, trials_so_far=0)
    assert not recwarn.list
