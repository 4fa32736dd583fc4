"""The front as figures: every trial, the front, the controls, the teacher and the limits. M objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import Axis, Figure, Level, Series, metric_axis, words
from metasearch.search.objectives import Constraint

ROLES = {
    "final": "front, run again with fresh seeds",
    "direct": "control: distilled directly at the same MACs",
    "alone": "control: trained without the teacher",
}


def front_figures(facts: Facts) -> list[Figure]:
    """Return a figure for each objective after the first, across from the first; of one objective, its history."""
    first, *others = facts.objectives
    if not others:
        return [history_figure(facts)]
    figures = [front_figure(facts, x=other, y=first) for other in others]
    measured = any(number in facts.latencies for number in facts.numbers(facts.front))
    return [*figures, *([latency_figure(facts)] if measured else [])]


def front_figure(facts: Facts, *, x: str, y: str) -> Figure:
    """Return the trials in two objectives. With more than two, a trial of the front may look dominated in these."""
    front = set(facts.front)
    feasible = set(facts.feasible(facts.drawn))
    rest = [row for row in facts.drawn if row in feasible and row not in front]
    broken = [row for row in facts.complete(facts.drawn) if row not in feasible]
    along = sorted(facts.front, key=lambda row: facts.table.cells[x][row])
    series = [
        _trials(facts, "trials", "trial", rest, x, y),
        _trials(facts, "trials that break a constraint", "infeasible", broken, x, y),
        *[_controls(facts, role, x, y) for role in ROLES],
        _trials(facts, "front", "front", along, x, y),
    ]
    teacher = facts.teacher["metrics"] if facts.teacher else {}
    levels = _limits(facts, x, y)
    if x in teacher and y in teacher:
        series.append(Series("teacher", "points", "teacher", (teacher[x],), (teacher[y],)))
    elif y in teacher:
        levels.append(Level("teacher", "teacher", "y", teacher[y]))
    shown = tuple(one for one in series if one.x)
    caption = _caption(facts)
    return Figure(
        id=f"front-{facts.index}-{facts.objectives.index(x)}",
        title=f"{words(y).capitalize()} against {words(x)}",
        alt=_alt(facts, x, y),
        x=metric_axis(x, [value for one in shown for value in one.x]),
        y=metric_axis(y, [value for one in shown for value in one.y]),
        series=shown,
        levels=tuple(levels),
        caption=caption,
        wide=True,
    )


def history_figure(facts: Facts) -> Figure:
    """Return a single objective over the trials, with the best value so far."""
    (name,) = facts.objectives
    maximize = facts.head.directions[name] == "maximize"
    feasible = facts.feasible()
    best: list[float] = []
    steps: list[int] = []
    for row in feasible:
        value = facts.table.cells[name][row]
        if not best or (value > best[-1] if maximize else value < best[-1]):
            best.append(value)
            steps.append(row)
    ends = [*facts.numbers(steps), *facts.numbers(feasible[-1:])]
    drawn = facts.feasible(facts.drawn)
    series = (
        _trials(facts, "trials", "trial", drawn, "number", name),
        Series("best so far", "steps", "front", tuple(ends), (*best, *best[-1:])),
    )
    values = [value for one in series for value in one.y]
    return Figure(
        id=f"front-{facts.index}-0",
        title=f"{words(name).capitalize()} over the search",
        alt=f"{words(name)} of {len(drawn)} trials over their numbers; the best is {best[-1]:.4g}"
        if best
        else "no trial yet",
        x=Axis("trial"),
        y=metric_axis(name, values),
        series=tuple(one for one in series if one.x),
        levels=tuple(_limits(facts, "number", name)),
        caption=_caption(facts),
        wide=True,
    )


def latency_figure(facts: Facts) -> Figure:
    """Return the front's students by their latency, measured one after the other, with its spread."""
    first = facts.objectives[0]
    rows = [row for row in facts.front if facts.table.cells["number"][row] in facts.latencies]
    rows.sort(key=lambda row: facts.latencies[facts.table.cells["number"][row]][0])
    measured = [facts.latencies[number] for number in facts.numbers(rows)]
    x = tuple(median for median, _ in measured)
    series = Series(
        "front",
        "points",
        "front",
        x,
        facts.column(first, rows),
        facts.numbers(rows),
        facts.index,
        low=tuple(median - spread / 2 for median, spread in measured),
        high=tuple(median + spread / 2 for median, spread in measured),
    )
    return Figure(
        id=f"latency-{facts.index}",
        title=f"{words(first).capitalize()} against latency",
        alt=f"{words(first)} of {len(rows)} students of the front against their median latency, with its spread",
        x=metric_axis("latency_ms", x),
        y=metric_axis(first, series.y),
        series=(series,),
        levels=() if facts.head.description.get("latency") else tuple(_limits(facts, "latency_ms", first)),
        caption="Measured serially after the search, one student after the other, on one thread of onnxruntime: the "
        "median of repeats in thread CPU time; bars are as long as the interquartile range.",
    )


def _trials(facts: Facts, name: str, style: str, rows: Sequence[int], x: str, y: str) -> Series:
    return Series(name, "points", style, facts.column(x, rows), facts.column(y, rows), facts.numbers(rows), facts.index)


def _controls(facts: Facts, role: str, x: str, y: str) -> Series:
    runs = [run for run in facts.controls if run["role"] == role and _known(run.get(x)) and _known(run.get(y))]
    text = tuple(f"for trial {run['of']}, seed {run['seed']}" for run in runs)
    return Series(ROLES[role], "points", role, tuple(r[x] for r in runs), tuple(r[y] for r in runs), text=text)


def _known(value: Any) -> bool:
    return value is not None and value == value


def _limits(facts: Facts, x: str, y: str) -> list[Level]:
    """Return a level for each constraint on a metric of the figure."""
    found = []
    for text in facts.head.constraints:
        constraint = Constraint.parse(text)
        if constraint.metric in (x, y):
            found.append(Level(text, "limit", "x" if constraint.metric == x else "y", constraint.bound))
    return found


def _caption(facts: Facts) -> str:
    count, drawn = len(facts.complete()), len(facts.complete(facts.drawn))
    parts = [f"{drawn:,} of {count:,} complete trials are drawn, all of the front among them."] if drawn < count else []
    if len(facts.objectives) > 2:
        parts.append(f"The front is that of all {len(facts.objectives)} objectives.")
    predicted = facts.head.description.get("latency")
    if predicted and "latency_ms" in facts.objectives:
        parts.append(f"Latencies are predicted for {predicted['device']}.")
    return " ".join(parts)


def _alt(facts: Facts, x: str, y: str) -> str:
    front = [(facts.table.cells[x][row], facts.table.cells[y][row]) for row in facts.front]
    text = f"Scatter of {words(y)} against {words(x)}: {len(facts.complete())} trials, {len(front)} on the front"
    if front:
        smallest, largest = min(front), max(front)
        text += f", from {smallest[1]:.4g} at {smallest[0]:.4g} to {largest[1]:.4g} at {largest[0]:.4g}"
    return text
