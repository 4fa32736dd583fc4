"""Which trials satisfy a condition of `where.py`, and by how much the others miss it. N trials.

Columns are arrays (N,): numbers (NaN where missing), bool, datetime64 (NaT), or objects (None). A comparison with a
missing value is False, `!=` and `not in` included; `not` turns a truth value round, so `not x > 1` holds without x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metasearch.errors import InputError
from metasearch.report.conditions import Among, Comparison, Condition, Every, Not, Some, names_in
from metasearch.report.values import NUMBER, Columns, both_sides, compared, is_known, shown, value_at
from metasearch.spelling import hint

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "=": "!=", "!=": "="}


@dataclass(frozen=True)
class Limit:
    """A condition that trials are held to. lenient: a trial that lacks what it speaks of satisfies it."""

    condition: Condition
    lenient: bool = False


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
            found = np.all([matches(part, columns, count, place=place) for part in parts], axis=0)
        case Some(parts):
            found = np.any([matches(part, columns, count, place=place) for part in parts], axis=0)
        case Not(part):
            found = ~matches(part, columns, count, place=place)
        case Comparison(sign, left, right):
            found = compared(sign, *both_sides(sign, left, right, columns, f"{place}: column {condition.at}"))
        case Among(value, choices, negated):
            here = f"{place}: column {condition.at}"
            pairs = [both_sides("=", value, choice, columns, here) for choice in choices]
            found = np.logical_or.reduce([compared("=", *pair) for pair in pairs])
            found = ~found & is_known(pairs[0][0].values) if negated else found
    return np.broadcast_to(np.asarray(found, bool), (count,)).copy()


def satisfied(limit: Limit, columns: Columns, count: int) -> Bools:
    """Return (N,) which trials keep a limit."""
    lacking = [name for name in names_in(limit.condition) if name not in columns]
    if limit.lenient and lacking:
        return np.ones(count, bool)
    found = matches(limit.condition, columns, count)
    if limit.lenient:
        for name in names_in(limit.condition):
            found |= ~is_known(columns[name])
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
            a, b = both_sides(sign, left, right, columns, "")
            if a.kind == b.kind == NUMBER:
                with np.errstate(all="ignore"):  # infinities
                    far = np.abs(a.values - b.values) / np.maximum(np.abs(b.values), 1e-12)
            else:
                far = np.where(is_known(a.values) & is_known(b.values), 1.0, np.inf)
        case Among(value, choices):
            far = np.where(is_known(both_sides("=", value, choices[0], columns, "")[0].values), 1.0, np.inf)
    far = np.where(np.isnan(far), np.inf, far)
    return np.where(holds, 0.0, np.broadcast_to(far, (count,)))


def misses(condition: Condition, columns: Columns, count: int, row: int) -> list[str]:
    """Return in words what the trial of one row misses a condition by, of alternatives the nearest; [] if nothing."""
    if bool(matches(condition, columns, count)[row]):
        return []
    match condition:
        case Every(parts):
            return [text for part in parts for text in misses(part, columns, count, row)]
        case Some(parts):
            nearest = min(parts, key=lambda part: float(distances(part, columns, count)[row]))
            return misses(nearest, columns, count, row)
        case Not(part):
            return misses(_opposite(part), columns, count, row)
        case Comparison(sign, left, right):
            a, b = both_sides(sign, left, right, columns, "")
            missing = [name for name in names_in(condition) if not value_at(is_known(columns[name]), row)]
            if missing:
                return [f"{', '.join(missing)} is not known, as {condition.text} needs"]
            x, y = value_at(a.values, row), value_at(b.values, row)
            amount = f" by {abs(float(x) - float(y)):g}" if a.kind == b.kind == NUMBER and sign != "!=" else ""
            return [f"{left.text}={shown(x)} misses {condition.text}{amount}"]
        case Among(value, choices):
            got = shown(value_at(both_sides("=", value, choices[0], columns, "")[0].values, row))
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
