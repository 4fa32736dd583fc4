"""The studies of a storage, with how far each is and how many of its trials keep its constraints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metasearch.report.conditions import names_in
from metasearch.report.database import Database
from metasearch.report.finals import final_results, with_finals
from metasearch.report.frames import read_table, wanted_for
from metasearch.report.heads import Head, study_heads
from metasearch.report.queries import keeps_all, limits_of
from metasearch.report.rows import Wanted, read_rows
from metasearch.search.names import CONTROLS, FAILURE, LOST

if TYPE_CHECKING:
    import pandas as pd


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
        table = with_finals(table, final_results(database, head) if limits else {})
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
                "feasible": int(keeps_all(table, limits).sum()),
            }
        )
    return records


def studies_frame(database: Database) -> pd.DataFrame:
    """Return `studies_records` as a frame, a row a study."""
    import pandas as pd

    columns = ["name", "task", "objectives", "finished", "running", "created", "complete", "feasible"]
    return pd.DataFrame(studies_records(database), columns=columns)


def _lost(database: Database, head: Head, failed: Sequence[int]) -> int:
    """Return how many failed trials their machine lost; these do not count as finished."""
    if not failed or not head.description:
        return 0
    wanted = Wanted(states=("FAIL",), parameters=(), attributes=(FAILURE,), stages=False, constraints=False)
    return sum(value.get("reason") == LOST for _, _, value in read_rows(database, head, wanted).attributes)
