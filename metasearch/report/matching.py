"""Which trials satisfy a condition of `where.py`, and by how much the others miss it. N trials.

Columns are arrays (N,): numbers (NaN where missing), bool, datetime64 (NaT), or objects (None). A comparison with a
missing value is False, `!=` and `not in` included; `not` turns a truth value round, so `not x > 1` holds without x.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasearch.errors import InputError
from metasearch.records import METRICS
from metasearch.report.where import (
    Among,
    Arithmetic,
    Comparison,
    Condition,
    Every,
    Name,
    Not,
    Quantity,
    Some,
    Value,
    Word,
    names_in,
)
from metasearch.search.objectives import METRIC_UNITS, quantity_in
from metasearch.spelling import hint

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
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
OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "=": "!=", "!=": "="}
UNIT_ENDINGS = {"_ms": "ms", "_bytes": "B", "seconds": "s", "duration": "s"}
NUMBER, TEXT, FLAG, TIME, MIXED = "a number", "a text", "true or false", "a time", "of several kinds"
MISSING = "missing"
KINDS = {"b": FLAG, "i": NUMBER, "u": NUMBER, "f": NUMBER, "M": TIME, "U": TEXT}


@dataclass(frozen=True)
class Limit:
    """A condition that trials are held to. lenient: a trial that lacks what it speaks of satisfies it."""

    condition: Condition
    lenient: bool = False


@dataclass(frozen=True)
class _Evaluated:
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


def check_names(condition: Condition, known: Iterable[str], *, place: str = "--where") -> None:
    """Raise InputError for the first name that is not known, with the nearest that is."""
    names = set(known)
    for name, node in names_in(condition).items():
        if name not in names:
            rule = f"is no name here {hint(name, sorted(names))}; a text stands in quotes"
            raise InputError(f"{place}: column {node.at}", rule, name)


def matches(condition: Condition, columns: Columns, count: int, *, place: str = "--where") -> Bools:
    """Return (N,) which of `count` trials satisfy a condition. Every name in it must be a column.

    Raises InputError for values that cannot be compared: a text with a number, bytes with a time.
    """
    match condition:
        case Every(parts):
            return np.logical_and.reduce([matches(part, columns, count, place=place) for part in parts])
        case Some(parts):
            return np.logical_or.reduce([matches(part, columns, count, place=place) for part in parts])
        case Not(part):
            return ~matches(part, columns, count, place=place)
        case Comparison(sign, left, right):
            found = _compare(sign, *_both(sign, left, right, columns, f"{place}: column {condition.at}"))
        case Among(value, choices, negated):
            here = f"{place}: column {condition.at}"
            pairs = [_both("=", value, choice, columns, here) for choice in choices]
            found = np.logical_or.reduce([_compare("=", *pair) for pair in pairs])
            found = ~found & _known(pairs[0][0].values) if negated else found
    return np.broadcast_to(np.asarray(found, bool), (count,)).copy()


def satisfied(limit: Limit, columns: Columns, count: int) -> Bools:
    """Return (N,) which trials keep a limit."""
    lacking = [name for name in names_in(limit.condition) if name not in columns]
    if limit.lenient and lacking:
        return np.ones(count, bool)
    found = matches(limit.condition, columns, count)
    if limit.lenient:
        for name in names_in(limit.condition):
            found |= ~_known(columns[name])
    return found


def distances(condition: Condition, columns: Columns, count: int) -> Floats:
    """Return (N,) how far trials are from a condition: 0 where it holds, infinite where a value is missing.

    A number's distance is its excess as a share of the other side, a text's is 1; `and` adds, `or` takes the least.
    """
    holds = matches(condition, columns, count)
    match condition:
        case Every(parts):
            far = np.sum([distances(part, columns, count) for part in parts], axis=0)
        case Some(parts):
            far = np.min([distances(part, columns, count) for part in parts], axis=0)
        case Not(part):
            far = distances(_opposite(part), columns, count)
        case Comparison(sign, left, right):
            a, b = _both(sign, left, right, columns, "")
            if a.kind == b.kind == NUMBER:
                far = np.abs(a.values - b.values) / np.maximum(np.abs(b.values), 1e-12)
            else:
                far = np.where(_known(a.values) & _known(b.values), 1.0, np.inf)
        case Among(value, choices):
            far = np.where(_known(_both("=", value, choices[0], columns, "")[0].values), 1.0, np.inf)
    far = np.where(np.isnan(far), np.inf, far)
    return np.where(holds, 0.0, np.broadcast_to(far, (count,)))


def misses(condition: Condition, columns: Columns) -> list[str]:
    """Return in words what one trial (columns of length 1) misses a condition by, of alternatives the nearest."""
    if bool(matches(condition, columns, 1)[0]):
        return []
    match condition:
        case Every(parts):
            return [text for part in parts for text in misses(part, columns)]
        case Some(parts):
            return misses(min(parts, key=lambda part: float(distances(part, columns, 1)[0])), columns)
        case Not(part):
            return misses(_opposite(part), columns) or [f"misses {_text(condition)}"]
        case Comparison(sign, left, right):
            a, b = _both(sign, left, right, columns, "")
            missing = [name for name in names_in(condition) if not _known(columns[name])[0]]
            if missing:
                return [f"{', '.join(missing)} is not known, as {condition.text} needs"]
            got = f"{left.text}={_shown(a.values)}"
            if a.kind == b.kind == NUMBER and sign != "!=":
                return [f"{got} misses {condition.text} by {abs(float(_one(a.values)) - float(_one(b.values))):g}"]
            return [f"{got} misses {condition.text}"]
        case Among(value, choices):
            got = _shown(_both("=", value, choices[0], columns, "")[0].values)
            return [f"{value.text}={got} misses {condition.text}"]


def _opposite(condition: Condition) -> Condition:
    """Return the condition that holds where this one does not, `not` moved inwards and gone."""
    match condition:
        case Every(parts, at):
            return Some(tuple(map(_opposite, parts)), at)
        case Some(parts, at):
            return Every(tuple(map(_opposite, parts)), at)
        case Not(part):
            return part
        case Comparison():
            return replace(condition, operator=OPPOSITE[condition.operator])
        case Among():
            return replace(condition, negated=not condition.negated)


def _text(condition: Condition) -> str:
    match condition:
        case Every(parts):
            return " and ".join(map(_text, parts))
        case Some(parts):
            return f"({' or '.join(map(_text, parts))})"
        case Not(part):
            return f"not ({_text(part)})"
        case _:
            return condition.text


def _both(sign: str, left: Value, right: Value, columns: Columns, place: str) -> tuple[_Evaluated, _Evaluated]:
    """Return both sides, a quantity in the unit of the other side; raise where they cannot be compared."""
    own = _unit(left, columns)
    unit = own if own is not None else _unit(right, columns)
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


def _unit(node: Value, columns: Columns) -> str | None:
    """Return the unit that a value brings with it; None for a plain number, as what is reckoned from shares is."""
    if isinstance(node, Name):
        return unit_of(node.name)
    if not isinstance(node, Arithmetic):
        return None
    left, right = (None if side is None else _unit(side, columns) for side in (node.left, node.right))
    if node.operator == "/" and right is not None:
        return None
    unit = left if left is not None else right
    return None if unit == "%" else unit


def _evaluate(node: Value, columns: Columns, unit: str | None, beside: str, place: str) -> _Evaluated:
    """Return a value. unit: what a bare quantity is counted in. beside: what it is compared with, in words."""
    if isinstance(node, Quantity):
        return _Evaluated(quantity_in(unit, node.text, name=beside, place=place), NUMBER)
    if isinstance(node, Word):
        return _Evaluated(node.value, TEXT if isinstance(node.value, str) else FLAG)
    if isinstance(node, Name):
        return _Evaluated(*_column(columns[node.name]), unit_of(node.name))
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
    return _Evaluated(values, NUMBER, _unit(node, columns))


def _compare(sign: str, a: _Evaluated, b: _Evaluated) -> Any:
    """Return which pairs compare so; False wherever either is missing, or the two are of different kinds."""
    if MISSING in (a.kind, b.kind):
        return False
    known = _known(a.values) & _known(b.values)
    compare = OPERATORS[sign]
    if MIXED not in (a.kind, b.kind):
        return np.asarray(compare(a.values, b.values), bool) & known
    pairs = np.broadcast(np.asarray(a.values, object), np.asarray(b.values, object))
    ordered = sign not in ("=", "!=")
    return [
        _kind_of(x) == _kind_of(y) and _kind_of(x) in ((NUMBER,) if ordered else KINDS.values()) and bool(compare(x, y))
        for x, y in pairs
    ] & known


def _column(values: Array) -> tuple[Array, str]:
    """Return a column's values and their kind; objects that are all numbers as floats."""
    if values.dtype.kind in KINDS:
        kind = KINDS[values.dtype.kind]
        return values, MISSING if kind in (NUMBER, TIME) and not np.any(_known(values)) else kind
    kinds = {_kind_of(value) for value in values} - {MISSING}
    if kinds == {NUMBER}:
        return np.array([np.nan if value is None else value for value in values], float), NUMBER
    return values, MISSING if not kinds else kinds.pop() if len(kinds) == 1 else MIXED


