"""The page's figures as PNG and SVG files for papers, drawn by matplotlib, which needs neither browser nor network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.errors import InputError
from metasearch.report.page.figure import COLORS, STYLES, AnyFigure, Axis, Figure, Parallel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

SYMBOLS = {"circle": "o", "triangle": "^", "rect": "s", "diamond": "D", "cross": "x"}
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}
DPI = 300
NARROW, WIDE = (3.5, 2.6), (7.0, 3.4)
"""Inches: one column and two columns of a paper."""
SUFFIXES = (".png", ".svg")


def write_figures(figures: Iterable[AnyFigure], folder: Path) -> list[Path]:
    """Write every figure as ID.png and ID.svg and return the paths. Raises InputError where they cannot be written."""
    import matplotlib

    written = []
    # text stays text in an SVG; a dollar sign in a name is no formula
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9, "text.parse_math": False}):
        for figure in figures:
            picture = draw(figure)
            for suffix in SUFFIXES:
                path = folder / f"{figure.id}{suffix}"
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    picture.savefig(path, dpi=DPI)
                except OSError as error:
                    rule = f"must be a folder that can be written ({error.strerror})"
                    raise InputError("--figures", rule, str(folder)) from error
                written.append(path)
    return written


def draw(figure: AnyFigure) -> Picture:
    """Return a figure drawn, on white ground."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=WIDE if figure.wide else NARROW, layout="constrained")
    axes = picture.add_subplot()
    axes.set_title(figure.title, loc="left")
    if isinstance(figure, Parallel):
        _draw_parallel(axes, figure)
    else:
        _draw_figure(axes, figure)
    return picture


def _draw_figure(axes: Axes, figure: Figure) -> None:
    for place, series in enumerate(figure.series):
        _draw_series(axes, figure, series, place)
    for level in figure.levels:
        style = STYLES[level.style]
        line = axes.axvline if level.axis == "x" else axes.axhline
        line(level.value, color=COLORS[style.color][0], linestyle=DASHES[style.dash], linewidth=1, label=level.name)
    for side, axis in (("x", figure.x), ("y", figure.y)):
        _set_axis(axes, side, axis)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(handles) > 1:
        axes.legend(handles.values(), handles.keys(), fontsize=6, frameon=False)


def _set_axis(axes: Axes, side: str, axis: Axis) -> None:
    getattr(axes, f"set_{side}label")(axis.label + (" (ms)" if axis.unit == "ms" else ""))
    if axis.scale == "log":
        _set_log_ticks(axes, side, axis)
    if axis.scale == "category":
        rotation = 60 if side == "x" and len(axis.categories) > 4 else 0
        getattr(axes, f"set_{side}ticks")(range(len(axis.categories)), axis.categories, rotation=rotation)
        if side == "y":
            axes.set_ylim(len(axis.categories) - 0.5, -0.5)
        else:
            axes.set_xlim(-0.5, len(axis.categories) - 0.5)


def _set_log_ticks(axes: Axes, side: str, axis: Axis) -> None:
    """Write the ticks as numbers; matplotlib's own powers are formulas, which are off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{side}scale")("log")
    ticked = axes.xaxis if side == "x" else axes.yaxis
    low, high = ticked.get_view_interval()
    ticked.set_major_locator(LogLocator(subs=(1.0,) if high > 150 * low else (1.0, 2.0, 5.0)))
    write = bytes_text if axis.unit == "bytes" else count_text
    ticked.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    ticked.set_minor_formatter(NullFormatter())


def count_text(value: float) -> str:
    """Return a number as an axis has it: 1500 as 1.5 k, 0.02 as it is."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:g}"


