from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from metasearch.transfer.encoding import Axis, Conditions, Encoding, value_at

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def floats(draw: st.DrawFn) -> FloatDistribution:
    kind = draw(st.sampled_from(["linear", "log", "step"]))
    if kind == "step":
        first, step = draw(st.integers(-50, 50)), draw(st.sampled_from([0.01, 0.1, 0.25, 3.0]))
        return FloatDistribution(first, round(first + step * draw(st.integers(1, 50)), 9), step=step)
    low = draw(st.floats(1e-6, 1e3) if kind == "log" else st.floats(-1e3, 1e3))
    return FloatDistribution(low, low + draw(st.floats(1e-3, 1e3)), log=kind == "log")


@st.composite
def whole_numbers(draw: st.DrawFn) -> IntDistribution:
    if draw(st.booleans()):
        low = draw(st.integers(1, 1000))
        return IntDistribution(low, low + draw(st.integers(1, 1000)), log=True)
    low, step = draw(st.integers(-1000, 1000)), draw(st.integers(1, 7))
    return IntDistribution(low, low + step * draw(st.integers(1, 100)), step=step)


@st.composite
def choices(draw: st.DrawFn) -> CategoricalDistribution:
    of: st.SearchStrategy[Any] = draw(st.sampled_from([st.integers(-9, 9), st.text(max_size=3), st.floats(-5, 5)]))
    return CategoricalDistribution(draw(st.lists(of, min_size=2, max_size=6, unique=True)))


distributions = st.one_of(floats(), whole_numbers(), choices())


