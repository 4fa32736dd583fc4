"""What a report reads of one study, once. N trials."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasearch.errors import InfeasibleError
from metasearch.report.database import Database
from metasearch.report.finals import controls_frame
from metasearch.report.frames import Table
from metasearch.report.fronts import costs_of, front_rows
from metasearch.report.heads import Head, find_head, study_head
from metasearch.report.queries import MOST_IDS, best, trials_table
from metasearch.report.rows import Wanted, read_rows
from metasearch.report.tables import records_of
from metasearch.search.names import CONTROLS, FAILURE, LATENCY, RUN, TEACHER

MOST_DRAWN = 3000
"""Trials drawn on a page, over all of its studies, beside those of the fronts."""


@dataclass(frozen=True)
class Facts:
    """A study and its trials. index: of the study in the report.

    front, drawn: rows of the table; those on the front of the feasible trials best first, those that pictures show in
    their order. runs, failures: by trial number, of the drawn and of all failed trials. controls: a mapping a
    final run or control: role, of, seed and metrics. latencies: median and spread in ms by trial number. nearest: what
    the nearest trials miss where none is feasible.
    """

    index: int
    head: Head
    table: Table
    front: tuple[int, ...]
    drawn: tuple[int, ...]
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, dict[str, Any]] = field(default_factory=dict)
    controls: tuple[dict[str, Any], ...] = ()
    latencies: dict[int, tuple[float, float]] = field(default_factory=dict)
    nearest: str = ""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.head.name

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives, the first one first."""
        return tuple(self.head.directions)

    @property
    def teacher(self) -> dict[str, Any] | None:
        """The teacher's spec and metrics, None where they are not known."""
        found: dict[str, Any] | None = self.head.attributes.get(TEACHER)
        return found

    def numbers(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of the trials in these rows."""
        numbers = self.table.cells["number"]
        return tuple(numbers[row] for row in rows)

    def column(self, name: str, rows: Sequence[int]) -> tuple[Any, ...]:
        """Return a column's cells in these rows, None where the table has no such column."""
        cells = self.table.cells.get(name)
        return tuple(None if cells is None else cells[row] for row in rows)

    def complete(self, rows: Sequence[int] | None = None) -> list[int]:
        """Return the rows, of those given or of all, whose trial is complete and has every objective as a number."""
        states, known = self.table.cells["state"], self._measured
        asked = range(len(self.table)) if rows is None else rows
        return [row for row in asked if states[row] == "COMPLETE" and known[row]]

    def feasible(self, rows: Sequence[int] | None = None) -> list[int]:
        """Return those of the complete rows whose trial keeps the study's constraints."""
        feasible = self.table.cells["feasible"]
        return [row for row in self.complete(rows) if feasible[row]]

    @cached_property
    def _measured(self) -> list[bool]:
        finite: NDArray[np.bool_] = np.isfinite(costs_of(self.table.columns, self.head.directions))
        return [all(row) for row in finite.tolist()]


def study_facts(database: Database, name: str, *, index: int = 0, most: int = MOST_DRAWN) -> Facts:
    """Return what a report shows of a study. most: trials to draw beside the front.

    Raises NotFoundError for a study that is not there, InputError for an imported prior.
    """
    head = study_head(database, name)
    table = trials_table(database, name)
    costs = costs_of(table.columns, head.directions)
    kept = np.array(table.cells["feasible"], bool) & np.isfinite(costs).all(axis=1) if len(table) else np.zeros(0, bool)
    front = tuple(front_rows(costs, np.flatnonzero(kept)))
    drawn = drawn_rows(len(table), front, most=most)
    runs, failures = _runs(database, head, table, drawn)
    nearest = ""
    if "COMPLETE" in table.cells["state"] and not kept.any():
        try:
            best(database, name)
        except InfeasibleError as error:
            nearest = str(error)
    return Facts(
        index=index,
        head=head,
        table=table,
        front=front,
        drawn=drawn,
        runs=runs,
        failures=failures,
        controls=tuple(records_of(controls_frame(database, name))) if head.description else (),
        latencies=_latencies(database, head),
        nearest=nearest,
    )


def drawn_rows(count: int, front: Collection[int], *, most: int, seed: int = 0) -> tuple[int, ...]:
    """Return the rows to draw, in order: all of the front, and a fair sample of at most `most` of the others.

    Drawn at random rather than thinned where they are dense, so that the picture's density is that of the search.
    """
    others = np.setdiff1d(np.arange(count), np.array(sorted(front), int))
    if len(others) > most:
        others = np.random.default_rng(seed).choice(others, most, replace=False)
    return tuple(np.union1d(others, np.array(sorted(front), int)).astype(int).tolist())


def _runs(
    database: Database, head: Head, table: Table, drawn: Sequence[int]
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return where and when the drawn trials ran, and why the failed ones failed, by number."""
    if not head.description:
        return {}, {}
    drawn_ids = {table.ids[row] for row in drawn}
    failed = {each for each, state in zip(table.ids, table.cells["state"], strict=True) if state == "FAIL"}
    ids = drawn_ids | failed
    wanted = Wanted(
        ids=sorted(ids) if len(ids) <= MOST_IDS else None,
        parameters=(),
        attributes=(RUN, FAILURE),
        stages=False,
        constraints=False,
    )
    number_of = dict(zip(table.ids, table.cells["number"], strict=True))
    runs: dict[int, dict[str, Any]] = {}
    failures: dict[int, dict[str, Any]] = {}
    for each, key, value in read_rows(database, head, wanted).attributes:
        if key == RUN and each in drawn_ids:
            runs[number_of[each]] = value
        elif key == FAILURE and each in failed:
            failures[number_of[each]] = value
    return runs, failures


def _latencies(database: Database, head: Head) -> dict[int, tuple[float, float]]:
    companion = find_head(database, head.name + CONTROLS) if head.description else None
    measured = companion.attributes.get(LATENCY) if companion else None
    return {int(number): (found["median_ms"], found["spread_ms"]) for number, found in (measured or {}).items()}
