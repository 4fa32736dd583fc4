"""Trials as columns: what a trial has, by the names that users know. N trials.

Columns: number, state; metrics and objectives by name; parameters by dotted path; STAGE.METRIC and STAGE.seconds of
each stage; user.KEY of attributes that are not metasearch's own; feasible, seed, node, seconds (in the worker),
started, completed (UTC), duration, epochs_run, failure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metasearch.records import METRICS
from metasearch.report.columns import Cells, Columns
from metasearch.report.database import Database
from metasearch.report.heads import Head
from metasearch.report.rows import Rows, Wanted, read_rows
from metasearch.search.names import CURVE, FAILURE, LEFT, LOSSES, MEASURED_MS, RESULT, ROLE, RUN

if TYPE_CHECKING:
    import pandas as pd

COMPLETE = ("COMPLETE",)
OWN_ATTRIBUTES = (RESULT, RUN, FAILURE, CURVE, ROLE, LOSSES, LEFT)
BASE = ("number", "state", "started", "completed", "duration")
RUN_COLUMNS = ("seed", "node", "seconds")
LAST = ("feasible", *RUN_COLUMNS, "started", "completed", "duration", "epochs_run", "failure")
INITIALISED = "initialised"
"""The share of a student's parameters that it had from what it started from."""
FINAL = (MEASURED_MS, "test_std", "test_seeds", "start_gain", "start_better", "start_pairs")
"""Columns beside the metrics of a trial whose final runs are done."""


@dataclass(frozen=True)
class Table:
    """Trials as lists of cells (N,) by column, None where missing; all lists of one length.

    ids: Optuna's. parameters, metrics, stages, attributes: which columns are these.
    """

    ids: list[int]
    cells: Cells
    parameters: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    columns: Columns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", Columns(self.cells))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Table:
        """Return these rows, in this order."""
        cells = {name: [column[row] for row in rows] for name, column in self.cells.items()}
        return replace(self, ids=[self.ids[row] for row in rows], cells=cells)

    def with_cells(self, cells: Cells) -> Table:
        """Return the table with these columns added or in place of its own."""
        return replace(self, cells=self.cells | cells)

    def records(self) -> list[dict[str, Any]]:
        """Return a mapping a trial, as JSON has it: number, params and metrics, without what it does not have."""
        return [
            {"number": number, "params": self._row(self.parameters, row), "metrics": self._row(self.metrics, row)}
            for row, number in enumerate(self.cells["number"])
        ]

    def whole_records(self) -> list[dict[str, Any]]:
        """Return `records` with state, times, stages, attributes and all else that is known."""
        grouped = {"params": self.parameters, "metrics": self.metrics, "stages": self.stages, "user": self.attributes}
        rest = [name for name in self.cells if not any(name in names for names in grouped.values())]
        return [
            self._row(rest, row) | {group: self._row(names, row) for group, names in grouped.items()}
            for row in range(len(self))
        ]

    def _row(self, names: Iterable[str], row: int) -> dict[str, Any]:
        cells = ((name, _plain(self.cells[name][row])) for name in names if name in self.cells)
        return {name: value for name, value in cells if value is not None}

    def frame(self) -> pd.DataFrame:
        """Return the trials as a frame, a row each; times are UTC."""
        import pandas as pd

        frame = pd.DataFrame({name: self.columns[name] for name in self.cells})
        for name in ("started", "completed"):
            if name in frame:
                frame[name] = pd.to_datetime(frame[name], utc=True)
        return frame


def read_table(database: Database, head: Head, wanted: Wanted | None = None) -> Table:
    """Return the trials of a study, whole or what is wanted of them."""
    return table_of(read_rows(database, head, wanted or Wanted(constraints=not head.description)), head)


def wanted_for(
    names: Collection[str], head: Head, *, states: Collection[str] | None, ids: Collection[int] | None = None
) -> Wanted:
    """Return what must be read for these columns to be there, where a trial has them."""
    rest = {name for name in names if name not in BASE and name not in head.directions and name != "feasible"}
    keys = {name.removeprefix("user.") for name in rest if name.startswith("user.")}
    keys |= {RUN} if rest & set(RUN_COLUMNS) else set()
    keys |= {FAILURE} if "failure" in rest else set()
    keys |= {CURVE} if "epochs_run" in rest else set()
    # any other name may be a result's: a metric, a fixed parameter, a stage's
    unknown = {name for name in rest if name not in RUN_COLUMNS and name != "failure" and not name.startswith("user.")}
    keys |= {RESULT} if unknown else set()
    return Wanted(
        states=states,
        ids=ids,
        parameters=() if head.description and states == COMPLETE else sorted(unknown),
        attributes=sorted(keys),
        stages=any(name in ("epochs_run", INITIALISED) or _is_of_stage(name) for name in unknown),
        constraints=not head.description,
    )


