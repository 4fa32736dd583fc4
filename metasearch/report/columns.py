"""Lists of cells as arrays. N rows; a cell that is missing is None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Cells = dict[str, list[Any]]


class Columns(Mapping[str, NDArray[Any]]):
    """Lists as arrays, each made when it is asked for: float (NaN) or int, bool, datetime64 (NaT), else objects."""

    def __init__(self, cells: Mapping[str, list[Any]]) -> None:
        self._cells, self._made = cells, dict[str, NDArray[Any]]()

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._made:
            self._made[name] = as_array(self._cells[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def as_array(cells: Sequence[Any]) -> NDArray[Any]:
    """Return cells (N,) as the narrowest array that holds them: int, float, bool, datetime64[us], else object."""
    kinds = set(map(type, cells))
    given = kinds - {NoneType}
    if not given or given <= {int, float}:
        if kinds == {int} and max(map(abs, cells)) < 2**62:
            return np.array(cells, np.int64)
        try:
            return np.array(cells, float)
        except OverflowError:  # an attribute of somebody's with hundreds of digits
            return _objects(cells)
    if kinds == {bool}:
        return np.array(cells, bool)
    if given == {datetime}:
        return np.array(cells, "datetime64[us]")
    return _objects(cells)


def _objects(cells: Sequence[Any]) -> NDArray[Any]:
    found = np.empty(len(cells), object)
    for row, cell in enumerate(cells):  # one by one: lists among them stay lists
        found[row] = cell
    return found
