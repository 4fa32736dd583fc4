"""Panels of lines as an SVG file, for benchmarks: no plotting library is needed to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN, LEGEND = 420, 260, 46, 24
COLOURS = ("#555555", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a0a000")

Lines = Mapping[str, Sequence[float]]


def write_panels(path: Path, panels: Mapping[str, Lines], *, ticks: Sequence[object], x: str, columns: int = 2) -> None:
    """Write one panel a title, a line of percentages a name, over evenly spaced ticks. Values are in [0, 1]."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colour = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    rows = -(-len(panels) // columns)
    parts = []
    for index, name in enumerate(names):
        parts.append(_text(MARGIN + 125 * index, 16, name, colour[name]))
    for index, (title, lines) in enumerate(panels.items()):
        left, top = (index % columns) * WIDTH, LEGEND + (index // columns) * HEIGHT
        parts += _panel(left, top, title, lines, colour, list(map(str, ticks)), x)
    size = f'width="{max(columns * WIDTH, MARGIN + 125 * len(names))}" height="{LEGEND + rows * HEIGHT}"'
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def _panel(
    left: int, top: int, title: str, lines: Lines, colour: Mapping[str, str], ticks: Sequence[str], x: str
) -> list[str]:
    width, height = WIDTH - MARGIN - 12, HEIGHT - 2 * MARGIN + 12
    left, top = left + MARGIN, top + 26
    parts = [_text(left, top - 8, title, "#000000")]
    for percent in range(0, 101, 25):
        y = top + height * (1 - percent / 100)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(left - 34, y + 4, f"{percent} %", "#000000"))
    places = [left + width * index / (len(ticks) - 1) for index in range(len(ticks))]
    parts += [_text(place - 6, top + height + 14, tick, "#000000") for place, tick in zip(places, ticks, strict=True)]
    parts.append(_text(left + width / 2 - 30, top + height + 30, x, "#000000"))
    for name, values in lines.items():
        points = " ".join(
            f"{place:.1f},{top + height * (1 - value):.1f}" for place, value in zip(places, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour[name]}" stroke-width="2"/>')
    return parts


def _text(x: float, y: float, text: str, fill: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}">{escape(text)}</text>'
