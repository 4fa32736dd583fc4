from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.configuration import Configuration
from metasearch.errors import InputError
from metasearch.models import FAMILIES
from metasearch.parameters import FAMILY_NAMES, PARAMETERS, POLICIES, Rule, policy_parameter_rule
from metasearch.policies import KINDS, Policy
from metasearch.training import OPTIMIZERS


def refusal_of(config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refusal:
        Configuration.of(config)
    return str(refusal.value)


def test_an_empty_configuration_takes_every_default() -> None:
    configuration = Configuration.of({})
    for path, rule in PARAMETERS.items():
        assert getattr(configuration, path.removeprefix("student.")) == rule.default
    assert configuration.learning_rate == Policy("one_cycle", {"peak": 0.01}, "configuration: learning_rate")
    assert (configuration.temperature(0.5), configuration.width(0.5)) == (4.0, 16)
    assert not configuration.prunes


def test_every_parameter_and_policy_has_its_field() -> None:
    fields = {field.name for field in dataclasses.fields(Configuration)}
    assert fields == {path.removeprefix("student.") for path in [*PARAMETERS, *POLICIES]}


def test_the_tables_name_the_families_and_optimizers_that_there_are() -> None:
    assert set(FAMILY_NAMES) == set(FAMILIES)
    assert PARAMETERS["optimizer"].choices == OPTIMIZERS


def test_a_number_is_a_constant_policy_and_a_kind_is_a_policy() -> None:
    configuration = Configuration.of(
        {"temperature": 3, "learning_rate.kind": "cosine", "learning_rate.start": 0.1, "student.width": 5}
    )
    assert [configuration.temperature(p) for p in (0.0, 0.5, 1.0)] == [3.0, 3.0, 3.0]
    assert configuration.learning_rate(0.5) == pytest.approx(0.05)
    assert configuration.width(1.0) == 5


@pytest.mark.parametrize(
    ("config", "prunes"),
    [
        ({}, False),
        ({"pruning_ratio": 0}, False),
        ({"pruning_ratio": 0.01}, True),
        ({"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.5}, True),
        ({"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.0}, False),
        ({"pruning_ratio.kind": "linear", "pruning_ratio.start": 0.4, "pruning_ratio.end": 0}, True),
    ],
)
def test_a_configuration_prunes_where_its_ratio_ever_rises_above_zero(config: dict[str, Any], prunes: bool) -> None:
    assert Configuration.of(config).prunes is prunes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alhpa": 0.5}, "configuration: alhpa: is no parameter (did you mean alpha?), got 0.5"),
        ({"alpha": 1.5}, "configuration: alpha: must be in [0, 1], got 1.5"),
        ({"alpha": math.nan}, "configuration: alpha: must be a finite number, got nan"),
        ({"alpha": True}, "configuration: alpha: must be a number, got True"),
        ({"alpha": None}, "configuration: alpha: has no value"),
        ({"epochs": 2.0}, "configuration: epochs: must be a whole number, got 2.0"),
        ({"epochs": 0}, "configuration: epochs: must be in [1, 1000], got 0"),
        ({"momentum": 1}, "configuration: momentum: must be in [0, 1), got 1"),
        ({"augment": "yes"}, "configuration: augment: must be true or false, got 'yes'"),
        (
            {"optimizer": "adam"},
            "configuration: optimizer: must be one of sgd, adamw (did you mean adamw?), got 'adam'",
        ),
        ({"temperature": 0.01}, "configuration: temperature: must be in [0.1, 100], got 0.01"),
        ({"learning_rate": 0}, "configuration: learning_rate: must be above 0, got 0"),
        ({"student.width": 3.5}, "configuration: student.width: must be a whole number, got 3.5"),
        (
            {"temperature": 3, "temperature.kind": "constant"},
            "configuration: temperature: must be one number, or a kind with its parameters, not both",
        ),
        (
            {"temperature.start": 3},
            "configuration: temperature.kind: must be one of constant, linear, cosine, one_cycle, cubic, network",
        ),
        (
            {"temperature.kind": ["linear"]},
            "configuration: temperature.kind: must be one of constant, linear, cosine, one_cycle, cubic, network, "
            "got ['linear']",
        ),
        (
            {"temperature.kind": "linear", "temperature.start": 3},
            "configuration: temperature.end: is required by kind linear",
        ),
        (
            {"temperature.kind": "constant", "temperature.value": 3, "temperature.peak": 3},
            "configuration: temperature.peak: is no parameter of kind constant, got 3.0",
        ),
        (
            {"temperature.kind": "linear", "temperature.start": 300, "temperature.end": 1},
            "configuration: temperature.start: must be in [0.1, 100], got 300",
        ),
        (
            {"learning_rate.kind": "cubic", "learning_rate.final": 1, "learning_rate.initial": 2}
            | {"learning_rate.begin": 0.8, "learning_rate.end": 0.2},
            "configuration: learning_rate.begin: must be below end, got begin=0.8, end=0.2",
        ),
        (
            {"temperature.kind": "cosine", "temperature.start": 8},
            "configuration: temperature.end: is required by kind cosine: its default 0 is not in [0.1, 100]",
        ),
        (
            {"learning_rate.kind": "cubic", "learning_rate.final": 0.1},
            "configuration: learning_rate.initial: is required by kind cubic: its default 0 is not above 0",
        ),
        (
            {"student.width.kind": "one_cycle", "student.width.peak": 250},
            "configuration: student.width.end_factor: times peak must be in [1, 1024], got 0.001",
        ),
        (
            {"temperature.kind": "one_cycle", "temperature.peak": 2, "temperature.end_factor": 0.5},
            "configuration: temperature.start_factor: times peak must be in [0.1, 100], got 0.08",
        ),
        (
            {"student.family": "mlp", "batch_size": 1},
            "configuration: batch_size: must be at least 2 for mlp: BatchNorm has no variance of one, got 1",
        ),
    ],
)
def test_a_bad_configuration_is_refused_in_one_clear_line(config: dict[str, Any], message: str) -> None:
    assert refusal_of(config) == message


def test_a_refusal_names_the_place_it_was_given() -> None:
    with pytest.raises(InputError, match=r"^best\.json: alpha: must be in \[0, 1\], got 2$"):
        Configuration.of({"alpha": 2}, place="best.json")


def numbers(rule: Rule) -> st.SearchStrategy[float]:
    low, high = rule.low, min(rule.high, 1e6)
    if rule.type is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=rule.open_low, exclude_max=rule.open_high)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "at", "student.family": "mlp"}, "configuration: loss: must be another one for mlp"),
        ({"loss": "rkd", "batch_size": 2}, "configuration: batch_size: must be at least 3 for rkd"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        Configuration.of(config)
    assert str(refusal.value).startswith(message)


@given(name=st.sampled_from(sorted(POLICIES)), kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_a_policy_never_leaves_the_range_of_its_values(name: str, kind: str, data: st.DataObject) -> None:
    """Whatever the check lets through is in range over all of training; 0 is where a learning rate may end."""
    parts: dict[str, Any] = {f"{name}.kind": kind}
    for parameter in KINDS[kind].__annotations__:
        if parameter not in {"progress", "return"} and data.draw(st.booleans()):
            parts[f"{name}.{parameter}"] = data.draw(numbers(policy_parameter_rule(name, kind, parameter)))
    try:
        configuration = Configuration.of(parts)
    except InputError:
        return
    policy: Policy = getattr(configuration, name.removeprefix("student."))
    low, high = policy.bounds()
    slack = 1e-9 * (1 + high)
    assert POLICIES[name].low - slack <= low <= high <= POLICIES[name].high + slack
