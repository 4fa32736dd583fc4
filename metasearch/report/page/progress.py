"""How far a search has come: the hypervolume of its front, over trials and over time. N trials, M objectives."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metasearch.report.fronts import costs_of
from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import IN_TURN, UNITS, Axis, Figure, Series

Floats = NDArray[np.float64]
RAYS = 4096
"""Directions of the estimate with three objectives or more; its error is below a hundredth of the box."""
MOST_STEPS = 400
TIMES = {"hours": 1, "minutes": 60, "seconds": 3600}
"""Units of wall time, and how many of each an hour has."""


@dataclass(frozen=True)
class Progress:
    """The hypervolume at the end of some trials, as a share of the box. finished: how many trials had ended by then.

    hours: since the first trial began, NaN where no times are known. volume: never falls.
    """

    finished: tuple[int, ...]
    hours: tuple[float, ...]
    volume: tuple[float, ...]


def box(studies: Sequence[Facts]) -> tuple[Floats, Floats]:
    """Return the best and the worst cost (M,) of the feasible trials of studies with the same objectives.

    Costs are smaller where better; those of sizes and times are logarithms, as the front is drawn.
    """
    costs = np.concatenate([scaled_costs(facts, facts.feasible()) for facts in studies])
    if not len(costs):
        return np.zeros(len(studies[0].objectives)), np.ones(len(studies[0].objectives))
    return np.asarray(costs.min(axis=0)), np.asarray(costs.max(axis=0))


def scaled_costs(facts: Facts, rows: Sequence[int]) -> Floats:
    """Return the costs (n, M) of rows, those of sizes and times as logarithms."""
    costs = costs_of(facts.table.columns, facts.head.directions)[np.asarray(rows, int)]
    for m, name in enumerate(facts.objectives):
        if name in UNITS:
            costs[:, m] = np.log(np.maximum(costs[:, m], 1e-12))
    return np.asarray(costs, np.float64)


def progress(facts: Facts, best: Floats, worst: Floats) -> Progress:
    """Return how the hypervolume grew, trial by trial in the order in which they ended.

    The volume lies below `worst` and is a share of the box from `best` to it. Exact for one and two objectives.
    """
    states, ended = facts.table.cells["state"], facts.table.cells["completed"]
    finished = [row for row in range(len(facts.table)) if states[row] in ("COMPLETE", "PRUNED", "FAIL")]
    finished.sort(key=lambda row: (ended[row] is None, ended[row] or 0, row))
    feasible = set(facts.feasible())
    counts = [count for count, row in enumerate(finished, start=1) if row in feasible]
    rows = [finished[count - 1] for count in counts]
    if not rows:
        return Progress((), (), ())
    size = np.where(worst > best, worst - best, 1.0)
    volumes = cumulative_volumes((scaled_costs(facts, rows) - best) / size)
    starts = [moment for moment in facts.table.cells["started"] if moment is not None]
    origin = min(starts, default=None)
    hours = [(ended[row] - origin).total_seconds() / 3600 if origin and ended[row] else float("nan") for row in rows]
    kept = _steps(volumes)
    shown = [*kept, len(rows) - 1] if kept[-1] != len(rows) - 1 else kept
    # the last point is the end of the search, improved or not
    last = (len(finished), max((hour for hour in hours if hour == hour), default=float("nan")))
    return Progress(
        (*(counts[i] for i in shown), last[0]),
        (*(hours[i] for i in shown), last[1]),
        (*(float(volumes[i]) for i in shown), float(volumes[-1])),
    )


def cumulative_volumes(costs: Floats) -> Floats:
    """Return (N,): the share of the unit cube that the first n of costs (N, M) dominate, for every n.

    For M > 2 the mean over RAYS directions of Zhang and Golovin (2020), lemma 5: an estimate.
    """
    count, objectives = costs.shape
    if objectives == 1:
        return np.asarray(np.maximum(0, 1 - np.minimum.accumulate(costs[:, 0])), np.float64)
    if objectives == 2:
        return _staircase(costs)
    from metasearch.transfer.hypervolume import Hypervolume  # brings scipy.stats, a second of a page's time

    measure = Hypervolume.of(np.ones(objectives), np.ones(objectives), count=RAYS)
    best, volumes = np.zeros(RAYS), np.zeros(count)
    for n in range(count):
        np.maximum(best, measure.lengths(costs[n]), out=best)
        volumes[n] = measure.constant * best.mean()
    return volumes


def _staircase(costs: Floats) -> Floats:
    """Return the exact area step by step. The front so far is kept by its first cost, so that its second falls."""
    volumes, volume = np.zeros(len(costs)), 0.0
    first: list[float] = []
    second: list[float] = []
    for n, (a, b) in enumerate(costs.tolist()):
        place = bisect_right(first, a)
        if place == 0 or second[place - 1] > b:
            start = bisect_left(first, a)
            end = start
            while end < len(first) and second[end] >= b:
                end += 1
            first[start:end], second[start:end] = [a], [b]
            ends = [*first[1:], 1.0]
            volume = sum(max(0.0, x - left) * max(0.0, 1.0 - y) for left, x, y in zip(first, ends, second, strict=True))
        volumes[n] = volume
    return volumes


def _steps(volumes: Floats) -> list[int]:
    """Return where the volume grows, at most about MOST_STEPS of these places."""
    grown = np.flatnonzero(np.diff(volumes, prepend=-1.0) > 0)
    chosen = np.unique(np.linspace(0, len(grown) - 1, min(len(grown), MOST_STEPS)).round().astype(int))
    found: list[int] = grown[chosen].tolist()
    return found


def progress_figures(studies: Sequence[Facts], labels: Sequence[str]) -> list[Figure]:
    """Return the hypervolume over trials and over time, of studies with the same objectives. labels: one a study."""
    best, worst = box(studies)
    lines = [progress(facts, best, worst) for facts in studies]
    index = studies[0].index
    estimate = " An estimate, with more than two objectives." if len(studies[0].objectives) > 2 else ""
    caption = (
        "Share of the box between the best and the worst feasible value of each objective"
        f"{' over these studies' if len(studies) > 1 else ''}, sizes by their logarithm; infeasible trials add nothing."
        f"{estimate}"
    )
    last = max((line.hours[-1] for line in lines if line.hours and line.hours[-1] == line.hours[-1]), default=0.0)
    unit, times = next(((unit, times) for unit, times in TIMES.items() if last * times >= 3), ("seconds", 3600))
    figures = []
    for over, title, label, factor in (
        ("finished", "Hypervolume over trials", "finished trials", 1),
        ("hours", "Hypervolume against wall time", f"{unit} since the first trial began", times),
    ):
        series = []
        for place, (line, name, facts) in enumerate(zip(lines, labels, studies, strict=True)):
            x = tuple(factor * value for value in getattr(line, over))
            if x and all(value == value for value in x):
                style = IN_TURN[place % len(IN_TURN)]
                series.append(Series(name, "steps", style, x, line.volume, study=facts.index))
        if series:
            ends = ", ".join(f"{one.name} ends at {one.y[-1]:.3f}" for one in series)
            figures.append(
                Figure(
                    id=f"hypervolume-{over}-{index}",
                    title=title,
                    alt=f"{title}: {ends}",
                    x=Axis(label),
                    y=Axis("share of the box"),
                    series=tuple(series),
                    caption=caption,
                )
            )
    return figures