def permitted(distribution: BaseDistribution, value: Any) -> bool:
    """Whether Optuna takes the value, and a number has the type that it hands to an objective."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    wanted = int if isinstance(distribution, IntDistribution) else float
    return type(value) is wanted and distribution._contains(distribution.to_internal_repr(value))


@settings(max_examples=50)
@given(distributions, SEEDS)
def test_drawn_values_are_permitted_and_encoded_inside_the_cube(distribution: BaseDistribution, seed: int) -> None:
    axis, rng = Axis("a", distribution), np.random.default_rng(seed)
    for _ in range(20):
        value = axis.draw(rng)
        assert permitted(distribution, value)
        columns = np.array(axis.encode(value))
        assert columns.shape == (axis.columns,)
        assert (columns > -1e-9).all()
        assert (columns < 1 + 1e-9).all()


@settings(max_examples=50)
@given(distributions, SEEDS, st.floats(0.01, 2))
def test_a_value_nearby_is_another_one_and_permitted(distribution: BaseDistribution, seed: int, spread: float) -> None:
    axis, rng = Axis("a", distribution), np.random.default_rng(seed)
    value = axis.draw(rng)
    for _ in range(20):
        before, value = value, axis.near(value, spread, rng)
        assert permitted(distribution, value)
        assert value != before


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0, 1),
        FloatDistribution(1e-3, 1, log=True),
        FloatDistribution(0, 1, step=0.25),
        IntDistribution(1, 2, log=True),
        IntDistribution(-1, 1),
        CategoricalDistribution([1, 2, 4]),
    ],
)
def test_a_value_at_an_end_of_its_range_moves_away_from_it(distribution: BaseDistribution) -> None:
    axis, rng = Axis("a", distribution), np.random.default_rng(0)
    for end in (value_at(distribution, 0), value_at(distribution, 1 - 1e-12)):
        assert all(axis.near(end, 0.1, rng) != end for _ in range(30))


@pytest.mark.parametrize("distribution", [FloatDistribution(2, 2), IntDistribution(2, 2), CategoricalDistribution([2])])
def test_the_only_value_of_a_range_stays(distribution: BaseDistribution) -> None:
    assert Axis("a", distribution).near(2, 0.1, np.random.default_rng(0)) == 2


FINITE: dict[str, BaseDistribution] = {
    "a": CategoricalDistribution(["p", "q"]),
    "n": IntDistribution(1, 3, log=True),
    "s": FloatDistribution(0, 0.5, step=0.25),
}


def test_what_is_left_of_a_finite_space_is_found_one_by_one() -> None:
    encoding, rng = Encoding.of(FINITE), np.random.default_rng(0)
    tried: list[dict[str, Any]] = []
    while (config := encoding.untried(encoding.encode(tried), rng)) is not None:
        tried.append(config)
    every = {(a, n, s) for a in "pq" for n in (1, 2, 3) for s in (0.0, 0.25, 0.5)}
    assert len(tried) == len(every)
    assert {(c["a"], c["n"], c["s"]) for c in tried} == every


def test_what_is_not_there_makes_no_configuration_of_its_own() -> None:
    seen: list[dict[str, Any]] = [{"a": "p", "n": 1}, {"a": "q", "n": 1, "s": 0.0}]
    encoding, rng = Encoding.of(FINITE, seen), np.random.default_rng(0)
    tried: list[dict[str, Any]] = []
    while (config := encoding.untried(encoding.encode(tried), rng)) is not None:
        tried.append(config)
    assert len(tried) == 3 + 9


@pytest.mark.parametrize("more", [FloatDistribution(0, 1), IntDistribution(0, 10**9), IntDistribution(1, 60)])
def test_a_space_too_large_to_list_is_not_listed(more: BaseDistribution) -> None:
    encoding = Encoding.of({**FINITE, "more": more})
    assert encoding.untried(np.zeros((0, len(encoding.parameter))), np.random.default_rng(0)) is None


@settings(max_examples=50)
@given(st.one_of(whole_numbers(), choices()), SEEDS)
def test_different_values_of_a_finite_parameter_are_different_points(distribution: BaseDistribution, seed: int) -> None:
    axis, rng = Axis("a", distribution), np.random.default_rng(seed)
    values = {axis.draw(rng) for _ in range(30)}
    assert len({tuple(np.round(axis.encode(value), 9)) for value in values}) == len(values)


@settings(max_examples=50)
@given(floats().filter(lambda d: d.step is None), st.floats(0, 1))
def test_the_value_at_a_share_is_encoded_as_that_share(distribution: FloatDistribution, share: float) -> None:
    axis = Axis("a", distribution)
    # ranges may be narrow far from 0 (1e-3 beside 1e3): a share keeps about ten digits of them
    assert axis.encode(value_at(axis.distribution, share))[0] == pytest.approx(share, abs=1e-7)


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(3, 9, step=2), [3, 5, 7, 9]),
        (IntDistribution(1, 4, log=True), [1, 2, 3, 4]),
        (FloatDistribution(0.0, 0.9, step=0.3), [0.0, 0.3, 0.6, 0.9]),
        (CategoricalDistribution([64, 16, 32]), [16, 32, 64]),
    ],
)
def test_values_keep_their_order_and_all_are_drawn(distribution: BaseDistribution, values: list[Any]) -> None:
    axis, rng = Axis("a", distribution), np.random.default_rng(0)
    encoded = [axis.encode(value)[0] for value in values]
    assert encoded == sorted(encoded)
    assert (encoded[0], encoded[-1]) == (0.0, 1.0)
    drawn = {axis.encode(axis.draw(rng))[0] for _ in range(300)}
    assert np.allclose(sorted(drawn), encoded)


def test_steps_are_drawn_equally_often() -> None:
    axis, rng = Axis("a", IntDistribution(0, 9)), np.random.default_rng(0)
    counts = np.bincount([axis.draw(rng) for _ in range(5000)])
    assert len(counts) == 10
    assert (np.abs(counts - 500) < 150).all()


def test_small_steps_stay_near_and_large_ones_reach_far() -> None:
    axis, rng = Axis("a", FloatDistribution(1e-4, 1, log=True)), np.random.default_rng(0)

    def distance(spread: float) -> float:
        return float(np.mean([abs(axis.encode(axis.near(1e-2, spread, rng))[0] - 0.5) for _ in range(300)]))

    assert distance(0.01) < 0.02 < 0.1 < distance(0.3)


def test_choices_without_an_order_lie_at_distance_one_and_true_is_no_number() -> None:
    for options in (["a", "b", "c"], [True, False, 7], [1, 2]):
        encoding = Encoding.of({"c": CategoricalDistribution(options)})
        x = encoding.encode([{"c": option} for option in options])
        distances = np.linalg.norm(x[:, None] - x[None], axis=2)
        assert np.allclose(distances, 1 - np.eye(len(options)))


def test_columns_belong_to_their_parameter_and_a_missing_one_stands_in_the_middle() -> None:
    encoding = Encoding.of({"b": CategoricalDistribution(["p", "q"]), "a": FloatDistribution(0, 4)})
    assert encoding.parameter.tolist() == [0, 1, 1]
    side = 0.5**0.5
    assert np.allclose(encoding.encode([{"a": 1.0, "b": "q"}, {}]), [[0.25, 0, side], [0.5, 0, 0]])
    assert encoding.encode([]).shape == (0, 3)


def test_a_choice_that_is_none_of_a_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="not in"):
        Encoding.of({"b": CategoricalDistribution(["p", "q"])}).encode([{"b": "r"}])


# prune: a pruner's name, or none; its schedule only for l1; the schedule's steps only where it has steps
NESTED: dict[str, BaseDistribution] = {
    "prune": CategoricalDistribution(["none", "l1", "random"]),
    "schedule": CategoricalDistribution(["once", "steps"]),
    "steps": IntDistribution(2, 8),
    "width": FloatDistribution(0, 1),
}


def nested(rng: np.random.Generator) -> dict[str, Any]:
    config = {name: Axis(name, distribution).draw(rng) for name, distribution in NESTED.items()}
    if config["prune"] != "l1":
        del config["schedule"]
    if config.get("schedule") != "steps":
        del config["steps"]
    return config


def consistent(config: dict[str, Any]) -> bool:
    return ("schedule" in config) == (config["prune"] == "l1") and ("steps" in config) == (
        config.get("schedule") == "steps"
    )


def test_nested_conditions_are_learned_and_kept_by_drawn_and_mutated_configurations() -> None:
    rng = np.random.default_rng(0)
    encoding = Encoding.of(NESTED, [nested(rng) for _ in range(40)])
    config = encoding.draw(rng)
    seen = set()
    for _ in range(300):
        config = encoding.mutated(config, rng)
        seen.add(tuple(config))
        for candidate in (config, encoding.draw(rng)):
            assert consistent(candidate)
            assert all(permitted(NESTED[name], value) for name, value in candidate.items())
    assert len(seen) == 3  # every branch is reached


def test_a_parameter_that_goes_takes_along_those_that_depend_on_it() -> None:
    rng = np.random.default_rng(1)
    encoding = Encoding.of(NESTED, [nested(rng) for _ in range(40)])
    full = {"prune": "none", "schedule": "steps", "steps": 3, "width": 0.5}
    assert encoding.conditions.kept(full) == {"prune": "none", "width": 0.5}
    assert encoding.conditions.permits("steps", full | {"prune": "l1"})


def test_parameters_of_two_branches_do_not_rule_each_other_out() -> None:
    space: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(["p", "q"]) for name in ("branch", "only_p", "only_q")
    }
    seen = [{"branch": b, f"only_{b}": value} for b in "pq" for value in "pq"]
    encoding, rng = Encoding.of(space, seen), np.random.default_rng(0)
    for _ in range(30):
        config = encoding.draw(rng)
        assert set(config) == {"branch", f"only_{config['branch']}"}


def test_a_whole_number_of_few_values_decides_which_parameters_are_there() -> None:
    space: dict[str, BaseDistribution] = {"layers": IntDistribution(1, 3)}
    space |= {f"width_{i}": FloatDistribution(0, 1) for i in range(3)}
    seen = [{"layers": n, **{f"width_{i}": 0.5 for i in range(n)}} for n in (1, 2, 3)]
    encoding, rng = Encoding.of(space, seen), np.random.default_rng(0)
    for _ in range(30):
        config = encoding.draw(rng)
        assert len(config) == 1 + config["layers"]


def test_a_value_seen_with_and_without_a_parameter_is_no_condition() -> None:
    axes = [Axis("a", CategoricalDistribution(["p", "q"])), Axis("b", FloatDistribution(0, 1))]
    seen: list[dict[str, Any]] = [{"a": "p", "b": 0.5}, {"a": "p"}, {"a": "q"}]
    assert Conditions.learned(seen, axes).permits("b", {"a": "q"})


def test_configurations_that_have_everything_teach_no_conditions() -> None:
    rng = np.random.default_rng(0)
    flat = Encoding.of(NESTED)
    assert not Encoding.of(NESTED, [flat.draw(rng) for _ in range(20)]).conditions.rules
    assert set(flat.draw(rng)) == set(NESTED)


def test_a_mutant_differs_and_mostly_in_one_parameter() -> None:
    space: dict[str, BaseDistribution] = {f"p{i}": FloatDistribution(0, 1) for i in range(6)}
    encoding, rng = Encoding.of(space), np.random.default_rng(0)
    config = encoding.draw(rng)
    changes = [sum(config[n] != v for n, v in encoding.mutated(config, rng).items()) for _ in range(200)]
    assert min(changes) > 0
    assert 0.3 < np.mean([change == 1 for change in changes]) < 0.9
