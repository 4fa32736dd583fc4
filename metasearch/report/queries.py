"""Questions to a store, answered as columns and pandas frames by SQL over Optuna's schema.

Imports neither torch nor ray, and pandas only where a frame is made: it takes a third of what a command may.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.errors import InfeasibleError, InputError
from metasearch.records import METRICS
from metasearch.report.database import Database
from metasearch.report.frames import BASE, COMPLETE, FINAL, LAST, Table, read_table, wanted_for
from metasearch.report.fronts import costs_of, front_rows
from metasearch.report.heads import Head, find_head, study_head, study_heads
from metasearch.report.matching import Limit, check_names, distances, matches, misses, satisfied
from metasearch.report.rows import Wanted, read_rows
from metasearch.report.where import Condition, Name, conjuncts, names_in, parse_where
from metasearch.search.objectives import Constraint
from metasearch.search.names import CONTROLS, FAILURE, LATENCY, LOST
from metasearch.spelling import hint

if TYPE_CHECKING:
    import pandas as pd

ALWAYS_KNOWN = (*METRICS, *FINAL, *LAST)
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
    measurement. Raises InfeasibleError naming the nearest trials if none satisfies all, InputError for unknown names.
    """
    head = study_head(database, name)
    limits = limits_of(head) + ([Limit(where)] if where else [])
    key = sort or next(iter(head.directions))
    names = {*head.directions, key.removeprefix("-"), *(n for limit in limits for n in names_in(limit.condition))}
    finals = final_results(database, head)
    complete, table = _promising(database, head, limits, names)
    table = _with_known(database, head, _with_finals(table, finals), where, key)
    keeps = _keeps(table, limits)
    if complete and not keeps.any():
        table = _with_finals(read_table(database, head, wanted_for(names, head, states=COMPLETE)), finals)
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
    rows = np.flatnonzero(_keeps(table, cheap)).tolist()
    ids = [table.ids[row] for row in rows] if 2 * len(rows) < len(table) else None
    return len(table), read_table(database, head, wanted_for(names, head, states=COMPLETE, ids=ids))


def best_frame(
    database: Database,
    name: str,
    *,
    where: Condition | None = None,
    sort: str | None = None,
    top: int | None = None,
    pareto: bool = True,
) -> pd.DataFrame:
    """Return what `best` finds as a frame, a row a trial."""
    return best(database, name, where=where, sort=sort, top=top, pareto=pareto).table.frame()


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
    table = _with_finals(read_table(database, head), final_results(database, head))
    limits = limits_of(head)
    if head.description:
        table = table.with_cells({"feasible": _keeps(table, limits).tolist()})
    table = _with_known(database, head, table, where, sort or "number")
    rows = np.flatnonzero(matches(where, table.columns, len(table))).tolist() if where else list(range(len(table)))
    if sort:
        rows = sorted_rows(table, rows, sort, head.directions)
    return table if where is None and sort is None and top is None else table.take(rows[:top])


