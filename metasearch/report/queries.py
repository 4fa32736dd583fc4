"""Questions to a store, answered as columns and pandas frames by SQL over Optuna's schema.

Imports neither torch nor ray, and pandas only where a frame is made: it takes a third of what a command may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metasearch.errors import InfeasibleError, InputError
from metasearch.records import METRICS
from metasearch.report.conditions import Condition, Name, conjuncts, names_in
from metasearch.report.database import Database
from metasearch.report.finals import final_results, with_finals
from metasearch.report.frames import BASE, COMPLETE, FINAL, INITIALISED, LAST, Table, read_table, wanted_for
from metasearch.report.fronts import costs_of, front_rows
from metasearch.report.heads import Head, study_head
from metasearch.report.matching import Limit, check_names, distances, matches, misses, satisfied
from metasearch.report.rows import Wanted
from metasearch.report.where import parse_where
from metasearch.search.objectives import Constraint
from metasearch.spelling import hint

ALWAYS_KNOWN = (*METRICS, *FINAL, *LAST, INITIALISED)
"""Names that a condition may use even where no trial has them yet."""
MOST_IDS = 2000
"""More trials than these are read all at once rather than each by its id."""
NEAREST = 3


@dataclass(frozen=True)
class Best:
    """The trials to choose from, best first. complete, feasible: how many trials the study has of each."""

    study: str
    table: Table
    complete: int
    feasible: int

    def record(self) -> dict[str, Any]:
        """Return it as `best --json` prints it."""
        return {
            "study": self.study,
            "complete": self.complete,
            "feasible": self.feasible,
            "trials": self.table.records(),
        }


def best(
    database: Database,
    name: str,
    *,
    where: Condition | None = None,
    sort: str | None = None,
    top: int | None = None,
    pareto: bool = True,
) -> Best:
    """Return the complete trials that satisfy the study's constraints and `where`; with `pareto` only their front.

    sort: a name whose better values come first, by default the first objective; with a - before it, last. Where the
    final runs are done, test_accuracy is their mean over seeds, with test_std and test_seeds, and latency_ms the serial
    measurement; start_gain is by how much it is above that from random weights, all else equal, in the mean of
    start_pairs seeds, in start_better of them above it. Raises InfeasibleError naming the nearest trials if none
    satisfies all, InputError for unknown names.
    """
    head = study_head(database, name)
    limits = limits_of(head) + ([Limit(where)] if where else [])
    key = sort or next(iter(head.directions))
    names = {*head.directions, key.removeprefix("-"), *(n for limit in limits for n in names_in(limit.condition))}
    finals = final_results(database, head)
    complete, table = _promising(database, head, limits, names)
    table = _with_known(database, head, with_finals(table, finals), where, key)
    keeps = keeps_all(table, limits)
    if complete and not keeps.any():
        table = with_finals(read_table(database, head, wanted_for(names, head, states=COMPLETE)), finals)
        table = _with_known(database, head, table, where, key)
        raise InfeasibleError(f"study {name}: {_nearest(table, limits)}")
    costs = costs_of(table.columns, head.directions)
    feasible = np.flatnonzero(keeps)
    chosen = front_rows(costs, feasible) if pareto else feasible[np.lexsort(costs[feasible].T[::-1])].tolist()
    chosen = sorted_rows(table, chosen, key, head.directions)[:top]
    return Best(name, _whole(database, head, table, chosen, finals), complete, len(feasible))


def _promising(database: Database, head: Head, limits: Sequence[Limit], names: Collection[str]) -> tuple[int, Table]:
    """Return how many trials are complete, and those that the cheap limits leave, with these columns.

    Objectives and times are columns of Optuna's tables; all else is in the results' JSON, which is decoded for the
    trials alone that keep the limits on the former.
    """
    cheap_names = {*BASE, *head.directions}
    parts = [Limit(part, limit.lenient) for limit in limits for part in conjuncts(limit.condition)]
    cheap = [limit for limit in parts if set(names_in(limit.condition)) <= cheap_names]
    table = read_table(database, head, wanted_for(cheap_names, head, states=COMPLETE))
    if set(names) <= cheap_names:
        return len(table), table
    rows = np.flatnonzero(keeps_all(table, cheap)).tolist()
    ids = [table.ids[row] for row in rows] if 2 * len(rows) < len(table) else None
    return len(table), read_table(database, head, wanted_for(names, head, states=COMPLETE, ids=ids))


def trials_table(
    database: Database,
    name: str,
    *,
    where: Condition | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> Table:
    """Return every trial of a study, those alone that satisfy `where`, in the order of their numbers or `sort`."""
    head = study_head(database, name)
    table = with_finals(read_table(database, head), final_results(database, head))
    limits = limits_of(head)
    if head.description:
        table = table.with_cells({"feasible": keeps_all(table, limits).tolist()})
    table = _with_known(database, head, table, where, sort or "number")
    rows = np.flatnonzero(matches(where, table.columns, len(table))).tolist() if where else list(range(len(table)))
    if sort:
        rows = sorted_rows(table, rows, sort, head.directions)
    return table if where is None and sort is None and top is None else table.take(rows[:top])


def limits_of(head: Head) -> list[Limit]:
    """Return the study's own constraints; as in the search, a trial without a metric keeps a limit on it."""
    return [Limit(parse_where(str(Constraint.parse(text))), lenient=True) for text in head.constraints]


