"""What the command line prints of a study: the front with its teacher and controls, frames, and JSON records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from metasearch.errors import NotFoundError, StorageError
from metasearch.report.tables import controls_table, front_table, plain_table, start_lines, teacher_text

PIPE_WIDTH = 120
"""Columns of a table that goes into a file or a pipe, where there is no terminal to ask."""


def print_front(
    name: str, frame: pd.DataFrame, controls: pd.DataFrame, teacher: dict[str, Any] | None, *, counts: str = ""
) -> None:
    """Print a front on stdout, with the teacher it was distilled from and the controls it is compared with.

    counts: of how many trials it is the front, in words.
    """
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    out.print(Text.assemble((name, "bold"), f": front of {len(frame)}{counts}"))
    if teacher is not None:
        out.print(teacher_text(teacher["spec"], teacher["metrics"]), highlight=False, soft_wrap=True)
        if not frame.empty and frame["val_accuracy"].max() > teacher["metrics"]["val_accuracy"]:
            out.print(
                "the teacher is worse than its best student on validation data: a better teacher may help",
                style="yellow",
            )
    out.print(front_table(frame) if "student.family" in frame else plain_table(frame.dropna(axis=1, how="all")))
    for line in start_lines(frame):
        out.print(line, highlight=False, soft_wrap=True)
    if not controls.empty:
        out.print(controls_table(controls))


def print_frame(frame: pd.DataFrame) -> None:
    """Print any frame as a table on stdout."""
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(plain_table(frame))


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as a Parquet file; a column of several types or of lists, which it cannot hold, as JSON texts.

    Raises NotFoundError if the folder is missing, StorageError if the file cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise NotFoundError(f"{path}: its folder is not there")
    plain = frame.copy()
    for name, column in frame.items():
        kinds = {type(cell) for cell in column.dropna()} if column.dtype == object else set()
        if len(kinds) > 1 or kinds & {list, dict, tuple}:
            plain[name] = [None if cell is None else json.dumps(cell) for cell in column]
    try:
        plain.to_parquet(path, index=False)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
