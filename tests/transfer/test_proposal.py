from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from metasearch.transfer.encoding import Encoding, Params
from metasearch.transfer.gp import Hyperparameters
from metasearch.transfer.proposal import Computed, propose, spread_out
from metasearch.transfer.results import Results
from metasearch.transfer.surrogates import Location, Mixture, Process

Array = NDArray[np.float64]
UNIT: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
ENCODING = Encoding.of(UNIT)
SHARP = Hyperparameters(np.array([-1.0, -1.0]), 1.0, 1e-4)


def results_of(configurations: list[Params], values: Array) -> Results:
    trials = [
        create_trial(params=c, distributions=UNIT, values=v.tolist())
        for c, v in zip(configurations, values, strict=True)
    ]
    return Results.of(trials, ENCODING, np.ones(values.shape[1]), {})


def grid(side: int = 5) -> list[Params]:
    return [{"x": float(x), "y": float(y)} for x in np.linspace(0, 1, side) for y in np.linspace(0, 1, side)]


def believed(configurations: list[Params], values: Array) -> Mixture:
    x = ENCODING.encode(configurations)
    return Mixture((Process(x, values, ENCODING.parameter, SHARP, Location.of_values(values)),))


def distance_to(x: float, y: float) -> Computed:
    return lambda configs: np.array([(c["x"] - x) ** 2 + (c["y"] - y) ** 2 for c in configs])


def test_the_best_of_a_known_function_is_proposed() -> None:
    values = distance_to(0.3, 0.8)(grid())[:, None]
    [found] = propose(results_of(grid(), values), values, [distance_to(0.3, 0.8)], [], [], np.random.default_rng(0))
    assert (found["x"], found["y"]) == (pytest.approx(0.3, abs=0.1), pytest.approx(0.8, abs=0.1))


def test_the_best_of_a_modelled_function_is_proposed_near_where_it_is() -> None:
    values = distance_to(0.3, 0.8)(grid())
    results = results_of(grid(), values[:, None])
    [found] = propose(results, values[:, None], [believed(grid(), values)], [], [], np.random.default_rng(0))
    assert distance_to(0.3, 0.8)([found])[0] < 0.1


def test_a_start_that_no_random_candidate_equals_is_taken() -> None:
    needle = {"x": 0.123456, "y": 0.654321}

    def computed(configs: object) -> Array:
        return np.array([float(config != needle) for config in configs])  # type: ignore[attr-defined]  # a sequence

    values = np.ones((25, 1)) * 2
    results = results_of(grid(), values)
    assert propose(results, values, [computed], [], [needle], np.random.default_rng(0)) == [needle]


def test_two_objectives_fill_the_gap_of_the_front() -> None:
    # values are the parameters; the front is known but for its middle
    known = [{"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 0.0}]
    values = np.array([[0.0, 1.0], [1.0, 0.0]])
    both: list[Computed] = [lambda cs: np.array([c["x"] for c in cs]), lambda cs: np.array([c["y"] for c in cs])]
    [found] = propose(results_of(known, values), values, both, [], [], np.random.default_rng(0))
    assert max(found["x"], found["y"]) < 0.1  # it dominates most of the box


def test_what_breaks_a_constraint_is_not_proposed() -> None:
    values = distance_to(0.9, 0.5)(grid())[:, None]
    broken = np.array([config["x"] - 0.5 for config in grid()])  # the best lies where it is broken
    results = replace(results_of(grid(), values), feasible=broken <= 0)
    constraint = believed(grid(), broken)
    [found] = propose(results, values, [distance_to(0.9, 0.5)], [constraint], [], np.random.default_rng(0))
    assert 0.3 < found["x"] < 0.6


def test_a_running_trial_s_neighbourhood_is_left_to_it() -> None:
    values = distance_to(0.3, 0.8)(grid())[:, None]
    idle = results_of(grid(), values)
    [first] = propose(idle, values, [believed(grid(), values[:, 0])], [], [], np.random.default_rng(0))
    busy = replace(idle, running=[first], taken=np.vstack([idle.taken, ENCODING.encode([first])]))
    [second] = propose(busy, values, [believed(grid(), values[:, 0])], [], [], np.random.default_rng(0))
    assert max(abs(second["x"] - first["x"]), abs(second["y"] - first["y"])) > 1e-3


def test_the_last_configuration_left_is_proposed_though_it_is_bad() -> None:
    space: dict[str, BaseDistribution] = {"n": IntDistribution(0, 11)}
    tried = [create_trial(params={"n": n}, distributions=space, value=float(n)) for n in range(11)]
    results = Results.of(tried, Encoding.of(space), np.ones(1), {})
    [found] = propose(
        results, results.values, [lambda cs: np.array([float(c["n"]) for c in cs])], [], [], np.random.default_rng(0)
    )
    assert found == {"n": 11}


def test_the_last_configuration_left_is_found_without_a_model_too() -> None:
    encoding = Encoding.of({"n": IntDistribution(0, 199)})  # more than are drawn
    for left in range(0, 200, 40):
        taken = encoding.encode([{"n": n} for n in range(200) if n != left])
        assert spread_out(encoding, taken, np.random.default_rng(0)) == {"n": left}


def test_the_first_configurations_are_spread_over_the_space() -> None:
    rng, taken = np.random.default_rng(0), np.zeros((0, 2))
    for _ in range(9):
        taken = np.vstack([taken, ENCODING.encode([spread_out(ENCODING, taken, rng)])])
    apart = np.linalg.norm(taken[:, None] - taken[None], axis=2) + 9 * np.eye(9)
    assert apart.min() > 0.2  # nine random points: 0.09 on average


def test_of_several_the_first_is_the_one_alone_and_no_two_lie_together() -> None:
    values = distance_to(0.3, 0.8)(grid())
    results, warped, beliefs = results_of(grid(), values[:, None]), values[:, None], [believed(grid(), values)]
    several = propose(results, warped, beliefs, [], [], np.random.default_rng(0), count=8)
    assert several[:1] == propose(results, warped, beliefs, [], [], np.random.default_rng(0))
    x = ENCODING.encode(several)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(8, 1)]
    assert apart.min() > 1e-6


def test_several_share_a_front_where_one_after_the_other_would() -> None:
    ends = [distance_to(0.1, 0.1), distance_to(0.9, 0.9)]
    known: list[Params] = [{"x": 0.1, "y": 0.9}, {"x": 0.9, "y": 0.1}]
    values = np.column_stack([end(known) for end in ends])
    found = propose(
        results_of(known, values), values, ends, [], [], np.random.default_rng(0), only_starts=False, count=6
    )
    along = sorted((config["x"] + config["y"]) / 2 for config in found)
    assert along[0] < 0.35
    assert along[-1] > 0.65


def test_only_starts_are_taken_while_there_are_any() -> None:
    starts: list[Params] = [{"x": 0.2, "y": 0.2}, {"x": 0.8, "y": 0.4}, {"x": 0.5, "y": 0.9}]
    values = distance_to(0.3, 0.8)(grid())[:, None]
    found = propose(
        results_of(grid(), values),
        values,
        [believed(grid(), values[:, 0])],
        [],
        starts,
        np.random.default_rng(0),
        only_starts=True,
        count=5,
    )
    assert sorted(found, key=str) == sorted(starts, key=str)