def sorted_rows(table: Table, rows: Sequence[int], sort: str, directions: dict[str, str]) -> list[int]:
    """Return rows by a column, better values first (smaller ones where that is not known), missing ones last.

    A - before the name turns the order round. Rows that are equal stay in their order.
    """
    name = sort.removeprefix("-")
    cells = table.cells[name]
    known = [row for row in rows if cells[row] is not None and cells[row] == cells[row]]
    direction = directions.get(name, METRICS.get(name, "minimize"))
    reverse = (direction == "maximize") != sort.startswith("-")
    kinds = {type(cells[row]) for row in known}
    comparable = kinds <= {int, float, bool} or (len(kinds) == 1 and not kinds & {dict, list})
    known.sort(key=lambda row: cells[row] if comparable else str(cells[row]), reverse=reverse)
    return known + [row for row in rows if cells[row] is None or cells[row] != cells[row]]


def _with_known(database: Database, head: Head, table: Table, where: Condition | None, sort: str) -> Table:
    """Return the table with an empty column for each name that is asked for and known, but that no trial has.

    Raises InputError for names that are not known.
    """
    names: dict[str, Name] = names_in(where) if where else {}
    asked = {*names, *(name for limit in limits_of(head) for name in names_in(limit.condition)), sort.removeprefix("-")}
    lacking = asked - set(table.cells)
    if not lacking:
        return table
    known: Collection[str] = {*ALWAYS_KNOWN, *table.cells}
    if not lacking <= set(known):
        known = {*known, *read_table(database, head).cells}
    if where:
        check_names(where, known)
    key = sort.removeprefix("-")
    if key not in known:
        raise InputError("--sort", f"is no name here {hint(key, sorted(known))}", key)
    if key in lacking and len(table):
        raise InputError("--sort", "is not known for any trial of this study", key)
    return table.with_cells({name: [None] * len(table) for name in lacking})


def keeps_all(table: Table, limits: Sequence[Limit]) -> Any:
    """Return (N,) which trials are complete and keep all limits, those of another program's sampler included."""
    keeps = np.array(table.cells["feasible"], bool)
    for limit in limits:
        keeps &= satisfied(limit, table.columns, len(table))
    return keeps


def _whole(
    database: Database, head: Head, table: Table, rows: Sequence[int], finals: dict[int, dict[str, Any]]
) -> Table:
    """Return these rows with all that is known of their trials."""
    ids = [table.ids[row] for row in rows]
    wanted = Wanted(states=COMPLETE, ids=ids if len(ids) <= MOST_IDS else None, constraints=not head.description)
    whole = with_finals(read_table(database, head, wanted), finals)
    row_of = {each: row for row, each in enumerate(whole.ids)}
    return whole.take([row_of[each] for each in ids])


def _nearest(table: Table, limits: Sequence[Limit]) -> str:
    """Say which trials come nearest to all limits, and what each misses by."""
    known = [limit for limit in limits if set(names_in(limit.condition)) <= set(table.columns)]
    far = np.zeros(len(table))
    for limit in known:
        far += np.where(
            satisfied(limit, table.columns, len(table)), 0.0, distances(limit.condition, table.columns, len(table))
        )
    lines = []
    for row in np.argsort(far, kind="stable")[:NEAREST].tolist():
        texts = [
            text
            for limit in known
            if not satisfied(limit, table.columns, len(table))[row]
            for text in misses(limit.condition, table.columns, len(table), row)
        ]
        texts = texts or ["misses a constraint that its sampler was told of"]
        lines.append(f"trial {table.cells['number'][row]}: {'; '.join(texts)}")
    return f"none of {len(table)} complete trials satisfies all limits; nearest: {' | '.join(lines)}"
