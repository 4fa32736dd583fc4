"""Figures as data, apart from their rendering: what is drawn where, in numbers that a test can count.

static/page.js and paper.py draw the same figures; colours, symbols and dashes of STYLES are stated here for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from metasearch.search.names import MEASURED_MS

Scale = Literal["linear", "log", "category"]
Unit = Literal["", "share", "count", "bytes", "ms", "seconds"]
Mark = Literal["points", "line", "steps", "bars", "spans", "cells"]
Cell = float | int | str | bool | None

DIGITS = 6
"""Significant digits of what a page draws; more would be read by nobody and make it half as large again."""


@dataclass(frozen=True)
class Axis:
    """What runs along a side of a figure. categories: in their order, of a category axis."""

    label: str
    scale: Scale = "linear"
    unit: Unit = ""
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """What is drawn alike: marks at (x, y), all of one length.

    style: a key of STYLES. trials: the number of the trial that each mark stands for. study: index of its study, whose
    configurations the page shows for these numbers. low, high: the ends of error bars along x. end: where spans end.
    value: of cells. text: more to say of each mark.
    """

    name: str
    mark: Mark
    style: str
    x: tuple[Cell, ...]
    y: tuple[Cell, ...]
    trials: tuple[int, ...] = ()
    study: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    end: tuple[float, ...] = ()
    value: tuple[float, ...] = ()
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level:
    """A line across a figure at a value of one axis, such as a limit."""

    name: str
    style: str
    axis: Literal["x", "y"]
    value: float


@dataclass(frozen=True)
class Figure:
    """A picture in two axes. id: of letters, digits and dashes. alt: what one sees in it, in words."""

    id: str
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: a line a trial over all axes; None where a trial lacks a value."""

    id: str
    title: str
    alt: str
    axes: tuple[Axis, ...]
    rows: tuple[tuple[Cell, ...], ...]
    front: tuple[bool, ...]
    trials: tuple[int, ...]
    study: int = 0
    caption: str = ""
    wide: bool = True


AnyFigure = Figure | Parallel


@dataclass(frozen=True)
class Style:
    """color: a key of COLORS. symbol: circle, triangle, rect, diamond or cross. opacity, size (pixels), dash, width."""

    color: str
    symbol: str = "circle"
    opacity: float = 1.0
    size: float = 9
    dash: Literal["solid", "dashed", "dotted"] = "solid"
    width: float = 2


COLORS: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "grey": ("#6b7280", "#9aa1ab"),
    "blue": ("#0072b2", "#56b4e9"),
    "sky": ("#3a9bd1", "#8fd0f5"),
    "orange": ("#c77c00", "#f0b040"),
    "green": ("#00805e", "#33c79a"),
    "vermillion": ("#d55e00", "#ff8a3d"),
    "purple": ("#a8508a", "#e0a0c4"),
    "yellow": ("#8a7f00", "#f0e442"),
}
"""On light and on dark ground: Okabe and Ito's palette (2008), told apart by the colour-blind, with the pale ones
darkened where they stand on white."""

STYLES: dict[str, Style] = {
    "trial": Style("grey", opacity=0.55, size=6, width=1),
    "infeasible": Style("grey", "cross", opacity=0.45, size=7),
    "front": Style("blue", size=10),
    "final": Style("green", "diamond", size=13),
    "direct": Style("orange", "triangle", size=12),
    "alone": Style("vermillion", "rect", size=10),
    "teacher": Style("purple", "diamond", size=14, dash="dashed"),
    "limit": Style("ink", dash="dotted"),
    "faint": Style("grey", opacity=0.4, width=1),
    "pruned": Style("yellow", "triangle", opacity=0.85),
    "failed": Style("vermillion", "cross", opacity=0.9),
    "cells": Style("blue"),
    "one": Style("blue"),
    "two": Style("vermillion", "triangle", dash="dashed"),
    "three": Style("green", "rect", dash="dotted"),
    "four": Style("purple", "diamond"),
    "five": Style("orange", "triangle", dash="dashed"),
    "six": Style("yellow", "rect", dash="dotted"),
}
IN_TURN = ("one", "two", "three", "four", "five", "six")
"""The styles of several studies, objectives or stages side by side; each also has a symbol or dash of its own."""

UNITS: dict[str, Unit] = {
    "parameters": "count",
    "macs": "count",
    "model_bytes": "bytes",
    "latency_ms": "ms",
    MEASURED_MS: "ms",
    "train_seconds": "seconds",
}
"""Of the metrics that are no shares."""

WORDS = {
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_ece": "validation calibration error",
    "test_accuracy": "test accuracy",
    "teacher_agreement": "agreement with the teacher",
    "parameters": "parameters",
    "macs": "MACs",
    "model_bytes": "stored bytes",
    "latency_ms": "latency, one image",
    MEASURED_MS: "latency, measured here",
    "train_seconds": "training seconds",
}


def words(name: str) -> str:
    """Return a metric's name as a sentence has it; another name stays as it is."""
    return WORDS.get(name, name)


def metric_axis(name: str, values: Iterable[Any]) -> Axis:
    """Return the axis of a metric; sizes and times that span a factor of 3 by their logarithm."""
    if name not in WORDS:
        return number_axis(name, values)
    known = [value for value in values if value is not None and math.isfinite(value)]
    spans = bool(known) and min(known) > 0 and max(known) >= 3 * min(known)
    return Axis(words(name), "log" if spans and name in UNITS else "linear", UNITS.get(name, "share"))


def number_axis(label: str, values: Iterable[Any]) -> Axis:
    """Return the axis of any numbers, by their logarithm where they are positive and span a factor of 30."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    spans = bool(known) and min(known) > 0 and max(known) >= 30 * min(known)
    return Axis(label, "log" if spans else "linear")


def short(value: Any) -> Any:
    """Return a value as the page holds it: floats with DIGITS significant digits, what JSON has no word for as None."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def figure_record(figure: AnyFigure) -> dict[str, Any]:
    """Return a figure as JSON has it, without what is empty."""
    record = {"kind": "parallel" if isinstance(figure, Parallel) else "figure"} | asdict(figure)
    found: dict[str, Any] = _shortened(record)
    return found


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shortened(cell) for key, cell in value.items() if key in "xy" or cell not in ((), "", None)}
    if isinstance(value, (list, tuple)):
        return [_shortened(cell) for cell in value]
    return short(value)


@dataclass(frozen=True)
class TextTable:
    """A table of texts beside the figures. numeric: the columns that stand to the right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    numeric: frozenset[int] = field(default_factory=frozenset)
