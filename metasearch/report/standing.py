"""Where a search stands, from its storage alone: trials by state, failures, rate, driver and front."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metasearch.errors import InfeasibleError
from metasearch.report.database import Database
from metasearch.report.frames import Table, read_table, wanted_for
from metasearch.report.heads import Head, study_head
from metasearch.report.queries import best
from metasearch.search.names import LEASE, LOST, TEACHER

RECENT = 20
"""Finished trials whose times give the rate."""


@dataclass(frozen=True)
class Standing:
    """target: finished trials wanted, None of another program's study. states: how many trials are in each state.

    finished: as `--trials` counts. failures: by reason. rate: finished trials a minute, None where too few are known.
    driver: host and pid of the living one. task, teacher: None where they are not known. front: the best trials, None
    where none is complete or asked for; no_front: "" or why there is none.
    """

    study: str
    target: int | None
    states: dict[str, int]
    finished: int
    failures: dict[str, int]
    rate: float | None
    driver: dict[str, Any] | None
    task: str | None = None
    teacher: dict[str, Any] | None = None
    front: Table | None = None
    no_front: str = ""

    @property
    def seconds_left(self) -> float | None:
        """The time that the trials still wanted will take at this rate."""
        if self.rate is None or self.target is None or self.finished >= self.target:
            return None
        return 60 * (self.target - self.finished) / self.rate

    def record(self) -> dict[str, Any]:
        """Return it as `status --json` prints it."""
        return {
            "study": self.study,
            "task": self.task,
            "trials": self.target,
            "finished": self.finished,
            "running": self.states.get("RUNNING", 0),
            "pruned": self.states.get("PRUNED", 0),
            "failures": self.failures,
            "driver": self.driver,
            "teacher": self.teacher,
        }


def standing(database: Database, name: str, *, top: int = 0) -> Standing:
    """Return where a study stands now, with at most `top` trials of its front. Raises NotFoundError for no study."""
    head = study_head(database, name)
    table = read_table(database, head, wanted_for({"failure"}, head, states=None))
    states = Counter(table.cells["state"])
    reasons = table.cells.get("failure", [None] * len(table))
    failures = Counter(
        reason or "unknown" for reason, state in zip(reasons, table.cells["state"], strict=True) if state == "FAIL"
    )
    ended = [
        when
        for when, state, reason in zip(table.cells["completed"], table.cells["state"], reasons, strict=True)
        if state in ("COMPLETE", "PRUNED", "FAIL") and reason != LOST
    ]
    front, no_front = None, ""
    if top and states["COMPLETE"]:
        try:
            front = best(database, name, top=top).table
        except InfeasibleError as error:
            no_front = str(error)
    return Standing(
        study=name,
        target=head.description.get("trials"),
        states=dict(states),
        finished=len(ended),
        failures=dict(sorted(failures.items())),
        rate=_rate([when for when in ended if when is not None]),
        driver=driver_of(head),
        task=(head.description.get("task") or {}).get("text"),
        teacher=head.attributes.get(TEACHER),
        front=front,
        no_front=no_front,
    )


def _rate(ended: list[datetime]) -> float | None:
    """Return how many trials ended a minute, of the last RECENT."""
    last = sorted(ended)[-RECENT:]
    seconds = (last[-1] - last[0]).total_seconds() if len(last) > 1 else 0.0
    return 60 * (len(last) - 1) / seconds if seconds > 0 else None


def driver_of(head: Head) -> dict[str, Any] | None:
    """Return who drives the study now (host, pid, time), or None."""
    holder: dict[str, Any] | None = head.attributes.get(LEASE)
    if holder is None:
        return None
    from metasearch.search.lease import alive  # with Optuna, which takes longer than the rest of an answer

    return holder if alive(holder) else None