def _kind_of(value: Any) -> str:
    if value is None or value != value:
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return FLAG
    if isinstance(value, (int, float, np.number)):
        return NUMBER
    return TEXT if isinstance(value, str) else MIXED


def _known(values: Any) -> Any:
    """Return where values are not missing, (N,) or one bool."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "f":
            return ~np.isnan(values)
        if values.dtype.kind == "M":
            return ~np.isnat(values)
        if values.dtype.kind == "O":
            return np.fromiter((_kind_of(value) != MISSING for value in values), bool, len(values))
    return True


def _as_time(side: _Evaluated, node: Value, place: str) -> _Evaluated:
    """Return a text as the time that it says, UTC unless it says otherwise."""
    if side.kind == TIME:
        return side
    if not isinstance(node, Word):
        raise InputError(place, "a time can only be compared with a time or a text in quotes", node.text)
    try:
        moment = datetime.fromisoformat(str(node.value))
    except ValueError as error:
        raise InputError(place, "must be a time such as '2026-11-21' or '2026-11-21 18:30'", node.value) from error
    utc = moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment
    return _Evaluated(np.datetime64(utc, "us"), TIME)


def _one(values: Any) -> Any:
    return values[0] if isinstance(values, np.ndarray) and values.ndim else values


def _shown(values: Any) -> str:
    value = _one(values)
    return f"{value:g}" if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else repr(value)
