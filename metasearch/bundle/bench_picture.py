"""The picture of a bench as SVG: accuracy against CPU time on one thread, the area of each mark by its bytes.

Names stand in a column of their own, each at the end of a line from its mark: however near marks are, no name lies on
another. Light and dark follow the reader's own setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from metasearch.bundle.bench import Report
from metasearch.bundle.bench_table import shown_split
from metasearch.errors import InputError
from metasearch.report.page.figure import COLORS, words
from metasearch.report.page.paper import count_text
from metasearch.report.tables import metric_text

WIDTH, LEFT, RIGHT, TOP, BOTTOM, LINE = 800, 56, 470, 52, 60, 36
"""Pixels: the picture's width; the box of the axes from the left, the left, the top and the bottom; a name's height."""
LARGEST, SMALLEST = 28.0, 2.5
"""Radius of a mark."""
MOST_CHARACTERS = 38
COLOR_OF = {"bundle": "blue", "teacher": "purple", "student": "orange", "float": "green"}
"""By a network's role; any other is grey."""
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class _Scale:
    """Values, from low to high, as pixels, from first to last."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def around(cls, values: Sequence[float], *, span: float, first: float, last: float) -> _Scale:
        """Return the scale of all values, and of a span at least, with room for a mark at each end."""
        middle, half = (max(values) + min(values)) / 2, max(max(values) - min(values), span) * 0.65
        return cls(middle - half, middle + half, first, last)

    def at(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def bench_picture(report: Report) -> str:
    """Return the SVG of a report. Raises InputError where no network has an accuracy and a time on one thread."""
    split = shown_split(report["networks"])
    drawn = [
        (network["accuracy"][split], network["threads"]["1"]["cpu_ms"], network)
        for network in report["networks"]
        if network["accuracy"][split] is not None and network["threads"].get("1", {}).get("cpu_ms")
    ]
    if not drawn:
        raise InputError("--svg", "needs a network whose accuracy is known, and its CPU time on one thread")
    drawn.sort(key=lambda each: -each[0])
    bottom = max(TOP + 310, TOP + LINE * len(drawn))
    across = _Scale.around([math.log10(ms) for _, ms, _ in drawn], span=0.6, first=LEFT, last=RIGHT)
    up = _Scale.around([accuracy for accuracy, _, _ in drawn], span=0.004, first=bottom, last=TOP)
    parts = [_text(LEFT, 22, report["device"]["name"], "title"), _text(LEFT, TOP - 10, words(f"{split}_accuracy"))]
    for value in _shares(up):
        y = up.at(value)
        parts += [_line(LEFT, y, RIGHT, y, "grid"), _text(LEFT - 6, y + 4, f"{100 * value:g}%", "end")]
    for ms in _powers(across):
        x = across.at(math.log10(ms))
        parts += [_line(x, TOP, x, bottom, "grid"), _text(x, bottom + 18, count_text(ms), "middle")]
    parts.append(_text(LEFT, bottom + 42, "CPU ms of one image on one thread; area of a mark: stored bytes"))
    largest = max(_bytes(network) for _, _, network in drawn)
    slots = _spread([up.at(accuracy) for accuracy, _, _ in drawn], apart=LINE, first=TOP + 12, last=bottom - 12)
    for (accuracy, ms, network), slot in zip(drawn, slots, strict=True):
        x, y, size = across.at(math.log10(ms)), up.at(accuracy), _bytes(network)
        radius = max(SMALLEST, LARGEST * math.sqrt(size / largest)) if largest else SMALLEST
        about = f"{accuracy:.2%}, {ms:.3g} ms, {metric_text('model_bytes', size)}"
        parts += [
            _line(x, y, RIGHT + 14, slot - 4, "lead"),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{COLOR_OF.get(network["role"], "grey")}"/>',
            _text(RIGHT + 18, slot, _end(network["name"]), "name"),
            _text(RIGHT + 18, slot + 15, about),
        ]
    size_text = f'width="{WIDTH}" height="{bottom + BOTTOM}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + BOTTOM}" {size_text}>\n'
        f"<style>{_css(dark=False)} @media (prefers-color-scheme: dark) {{ {_css(dark=True)} }}</style>\n"
        f'<rect {size_text} class="ground"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _shares(scale: _Scale) -> list[float]:
    """Return the round shares of a scale, about six."""
    step = next(step for step in STEPS if scale.high - scale.low <= 7 * step)
    first, last = math.ceil(scale.low / step), math.floor(min(scale.high, 1.0) / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _powers(scale: _Scale) -> list[float]:
    """Return the round numbers whose logarithms are on a scale."""
    factors = (1, 2, 5) if scale.high - scale.low < 3 else (1,)
    powers = range(math.floor(scale.low), math.ceil(scale.high))
    numbers = [factor * 10.0**power for power in powers for factor in factors]
    return [number for number in numbers if scale.low <= math.log10(number) <= scale.high]


def _spread(wanted: Sequence[float], *, apart: float, first: float, last: float) -> list[float]:
    """Return places from first to last, so far apart, in the order of those that are wanted and near to them."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + apart if places else first))
    for index in reversed(range(len(places))):
        places[index] = min(places[index], last - apart * (len(places) - 1 - index))
    return places


def _bytes(network: dict[str, Any]) -> int:
    """Return the bytes that a network stores; of a file whose bundle does not say so, its own."""
    size: int = network["file_bytes"] if network["model_bytes"] is None else network["model_bytes"]
    return size


def _end(name: str) -> str:
    """Return a name, or the end of a long one: there it says which trial of a study it is, and which reference."""
    return name if len(name) <= MOST_CHARACTERS else f"…{name[1 - MOST_CHARACTERS :]}"


def _text(x: float, y: float, text: str, kind: str = "soft") -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text)  # XML has not all others
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(printable)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _css(*, dark: bool) -> str:
    color = {name: pair[dark] for name, pair in COLORS.items()}
    fills = [f"circle.{name} {{ fill: {color[name]}; }}" for name in (*COLOR_OF.values(), "grey")]
    return (
        f".ground {{ fill: {'#14171b' if dark else '#ffffff'}; }} {' '.join(fills)} circle {{ fill-opacity: 0.75; }} "
        f"text {{ font: 12px system-ui, sans-serif; fill: {color['grey']}; }} .end {{ text-anchor: end; }} "
        f".title, .name {{ font-weight: 600; fill: {color['ink']}; }} .middle {{ text-anchor: middle; }} "
        f"line {{ stroke: {color['grey']}; }} .grid {{ stroke-opacity: 0.3; }} .lead {{ stroke-opacity: 0.7; }}"
    )
