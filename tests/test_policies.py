from __future__ import annotations

import math
import pickle
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from metasearch.errors import InputError
from metasearch.policies import KINDS, Policy, constant, cosine, cubic, linear, one_cycle, parameter_names

VALUES = st.floats(0.001, 1000)
PROGRESS = st.floats(0, 1)


def optimizer_at(learning_rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)


def rates_of(optimizer: torch.optim.SGD, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        if step < steps - 1:
            optimizer.step()
            scheduler.step()
    return rates


@given(value=VALUES, progress=PROGRESS)
def test_constant_is_its_value_everywhere(value: float, progress: float) -> None:
    assert constant(progress, value=value) == value


def test_linear_agrees_with_torch() -> None:
    optimizer = optimizer_at(0.5)
    rates = rates_of(optimizer, LinearLR(optimizer, start_factor=1, end_factor=0.1, total_iters=20), 21)
    assert [linear(step / 20, start=0.5, end=0.05) for step in range(21)] == pytest.approx(rates)


def test_cosine_agrees_with_torch() -> None:
    optimizer = optimizer_at(0.5)
    rates = rates_of(optimizer, CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01), 21)
    assert [cosine(step / 20, start=0.5, end=0.01) for step in range(21)] == pytest.approx(rates)


@pytest.mark.parametrize(("steps", "share"), [(11, 0.3), (50, 0.3), (101, 0.5), (40, 0.1)])
def test_one_cycle_agrees_with_torch_and_its_default_factors(steps: int, share: float) -> None:
    """OneCycleLR's warm-up ends at step share * steps - 1 of the steps 0 .. steps - 1."""
    optimizer = optimizer_at(0.1)
    rates = rates_of(optimizer, OneCycleLR(optimizer, max_lr=0.02, total_steps=steps, pct_start=share), steps)
    warmup = (share * steps - 1) / (steps - 1)
    ours = [one_cycle(step / (steps - 1), peak=0.02, warmup=warmup) for step in range(steps)]
    assert ours == pytest.approx(rates)


@given(final=VALUES, initial=VALUES, begin=st.floats(0, 0.4), end=st.floats(0.5, 1), progress=PROGRESS)
def test_cubic_is_the_formula_of_zhu_and_gupta(
    final: float, initial: float, begin: float, end: float, progress: float
) -> None:
    value = cubic(progress, final=final, initial=initial, begin=begin, end=end)
    if progress <= begin:
        assert value == pytest.approx(initial)
    elif progress >= end:
        assert value == final
    else:
        share = (progress - begin) / (end - begin)
        assert value == pytest.approx(final + (initial - final) * (1 - share) ** 3)


@pytest.mark.parametrize(
    ("kind", "parameters", "ends"),
    [
        ("constant", {"value": 3.0}, (3.0, 3.0)),
        ("linear", {"start": 8.0, "end": 2.0}, (8.0, 2.0)),
        ("cosine", {"start": 8.0}, (8.0, 0.0)),
        ("one_cycle", {"peak": 1.0}, (0.04, 4e-6)),
        ("cubic", {"final": 0.6}, (0.0, 0.6)),
    ],
)
def test_each_kind_starts_and_ends_where_it_says(
    kind: str, parameters: Mapping[str, float], ends: tuple[float, float]
) -> None:
    policy = Policy(kind, parameters)
    assert (policy(0.0), policy(1.0)) == pytest.approx(ends, abs=1e-12)


@given(kind=st.sampled_from(sorted(KINDS)), progress=PROGRESS, data=st.data())
def test_a_policy_stays_within_its_bounds_and_those_within_its_parameters(
    kind: str, progress: float, data: st.DataObject
) -> None:
    shares = {"warmup", "start_factor", "end_factor", "begin", "end"} - ({"end"} if kind != "cubic" else set())
    required, optional = parameter_names(kind)
    values = {name: data.draw(VALUES) for name in required + optional if name not in shares}
    policy = Policy(kind, values)
    low, high = policy.bounds()
    # a peak between two of the 101 points is missed by less than the curve falls in half a step
    assert low * (1 - 1e-3) - 1e-9 <= policy(progress) <= high * (1 + 1e-3) + 1e-9
    reachable = [*values.values(), *([4e-6 * values["peak"]] if kind == "one_cycle" else [])]
    assert min(reachable) - 1e-9 <= low <= high <= max(reachable) + 1e-9


def test_one_cycle_reaches_its_peak_at_the_end_of_the_warm_up() -> None:
    assert Policy("one_cycle", {"peak": 0.7, "warmup": 0.3})(0.3) == 0.7
    assert Policy("one_cycle", {"peak": 0.7, "warmup": 0.3}).bounds()[1] == 0.7


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (
            "cosin",
            {"start": 1.0},
            "lr.kind: must be one of constant, linear, cosine, one_cycle, cubic, hypergradient, network, got 'cosin'",
        ),
        ("linear", {"start": 1.0}, "lr.end: is required by kind linear"),
        ("constant", {}, "lr.value: is required by kind constant"),
        ("constant", {"value": 1.0, "peak": 2.0}, "lr.peak: is no parameter of kind constant, got 2.0"),
        ("constant", {"value": math.nan}, "lr.value: must be a finite number, got nan"),
        ("constant", {"value": math.inf}, "lr.value: must be a finite number, got inf"),
        ("constant", {"value": True}, "lr.value: must be a finite number, got True"),
        ("constant", {"value": "high"}, "lr.value: must be a finite number, got 'high'"),
        ("one_cycle", {"peak": 1, "warmup": 0.0}, "lr.warmup: must be strictly between 0 and 1, got 0.0"),
        ("one_cycle", {"peak": 1, "warmup": 1.0}, "lr.warmup: must be strictly between 0 and 1, got 1.0"),
        ("one_cycle", {"peak": 1, "warmup": -0.1}, "lr.warmup: must be in [0, 1], got -0.1"),
        ("cubic", {"final": 1, "begin": 1.5}, "lr.begin: must be in [0, 1], got 1.5"),
        ("cubic", {"final": 1, "begin": 0.5, "end": 0.5}, "lr.begin: must be below end, got begin=0.5, end=0.5"),
        ("cubic", {"final": 1, "begin": 0.8, "end": 0.2}, "lr.begin: must be below end, got begin=0.8, end=0.2"),
        ("cubic", {"final": 1, "begin": 1.0}, "lr.begin: must be below end, got begin=1, end=1"),
        ("cubic", {"final": 1, "end": 0.0}, "lr.begin: must be below end, got begin=0, end=0"),
    ],
)
def test_a_bad_policy_is_refused_in_one_clear_line(kind: str, parameters: Mapping[str, float], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        Policy(kind, parameters, "lr")
    assert str(refusal.value) == message


def test_a_policy_survives_pickling() -> None:
    policy = Policy("cubic", {"final": 0.5, "begin": 0.2}, "pruning_ratio")
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert [copy(step / 10) for step in range(11)] == [policy(step / 10) for step in range(11)]


def test_a_policy_keeps_its_own_copy_of_its_parameters() -> None:
    parameters = {"value": 1.0}
    policy = Policy("constant", parameters)
    parameters["value"] = 2.0
    assert policy(0.5) == 1.0
    with pytest.raises(TypeError):
        policy.parameters["value"] = 3.0  # type: ignore[index]  # the point of the test


def test_parameter_names_tell_required_from_optional() -> None:
    assert parameter_names("one_cycle") == (["peak"], ["warmup", "start_factor", "end_factor"])
    assert parameter_names("constant") == (["value"], [])
