"""What the final runs of a front found, which live in the study's companion: test accuracies, latencies, controls."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metasearch.records import METRICS
from metasearch.report.database import Database
from metasearch.report.frames import COMPLETE, FINAL, Table, read_table
from metasearch.report.heads import Head, find_head
from metasearch.report.rows import Wanted
from metasearch.search.names import CONTROLS, LATENCY, MEASURED_MS

if TYPE_CHECKING:
    import pandas as pd


def controls_frame(database: Database, name: str) -> pd.DataFrame:
    """Return a row a final run or control: role, of (the trial it belongs to), seed, and its metrics."""
    import pandas as pd

    return pd.DataFrame(_companion_runs(find_head(database, name + CONTROLS), database))


def final_results(database: Database, head: Head) -> dict[int, dict[str, Any]]:
    """Return, for each trial with final runs, mean and spread of its test accuracy, its start's gain; and latencies.

    Where the study predicts `latency_ms` for a device, what was measured here is another number: MEASURED_MS.
    """
    companion = find_head(database, head.name + CONTROLS) if head.description else None
    if companion is None:
        return {}
    by_role: dict[str, dict[int, dict[int, float]]] = {"final": {}, "random": {}}
    for run in _companion_runs(companion, database):
        if run["role"] in by_role:
            by_role[run["role"]].setdefault(run["of"], {})[run["seed"]] = run["test_accuracy"]
    results: dict[int, dict[str, Any]] = {}
    for number, accuracies in by_role["final"].items():
        values = list(accuracies.values())
        results[number] = {
            "test_accuracy": statistics.mean(values),
            "test_std": statistics.stdev(values) if len(values) > 1 else None,
            "test_seeds": len(values),
            **start_gain(accuracies, by_role["random"].get(number, {})),
        }
    for number, latency in (companion.attributes.get(LATENCY) or {}).items():
        name = MEASURED_MS if head.description.get("latency") else "latency_ms"
        results.setdefault(int(number), {})[name] = latency["median_ms"]
    return results


def start_gain(learned: Mapping[int, float], random: Mapping[int, float]) -> dict[str, float | int]:
    """Return what a start gains over random weights on the seeds that both have, nothing where there is none.

    learned, random: test accuracy by seed.
    """
    gains = [accuracy - random[seed] for seed, accuracy in learned.items() if seed in random]
    if not gains:
        return {}
    better = sum(gain > 0 for gain in gains)
    return {"start_gain": statistics.mean(gains), "start_better": better, "start_pairs": len(gains)}


def _companion_runs(companion: Head | None, database: Database) -> list[dict[str, Any]]:
    if companion is None:
        return []
    table = read_table(database, companion, Wanted(states=COMPLETE, stages=False, constraints=False))
    return [
        {key: table.cells[f"role.{key}"][row] for key in ("role", "of", "seed")}
        | {name: table.cells[name][row] for name in table.metrics if table.cells[name][row] is not None}
        for row in range(len(table))
    ]


def with_finals(table: Table, finals: dict[int, dict[str, Any]]) -> Table:
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
