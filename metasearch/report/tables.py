"""Frames as tables for people: one way to write each metric, and the tables of the front, the controls and studies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from metasearch.configuration import Configuration
from metasearch.search.names import MEASURED_MS

HEADINGS = {
    "val_accuracy": "val acc",
    "val_balanced_accuracy": "val bal acc",
    "val_ece": "val ECE",
    "test_accuracy": "test acc",
    "teacher_agreement": "agrees",
    "parameters": "params",
    "macs": "MACs",
    "model_bytes": "bytes",
    "latency_ms": "ms",
    MEASURED_MS: "ms here",
    "train_seconds": "train s",
}

RUNS = {
    "final": "as found, mean of seeds",
    "direct": "distilled directly at the nearest MACs",
    "alone": "trained without the teacher",
    "random": "started from random weights",
}
"""What each run of a companion is, by its role; all but the first are controls."""

SHOWN = ("val_accuracy", "test_accuracy", "parameters", "macs", "model_bytes", "latency_ms", MEASURED_MS)
"""The metrics that a terminal has room for."""


def metric_text(name: str, value: Any) -> str:
    """Return a metric as people read it: shares with four digits, counts and bytes in k and M, times in ms."""
    if value is None or pd.isna(value):
        return ""
    if name in {"parameters", "macs"}:
        return _scaled(float(value), "")
    if name.endswith("_bytes"):
        return _scaled(float(value), "B")
    if name in ("latency_ms", MEASURED_MS):
        return f"{value:.3f}"
    if name.endswith("_seconds"):
        return f"{value:.1f}"
    return f"{value:.4f}"


def seconds_text(seconds: float) -> str:
    """Return a duration in its two largest units of hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def teacher_text(spec: str, metrics: Mapping[str, float]) -> str:
    """Return a teacher and how good it is in one line; of a file of logits the network is not known."""
    known = [name for name in ("val_accuracy", "val_ece", "test_accuracy", "parameters", "macs") if name in metrics]
    return f"teacher {spec}: {', '.join(f'{HEADINGS[name]} {metric_text(name, metrics[name])}' for name in known)}"


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return (
                f"{value / factor:.3g} {prefix}{unit}"
                if value < 100 * factor
                else f"{value / factor:.0f} {prefix}{unit}"
            )
    return f"{value:.0f} {unit}".strip()


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as mappings with text keys."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def student_text(row: dict[str, Any]) -> str:
    """Return a configuration's student in a few words: family, width and depth, pruning, sparsity, precision."""
    width = row.get("student.width", row.get("student.width.start", row.get("student.width.initial")))
    text = f"{row['student.family']} w{width} d{row['student.depth']}"
    reduced = {
        key: value for key, value in row.items() if key.startswith(("pruning_ratio", "sparsity")) and not pd.isna(value)
    }
    c = Configuration.of(reduced)
    text += f" pruned {c.pruning_ratio.bounds()[1]:.0%}" if c.prunes else ""
    text += f" sparse {c.sparsity.bounds()[1]:.0%}" if c.sparsity.bounds()[1] > 0 else ""
    text += f" below {c.sparsity_threshold:g} sd zero" if c.sparsity_threshold > 0 else ""
    text += start_text(row)
    return text + (" int8" if row["quantize"] == "int8" else " fp32")


def start_text(row: dict[str, Any]) -> str:
    """Return what a student started from, with the share of its parameters taken over; "" for random weights."""
    init = row.get("student.init", "random")
    if pd.isna(init) or init == "random":
        return ""
    share = row.get("initialised")
    return f" from {init}" + ("" if share is None or pd.isna(share) else f" ({share:.0%})")


def start_lines(frame: pd.DataFrame) -> list[str]:
    """Return a line for each student of a front whose start was compared with random weights: what it gained."""
    compared = [row for row in records_of(frame) if not pd.isna(row.get("start_gain"))]
    return [
        f"trial {row['number']}: {row['student.init']} against random weights, all else equal: "
        f"{100 * row['start_gain']:+.1f} points of test accuracy, better in {row['start_better']:.0f} of "
        f"{row['start_pairs']:.0f} seeds"
        for row in compared
    ]


def front_table(frame: pd.DataFrame, *, title: str = "") -> Table:
    """Return the table of a front as the table of `best` gives it."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("student", min_width=18)  # of what does not fit, it alone is broken into lines
    shown = [name for name in SHOWN if name in frame and frame[name].notna().any()]
    for name in shown:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    for row in records_of(frame):
        cells = [metric_text(name, row[name]) for name in shown]
        if "test_accuracy" in shown and row.get("test_std") is not None and not pd.isna(row["test_std"]):
            cells[shown.index("test_accuracy")] += f" ±{row['test_std']:.4f}"
        table.add_row(str(row["number"]), student_text(row), *cells)
    return table


def controls_table(controls: pd.DataFrame) -> Table:
    """Return the table that sets each final student beside its controls, as `controls_frame` gives them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="controls, on the test split", title_justify="left")
    for heading, justify in (("trial", "right"), ("run", "left"), ("seeds", "right"), ("test acc", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich's literal
    for heading in ("MACs", "bytes"):
        table.add_column(heading, justify="right")
    for of, group in controls.groupby("of", sort=True):
        for role, text in RUNS.items():
            runs = group[group["role"] == role]
            if runs.empty:
                continue
            spread = f" ±{runs['test_accuracy'].std():.4f}" if len(runs) > 1 else ""
            table.add_row(
                str(of) if role == "final" else "",
                text,
                str(len(runs)),
                metric_text("test_accuracy", runs["test_accuracy"].mean()) + spread,
                metric_text("macs", runs["macs"].mean()),
                metric_text("model_bytes", runs["model_bytes"].mean()),
            )
    return table


def trials_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a trials frame that people look for first, numbers as they read them."""
    metrics = [name for name in SHOWN if name in frame and frame[name].notna().any()]
    named = ["number", "state", "feasible", *metrics, "seconds", "failure"]
    shown = frame[[name for name in named if name in frame and (frame.empty or frame[name].notna().any())]].copy()
    for name in metrics:
        shown[name] = [metric_text(name, value) for value in frame[name]]
    if "seconds" in shown:
        shown["seconds"] = [metric_text("train_seconds", value) for value in frame["seconds"]]
    return shown


def plain_table(frame: pd.DataFrame) -> Table:
    """Return any frame as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in frame.columns:
        table.add_column(HEADINGS.get(str(column), str(column)))
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return "" if value is None or value is pd.NaT else str(value)
