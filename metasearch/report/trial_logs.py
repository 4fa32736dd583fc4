"""Trials as trackers of experiments want them: parameters, metrics, and the learning curve epoch by epoch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metasearch.errors import NotFoundError
from metasearch.records import EpochReport
from metasearch.report.database import Database, trial_attributes
from metasearch.report.frames import read_table
from metasearch.report.heads import Head, study_head
from metasearch.report.rows import Wanted
from metasearch.search.names import CURVE, RESULT

ENDED = ("COMPLETE", "PRUNED", "FAIL")
AT_ONCE = 200
"""Trials whose curves are in memory together."""

EPOCH_METRICS = ("val_accuracy", "train_loss", "learning_rate", "temperature", "macs")
"""What an epoch's report says of the training, beside its place and time."""


@dataclass(frozen=True)
class TrialLog:
    """A trial that has ended. metrics: those that are numbers. started, ended: Unix times, None where not known."""

    number: int
    state: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    curve: Sequence[EpochReport]
    started: float | None
    ended: float | None

    def epochs(self) -> Iterator[tuple[EpochReport, float]]:
        """Yield each epoch's report and the Unix time of its end, by the seconds that the epochs took."""
        when = self.started or 0.0
        for report in self.curve:
            when += report.seconds
            yield report, when


def trial_logs(database: Database, name: str, *, without: Collection[int] = ()) -> Iterator[TrialLog]:
    """Yield the trials of a study that have ended, but for these numbers, in the order of their numbers.

    Raises NotFoundError for a study that is not there or of which no trial has ended.
    """
    head = study_head(database, name)
    table = read_table(database, head, Wanted(states=ENDED, stages=False, constraints=False))
    if not len(table):
        raise NotFoundError(f"study {name}: no trial has ended yet")
    rows = [row for row, number in enumerate(table.cells["number"]) if number not in without]
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        curves = _curves(database, head, [table.ids[row] for row in some])
        for row in some:
            metrics = {metric: table.cells[metric][row] for metric in table.metrics}
            yield TrialLog(
                number=table.cells["number"][row],
                state=table.cells["state"][row],
                parameters={
                    path: table.cells[path][row] for path in table.parameters if table.cells[path][row] is not None
                },
                metrics={metric: float(value) for metric, value in metrics.items() if value is not None},
                curve=curves.get(table.ids[row], []),
                started=_unix(table.cells["started"][row]),
                ended=_unix(table.cells["completed"][row]),
            )


def _curves(database: Database, head: Head, ids: Sequence[int]) -> dict[int, list[EpochReport]]:
    """Return the learning curves by Optuna's id: those in results, and those of trials that were stopped early."""
    if not head.description:
        return {}
    found: dict[int, list[EpochReport]] = {}
    for trial, key, value in trial_attributes(database, ids, RESULT, CURVE):
        curve = json.loads(value)["curve"] if key == RESULT else value
        found[trial] = [EpochReport(**report) for report in curve]
    return found


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.replace(tzinfo=UTC).timestamp()
