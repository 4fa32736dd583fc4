"""Values of an expression over columns: numbers in one unit, texts, flags and times, and how two of them compare."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasearch.errors import InputError
from metasearch.records import METRICS
from metasearch.report.conditions import Arithmetic, Name, Quantity, Value, Word
from metasearch.search.objectives import METRIC_UNITS, quantity_in

Array = NDArray[Any]
Columns = Mapping[str, Array]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
UNIT_ENDINGS = {"_ms": "ms", "_bytes": "B", "seconds": "s", "duration": "s"}
NUMBER, TEXT, FLAG, TIME, MIXED = "a number", "a text", "true or false", "a time", "of several kinds"
MISSING = "missing"
KINDS = {"b": FLAG, "i": NUMBER, "u": NUMBER, "f": NUMBER, "M": TIME, "U": TEXT}


@dataclass(frozen=True)
class Evaluated:
    """values: (N,) or one for all. unit: of UNITS, or None for a plain number."""

    values: Any
    kind: str
    unit: str | None = None


def unit_of(name: str) -> str | None:
    """Return the unit that a name is counted in, a stage's metric by its own name; None for a plain number."""
    last = name.rsplit(".", 1)[-1]
    if last in METRICS:
        return METRIC_UNITS.get(last, "%")
    return next((unit for ending, unit in UNIT_ENDINGS.items() if last.endswith(ending)), None)


def both_sides(sign: str, left: Value, right: Value, columns: Columns, place: str) -> tuple[Evaluated, Evaluated]:
    """Return both sides, a quantity in the unit of the other side; raise where they cannot be compared."""
    own = _unit(left)
    unit = own if own is not None else _unit(right)
    a = _evaluate(left, columns, unit, right.text, place)
    b = _evaluate(right, columns, unit, left.text, place)
    if {a.kind, b.kind} == {TIME, TEXT}:
        a, b = _as_time(a, left, place), _as_time(b, right, place)
    if not {a.kind, b.kind} & {MISSING, MIXED}:
        if a.kind != b.kind:
            raise InputError(place, f"cannot compare {left.text}, {a.kind}, with {right.text}, {b.kind}")
        if sign not in ("=", "!=") and a.kind in (TEXT, FLAG):
            raise InputError(place, f"can only be compared with = and !=, being {a.kind}", left.text)
    if a.unit and b.unit and a.unit != b.unit:
        raise InputError(place, f"cannot compare {left.text} in {a.unit} with {right.text} in {b.unit}")
    return a, b


def _unit(node: Value) -> str | None:
    """Return the unit that a value brings with it; None for a plain number, as what is reckoned from shares is."""
    if isinstance(node, Name):
        return unit_of(node.name)
    if not isinstance(node, Arithmetic):
        return None
    left, right = (None if side is None else _unit(side) for side in (node.left, node.right))
    if node.operator == "/" and right is not None:
        return None
    unit = left if left is not None else right
    return None if unit == "%" else unit


def _evaluate(node: Value, columns: Columns, unit: str | None, beside: str, place: str) -> Evaluated:
    """Return a value. unit: what a bare quantity is counted in. beside: what it is compared with, in words."""
    if isinstance(node, Quantity):
        return Evaluated(quantity_in(unit, node.text, name=beside, place=place), NUMBER)
    if isinstance(node, Word):
        return Evaluated(node.value, TEXT if isinstance(node.value, str) else FLAG)
    if isinstance(node, Name):
        return Evaluated(*_column(columns[node.name]), unit_of(node.name))
    inner = None if node.operator in "*/" else unit
    sides = [_evaluate(side, columns, inner, node.text, place) for side in (node.left, node.right) if side is not None]
    for side in sides:
        if side.kind not in (NUMBER, MISSING):
            raise InputError(place, f"cannot reckon with {side.kind}", node.text)
    units = {side.unit for side in sides if side.unit}
    if len(units) > 1 and node.operator in "+-":
        raise InputError(place, f"cannot reckon with {' and '.join(sorted(units))} together", node.text)
    numbers = [np.asarray(np.nan if side.kind == MISSING else side.values, float) for side in sides]
    with np.errstate(all="ignore"):
        values = ARITHMETIC[node.operator](*(numbers if len(numbers) == 2 else [0.0, *numbers]))
    return Evaluated(values, NUMBER, _unit(node))


def compared(sign: str, a: Evaluated, b: Evaluated) -> Any:
    """Return which pairs compare so; False wherever either is missing, or the two are of different kinds."""
    if MISSING in (a.kind, b.kind):
        return False
    known = is_known(a.values) & is_known(b.values)
    compare = OPERATORS[sign]
    if MIXED not in (a.kind, b.kind):
        return np.asarray(compare(a.values, b.values), bool) & known
    pairs = np.broadcast(np.asarray(a.values, object), np.asarray(b.values, object))
    ordered = sign not in ("=", "!=")
    return [
        kind_of(x) == kind_of(y) and kind_of(x) in ((NUMBER,) if ordered else KINDS.values()) and bool(compare(x, y))
        for x, y in pairs
    ] & known


def _column(values: Array) -> tuple[Array, str]:
    """Return a column's values and their kind; objects that are all numbers as floats."""
    if values.dtype.kind in KINDS:
        kind = KINDS[values.dtype.kind]
        return values, MISSING if kind in (NUMBER, TIME) and not np.any(is_known(values)) else kind
    kinds = {kind_of(value) for value in values} - {MISSING}
    if kinds == {NUMBER}:
        return np.array([np.nan if value is None else value for value in values], float), NUMBER
    return values, MISSING if not kinds else kinds.pop() if len(kinds) == 1 else MIXED


def kind_of(value: Any) -> str:
    """Return the kind of one cell; lists and mappings are of none that can be compared, MIXED."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return FLAG
    if isinstance(value, (int, float, np.number)):
        return NUMBER
    return TEXT if isinstance(value, str) else MIXED


def is_known(values: Any) -> Any:
    """Return where values are not missing, (N,) or one bool."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "f":
            return ~np.isnan(values)
        if values.dtype.kind == "M":
            return ~np.isnat(values)
        if values.dtype.kind == "O":
            return np.fromiter((kind_of(value) != MISSING for value in values), bool, len(values))
    return True


def _as_time(side: Evaluated, node: Value, place: str) -> Evaluated:
    """Return a text as the time that it says, UTC unless it says otherwise."""
    if side.kind == TIME:
        return side
    if not isinstance(node, Word):
        raise InputError(place, "a time can only be compared with a time or a text in quotes", node.text)
    try:
        moment = datetime.fromisoformat(str(node.value))
    except ValueError as error:
        raise InputError(place, "must be a time such as '2026-11-21' or '2026-11-21 18:30'", node.value) from error
    utc = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return Evaluated(np.datetime64(utc, "us"), TIME)


def value_at(values: Any, row: int) -> Any:
    """Return one row's value of (N,), or the one for all."""
    return values[row] if isinstance(values, np.ndarray) and values.ndim else values


def shown(value: Any) -> str:
    """Return one cell as a message has it."""
    return f"{value:g}" if kind_of(value) == NUMBER else repr(value.item() if isinstance(value, np.generic) else value)