def bytes_text(value: float) -> str:
    """Return a number of bytes as an axis has it: 1500 as 1.5 kB."""
    text = count_text(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def _draw_series(axes: Axes, figure: Figure, series: Series, place: int) -> None:
    style = STYLES[series.style]
    color = COLORS[style.color][0]
    x, y = _places(series.x, figure.x), _places(series.y, figure.y)
    if series.mark == "points":
        size = (style.size / 2) ** 2
        axes.scatter(
            x,
            y,
            s=size,
            marker=SYMBOLS[style.symbol],
            color=color,
            alpha=style.opacity,
            linewidths=0.6,
            label=series.name,
        )
        if series.low:
            spread = [
                [a - low for a, low in zip(x, series.low, strict=True)],
                [high - a for a, high in zip(x, series.high, strict=True)],
            ]
            axes.errorbar(x, y, xerr=spread, fmt="none", ecolor=color, elinewidth=0.8)
    elif series.mark in ("line", "steps"):
        step = "steps-post" if series.mark == "steps" else "default"
        axes.plot(
            x,
            y,
            color=color,
            linestyle=DASHES[style.dash],
            linewidth=style.width / 2,
            alpha=style.opacity,
            drawstyle=step,
            label=series.name,
        )
    elif series.mark == "bars":
        count = len(figure.series)
        height = 0.8 / count
        axes.barh(
            [at + (place - (count - 1) / 2) * height for at in y], x, height=height, color=color, label=series.name
        )
    elif series.mark == "spans":
        widths = [end - start for start, end in zip(x, series.end, strict=True)]
        axes.barh(y, widths, left=x, height=0.7, color=color, edgecolor="white", linewidth=0.2, label=series.name)
    else:
        _draw_cells(axes, figure, series, x, y)


def _draw_cells(axes: Axes, figure: Figure, series: Series, x: list[Any], y: list[Any]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    shares = np.zeros((len(figure.y.categories), len(figure.x.categories)))
    for across, down, share in zip(x, y, series.value, strict=True):
        shares[down, across] = share
    colors = LinearSegmentedColormap.from_list("cells", ["white", COLORS["blue"][0]])
    axes.imshow(shares, cmap=colors, vmin=0, vmax=1, aspect="auto")
    if len(figure.x.categories) <= 20:
        for across, down, share, text in zip(x, y, series.value, series.text, strict=True):
            axes.text(
                across, down, text, ha="center", va="center", fontsize=6, color="white" if share > 0.5 else "black"
            )


def _draw_parallel(axes: Axes, figure: Parallel) -> None:
    """Draw each row over axes of unit height, which say their ends."""
    import math

    columns = list(zip(*figure.rows, strict=True))
    scaled = []
    for place, (axis, cells) in enumerate(zip(figure.axes, columns, strict=True)):
        values = [
            None if cell is None else float(cell) if axis.scale != "category" else axis.categories.index(str(cell))
            for cell in cells
        ]
        known = [value for value in values if value is not None]
        low, high = min(known), max(known)
        log = axis.scale == "log" and low > 0
        a, b = (math.log(low), math.log(high)) if log else (low, high)
        scaled.append([math.nan if v is None else ((math.log(v) if log else v) - a) / ((b - a) or 1) for v in values])
        ends = (axis.categories[0], axis.categories[-1]) if axis.scale == "category" else (f"{low:.3g}", f"{high:.3g}")
        axes.axvline(place, color="black", linewidth=0.6)
        axes.text(place, -0.03, ends[0], ha="center", va="top", fontsize=6)
        axes.text(place, 1.03, ends[1], ha="center", va="bottom", fontsize=6)
    for front, style in ((False, STYLES["faint"]), (True, STYLES["front"])):
        for index, row in enumerate(zip(*scaled, strict=True)):
            if figure.front[index] == front:
                alpha = 0.8 if front else style.opacity
                axes.plot(
                    range(len(row)), row, color=COLORS[style.color][0], alpha=alpha, linewidth=1 if front else 0.5
                )
    axes.set_xticks(range(len(figure.axes)), [axis.label for axis in figure.axes], rotation=30, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    axes.set_frame_on(False)


def _places(values: tuple[Any, ...], axis: Axis) -> list[Any]:
    """Return where values lie: numbers as they are, categories by their order."""
    if axis.scale != "category":
        return list(values)
    place = {name: index for index, name in enumerate(axis.categories)}
    return [place[str(value)] for value in values]