def _is_of_stage(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return "." in name and (last in METRICS or last == "seconds")


def table_of(rows: Rows, head: Head) -> Table:
    """Return rows as columns. A complete trial's parameters are its result's, fixed ones included."""
    place = {each: row for row, (each, *_) in enumerate(rows.trials)}
    grid, names = _Grid(len(rows.trials)), list(head.directions)
    for name in names:
        grid.column("metrics", name)
    for each, index, value in rows.values:
        grid.put("metrics", names[index], place[each], value)
    for each, name, value in rows.parameters:
        grid.put("parameters", name, place[each], value)
    for each, key, value in rows.attributes:
        if head.description:
            grid.put_own(key, place[each], value)
        else:
            grid.put("attributes", f"user.{key}", place[each], value)
    for name in LAST if head.description else ():
        grid.column("last", name)
    grid.groups["last"] |= _of_every_trial(rows, place)
    grid.groups["metrics"] = _in_order(grid.groups["metrics"], (*METRICS, *names))
    grid.groups["last"] = _in_order(grid.groups["last"], LAST)
    cells: Cells = {
        "number": [number for _, number, *_ in rows.trials],
        "state": [state for _, _, state, *_ in rows.trials],
    }
    kept: dict[str, tuple[str, ...]] = {}
    for group, columns in grid.groups.items():
        # a parameter of another program may be called as a column is
        renamed = {name if name not in cells else f"{group}.{name}": column for name, column in columns.items()}
        cells |= renamed
        kept[group] = tuple(renamed)
    ids = [each for each, *_ in rows.trials]
    return Table(ids, cells, kept["parameters"], kept["metrics"], kept["stages"], kept["attributes"])


class _Grid:
    """Columns (N,) by group and name, while their cells come in."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.groups: dict[str, Cells] = {name: {} for name in ("metrics", "parameters", "stages", "attributes", "last")}

    def column(self, group: str, name: str) -> list[Any]:
        """Return a column, a new one without cells where there is none."""
        found = self.groups[group].get(name)
        if found is None:
            found = self.groups[group][name] = [None] * self._count
        return found

    def put(self, group: str, name: str, row: int, value: Any) -> None:
        self.column(group, name)[row] = value

    def put_own(self, key: str, row: int, value: Any) -> None:
        """Put the cells that an attribute of one of metasearch's trials gives."""
        if key == RESULT:
            self.put_result(row, value)
        elif key in OWN_ATTRIBUTES:
            for name, cell in _own(key, value).items():
                self.put("last", name, row, cell)
        else:
            self.put("attributes", f"user.{key}", row, value)

    def put_result(self, row: int, result: Mapping[str, Any]) -> None:
        """Put a result's metrics, configuration and stages, as far as they were read."""
        for name, cell in result["metrics"].items():
            self.put("metrics", name, row, cell)
        for name, cell in result["config"].items():
            self.put("parameters", name, row, cell)
        for stage in result.get("stages", ()):
            self.put("stages", f"{stage['stage']}.seconds", row, stage["seconds"])
            for name, cell in stage["metrics"].items():
                self.put("stages", f"{stage['stage']}.{name}", row, cell)
        if INITIALISED in result.get("details", {}):
            self.put("metrics", INITIALISED, row, result["details"][INITIALISED])
        if "epochs_run" in result:
            self.put("last", "epochs_run", row, result["epochs_run"])


def _of_every_trial(rows: Rows, place: Mapping[int, int]) -> Cells:
    """Return the columns that no attribute gives. place: the row of each of Optuna's ids."""
    feasible = [state == "COMPLETE" for _, _, state, *_ in rows.trials]
    for each, violation in rows.violations:
        feasible[place[each]] &= violation <= 0
    times = [(started, ended) for *_, started, ended in rows.trials]
    return {
        "feasible": feasible,
        "started": [started for started, _ in times],
        "completed": [ended for _, ended in times],
        "duration": [(ended - started).total_seconds() if started and ended else None for started, ended in times],
    }


def _own(key: str, value: Any) -> dict[str, Any]:
    """Return the columns that one of metasearch's own trial attributes gives."""
    if key == RUN:
        seconds = {"seconds": value["ended"] - value["started"]} if "ended" in value else {}
        return {name: value[name] for name in ("seed", "node") if name in value} | seconds
    if key == FAILURE:
        return {"failure": value.get("reason")}
    if key == ROLE:
        return {f"role.{name}": cell for name, cell in value.items()}
    return {"epochs_run": len(value)} if key == CURVE else {}


def _in_order(columns: Cells, order: Iterable[str]) -> Cells:
    first = {name: columns[name] for name in order if name in columns}
    return first | columns


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it; what JSON has no word for (NaN, infinities) as missing."""
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    return None if isinstance(value, float) and not math.isfinite(value) else value
