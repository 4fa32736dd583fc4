"""Pareto fronts of many trials at once. N trials, M objectives, costs (N, M): smaller is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def costs_of(columns: Mapping[str, NDArray[Any]], directions: Mapping[str, str]) -> Floats:
    """Return (N, M) the objectives' values, those to maximize with their sign turned round."""
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions.values()]
    values = [sign * np.asarray(columns[name], float) for name, sign in zip(directions, signs, strict=True)]
    return np.column_stack(values) if values else np.empty((0, 0))


def front_rows(costs: Floats, rows: Sequence[int] | NDArray[np.intp] | None = None) -> list[int]:
    """Return the rows, of those given, that no other of them dominates; equal ones all stay. Best in the first first.

    A row with a cost that is not a number is left out. Each round takes the lexicographically first row, which is on
    the front, and drops all that it dominates: as many rounds as the front is large, over what is left each time.
    """
    left = np.arange(len(costs)) if rows is None else np.asarray(rows, np.intp)
    left = left[~np.isnan(costs[left]).any(axis=1)] if len(left) else left
    if not len(left):
        return []
    left = left[np.lexsort((left, *costs[left].T[::-1]))]
    found: list[int] = []
    while len(left):
        first = costs[left[0]]
        here = costs[left]
        equal = np.all(here == first, axis=1)
        found.extend(left[equal].tolist())
        left = left[np.any(here < first, axis=1)]
    return found
