"""What the command line prints of a study: the front with its teacher and controls, frames, and JSON records."""

from __future__ import annotations

import json
import sys
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from metasearch.parameters import PARAMETERS, POLICIES
from metasearch.records import METRICS
from metasearch.report.tables import controls_table, front_table, plain_table, start_lines, teacher_text

MEASURED = ("test_std", "test_seeds", "initialised", "start_gain", "start_better", "start_pairs")
"""What stands among a student's metrics beside METRICS."""
PIPE_WIDTH = 120
"""Columns of a table that goes into a file or a pipe, where there is no terminal to ask."""


def print_front(name: str, frame: pd.DataFrame, controls: pd.DataFrame, teacher: dict[str, Any] | None) -> None:
    """Print a front on stdout, with the teacher it was distilled from and the controls it is compared with."""
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    out.print(Text.assemble((name, "bold"), f": front of {len(frame)}"))
    if teacher is not None:
        out.print(teacher_text(teacher["spec"], teacher["metrics"]), highlight=False, soft_wrap=True)
        if not frame.empty and frame["val_accuracy"].max() > teacher["metrics"]["val_accuracy"]:
            out.print(
                "the teacher is worse than its best student on validation data: a better teacher may help",
                style="yellow",
            )
    out.print(front_table(frame))
    for line in start_lines(frame):
        out.print(line, highlight=False, soft_wrap=True)
    if not controls.empty:
        out.print(controls_table(controls))


def print_frame(frame: pd.DataFrame) -> None:
    """Print any frame as a table on stdout."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(plain_table(frame))


def front_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as {"number", "params", "metrics"}, without what a row does not have."""
    records = []
    for row in json.loads(frame.to_json(orient="records", date_format="iso")):
        known = {key: value for key, value in row.items() if value is not None}
        params = {
            k: v for k, v in known.items() if k in PARAMETERS or any(k == p or k.startswith(f"{p}.") for p in POLICIES)
        }
        metrics = {k: v for k, v in known.items() if k in METRICS or k in MEASURED}
        records.append({"number": row["number"], "params": params, "metrics": metrics})
    return records