def trials_frame(
    database: Database,
    name: str,
    *,
    where: Condition | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Return what `trials_table` finds as a frame, a row a trial."""
    return trials_table(database, name, where=where, sort=sort, top=top).frame()


def studies_records(database: Database) -> list[dict[str, Any]]:
    """Return every study: name, task, objectives, finished, running, created, complete, feasible.

    Studies of other programs have no task. Imported priors, without trials here, and controls are left out.
    """
    records = []
    for head in study_heads(database):
        if head.is_prior or head.name.endswith(CONTROLS):
            continue
        limits = limits_of(head)
        names = {name for limit in limits for name in names_in(limit.condition)}
        table = read_table(database, head, wanted_for(names, head, states=None))
        table = _with_finals(table, final_results(database, head) if limits else {})
        states = table.cells["state"]
        failed = [each for each, state in zip(table.ids, states, strict=True) if state == "FAIL"]
        records.append(
            {
                "name": head.name,
                "task": (head.description.get("task") or {}).get("text"),
                "objectives": list(head.directions),
                "finished": sum(state in ("COMPLETE", "PRUNED", "FAIL") for state in states)
                - _lost(database, head, failed),
                "running": states.count("RUNNING"),
                "created": head.description.get("created"),
                "complete": states.count("COMPLETE"),
                "feasible": int(_keeps(table, limits).sum()),
            }
        )
    return records


def studies_frame(database: Database) -> pd.DataFrame:
    """Return `studies_records` as a frame, a row a study."""
    import pandas as pd

    columns = ["name", "task", "objectives", "finished", "running", "created", "complete", "feasible"]
    return pd.DataFrame(studies_records(database), columns=columns)


def controls_frame(database: Database, name: str) -> pd.DataFrame:
    """Return a row a final run or control: role, of (the trial it belongs to), seed, and its metrics."""
    import pandas as pd

    return pd.DataFrame(_companion_runs(find_head(database, name + CONTROLS), database))


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
    comparable = kinds <= {int, float, bool} or len(kinds) == 1 and not kinds & {dict, list}
    known.sort(key=lambda row: cells[row] if comparable else str(cells[row]), reverse=reverse)
    return known + [row for row in rows if cells[row] is None or cells[row] != cells[row]]


def final_results(database: Database, head: Head) -> dict[int, dict[str, Any]]:
    """Return, for each trial with final runs, the mean and spread of its test accuracy; and latencies."""
    companion = find_head(database, head.name + CONTROLS) if head.description else None
    if companion is None:
        return {}
    accuracies: dict[int, list[float]] = {}
    for run in _companion_runs(companion, database):
        if run["role"] == "final":
            accuracies.setdefault(run["of"], []).append(run["test_accuracy"])
    results: dict[int, dict[str, Any]] = {
        number: {
            "test_accuracy": statistics.mean(values),
            "test_std": statistics.stdev(values) if len(values) > 1 else None,
            "test_seeds": len(values),
        }
        for number, values in accuracies.items()
    }
    for number, latency in (companion.attributes.get(LATENCY) or {}).items():
        results.setdefault(int(number), {})["latency_ms"] = latency["median_ms"]
    return results


def _companion_runs(companion: Head | None, database: Database) -> list[dict[str, Any]]:
    if companion is None:
        return []
    table = read_table(database, companion, Wanted(states=COMPLETE, stages=False, constraints=False))
    return [
        {key: table.cells[f"role.{key}"][row] for key in ("role", "of", "seed")}
        | {name: table.cells[name][row] for name in table.metrics if table.cells[name][row] is not None}
        for row in range(len(table))
    ]


def _with_finals(table: Table, finals: dict[int, dict[str, Any]]) -> Table:
    """Return the table with what the final runs found in place of what its trials know."""
    if not finals:
        return table
    cells, row_of = dict(table.cells), {number: row for row, number in enumerate(table.cells["number"])}
    for number, found in finals.items():
        for name, value in found.items():
            if number in row_of:
                cells[name] = list(cells.get(name, [None] * len(table)))
                cells[name][row_of[number]] = value
    metrics = [name for name in (*METRICS, *FINAL) if name in cells]
    metrics += [name for name in table.metrics if name not in metrics]
    order = ["number", "state", *metrics]
    cells = {name: cells[name] for name in order} | cells
    return replace(table, cells=cells, metrics=tuple(metrics))


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


def _keeps(table: Table, limits: Sequence[Limit]) -> Any:
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
    whole = _with_finals(read_table(database, head, wanted), finals)
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
        one = table.take([row])
        texts = [
            text
            for limit in known
            if not satisfied(limit, one.columns, 1)[0]
            for text in misses(limit.condition, one.columns)
        ]
        texts = texts or ["misses a constraint that its sampler was told of"]
        lines.append(f"trial {one.cells['number'][0]}: {'; '.join(texts)}")
    return f"none of {len(table)} complete trials satisfies all limits; nearest: {' | '.join(lines)}"


def _lost(database: Database, head: Head, failed: Sequence[int]) -> int:
    """Return how many failed trials their machine lost; these do not count as finished."""
    if not failed or not head.description:
        return 0
    wanted = Wanted(states=("FAIL",), parameters=(), attributes=(FAILURE,), stages=False, constraints=False)
    return sum(value.get("reason") == LOST for _, _, value in read_rows(database, head, wanted).attributes)
