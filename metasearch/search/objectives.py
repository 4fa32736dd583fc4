"""Objectives and constraints: which metrics a search improves, and which limits a result must keep.

A constraint as text is `METRIC OPERATOR QUANTITY`, for example `model_bytes <= 25kB`, `val_accuracy > 90%`,
`latency_ms <= 2ms`. A quantity without a unit is in the metric's own unit. 1 kB = 1000 bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, cast

from metasearch.errors import InputError
from metasearch.records import METRICS
from metasearch.spelling import hint

UNITS: dict[str, tuple[str, Decimal]] = {
    "": ("count", Decimal(1)),
    "k": ("count", Decimal(10**3)),
    "M": ("count", Decimal(10**6)),
    "G": ("count", Decimal(10**9)),
    "B": ("bytes", Decimal(1)),
    "kB": ("bytes", Decimal(10**3)),
    "MB": ("bytes", Decimal(10**6)),
    "GB": ("bytes", Decimal(10**9)),
    "ms": ("time", Decimal("0.001")),
    "s": ("time", Decimal(1)),
    "m": ("time", Decimal(60)),
    "h": ("time", Decimal(3600)),
    "%": ("share", Decimal("0.01")),
}
"""Every unit's symbol, what it measures, and how many of the base unit (1, byte, second) it is."""

METRIC_UNITS: dict[str, str] = {
    "parameters": "",
    "macs": "",
    "model_bytes": "B",
    "latency_ms": "ms",
    "train_seconds": "s",
}
"""The unit that a metric is counted in; the metrics not named here are shares in [0, 1]."""

Direction = Literal["minimize", "maximize"]

OPERATORS = ("<=", ">=", "<", ">")

STEERING_METRICS = tuple(name for name in METRICS if not name.startswith("test_"))
"""Metrics that an objective or a constraint may name."""


@dataclass(frozen=True)
class Objective:
    """A metric to improve, and the direction that is better, as Optuna spells it."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class Constraint:
    """A limit on a metric; `str` gives the text that `parse` reads. operator: one of OPERATORS. bound: finite."""

    metric: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str, *, place: str = "constraint") -> Constraint:
        """Return the constraint that a text such as `model_bytes<=25kB` says.

        Raises InputError for an unknown metric, operator or unit, for a test metric, and for a share outside [0, 1].
        """
        match = re.fullmatch(r"\s*([^\s<>=!~]+)\s*([<>=!~]+)\s*(.*?)\s*", text)
        if match is None:
            raise InputError(place, "must look like model_bytes <= 25kB", text)
        metric, operator, quantity = match.groups()
        _check_metric(metric, place)
        if operator not in OPERATORS:
            raise InputError(place, f"must use one of {' '.join(OPERATORS)}", operator)
        return cls(metric, operator, quantity_in(METRIC_UNITS.get(metric, "%"), quantity, name=metric, place=place))

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {_number_text(self.bound)}"

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return how far `metrics` miss the limit, in the metric's unit; at most 0 where they keep it.

        A metric exactly at a strict limit (< or >) misses it by one unit in the last place; one that is not a number
        misses it by infinity. Raises KeyError if the metric is absent.
        """
        value = metrics[self.metric]
        if math.isnan(value):
            return math.inf
        excess = value - self.bound if self.operator.startswith("<") else self.bound - value
        if excess == 0 and self.operator in ("<", ">"):
            return math.ulp(self.bound)
        return excess


def parse_objectives(names: Sequence[str], *, place: str = "objectives") -> tuple[Objective, ...]:
    """Return the objectives that the metric names stand for, in their order (early stopping looks at the first).

    Raises InputError if there is none, and for a metric that is unknown, named twice, or of the test split.
    """
    if not names:
        raise InputError(place, "must name at least one metric")
    for position, name in enumerate(names):
        here = f"{place}[{position}]"
        _check_metric(name, here)
        if name in names[:position]:
            raise InputError(here, "is named twice", name)
    return tuple(Objective(name, cast(Direction, METRICS[name])) for name in names)


def quantity_in(unit: str | None, quantity: str, *, name: str, place: str) -> float:
    """Return a quantity such as "25kB" in the unit that `name` is counted in.

    unit: a key of UNITS; "%" for a share in [0, 1]; None for a plain number, which may be written as a percentage.
    Raises InputError for a number of something else, and for a share outside [0, 1].
    """
    amount, given = _amount_and_unit(quantity, place)
    measure, factor = UNITS[given]
    if measure not in ("count", "share" if unit is None else UNITS[unit][0]):
        raise InputError(place, f"{name} cannot be compared with a number of {measure}", quantity)
    if unit is None:
        return float(amount * factor)
    if unit == "%":
        share = amount * factor
        if not 0 <= share <= 1:
            raise InputError(place, f"{name} must be in [0, 1] or a percentage", quantity)
        return float(share)
    return float(amount * factor / (UNITS[unit][1] if measure == UNITS[unit][0] else 1))


def _check_metric(name: str, place: str) -> None:
    if name not in METRICS:
        raise InputError(place, f"is no metric {hint(name, STEERING_METRICS)}", name)
    if name not in STEERING_METRICS:
        raise InputError(place, "cannot steer a search: the test split is read once, at the end", name)


def _amount_and_unit(text: str, place: str) -> tuple[Decimal, str]:
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*([^\s\d]*)\s*", text, re.ASCII)
    if match is None:
        raise InputError(place, "must be a number and a unit, such as 25kB", text)
    amount, unit = match.groups()
    if unit not in UNITS:
        raise InputError(place, f"has an unknown unit {hint(unit, [name for name in UNITS if name])}", unit)
    if abs(Decimal(amount)) > Decimal("1e290"):
        raise InputError(place, "must be a finite number", text)
    return Decimal(amount), unit


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
