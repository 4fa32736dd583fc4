"""What mattered: importance of the parameters, and all of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import IN_TURN, Axis, Cell, Figure, Parallel, Series, metric_axis, number_axis, words

MOST_LINES = 400
"""Lines of parallel coordinates that an eye can follow beside those of the front."""
MOST_AXES = 14
MOST_BARS = 20
MOST_FOR_IMPORTANCE = 2000
"""Complete trials that importance is computed from: a sample takes a fifth of the time of 20,000, and says alike."""


def searched_parameters(facts: Facts) -> list[str]:
    """Return the parameters that differ between complete trials, in the table's order."""
    rows = facts.complete()
    found = []
    for name in facts.table.parameters:
        values = {repr(value) for value in facts.column(name, rows) if value is not None}
        if len(values) > 1:
            found.append(name)
    return found


def importance_figure(facts: Facts, importances: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Return the parameters' shares of the importance; None without any.

    importances: by objective, then by parameter.
    """
    if not importances:
        return None
    mean = {
        name: sum(shares.get(name, 0.0) for shares in importances.values()) for name in next(iter(importances.values()))
    }
    names = sorted(mean, key=lambda name: -mean[name])[:MOST_BARS]
    series = tuple(
        Series(
            words(objective),
            "bars",
            IN_TURN[place % len(IN_TURN)],
            tuple(shares.get(name, 0.0) for name in names),
            tuple(names),
        )
        for place, (objective, shares) in enumerate(importances.items())
    )
    first = ", ".join(f"{name} {next(iter(importances.values())).get(name, 0.0):.0%}" for name in names[:3])
    return Figure(
        id=f"importance-{facts.index}",
        title="What mattered",
        alt=f"Shares of the importance by parameter for {', '.join(words(o) for o in importances)}: {first}",
        x=Axis("share of the importance", unit="share"),
        y=Axis("", "category", categories=tuple(names)),
        series=series,
        caption="PED-ANOVA (Watanabe et al., 2023): what the best tenth of the trials has in common."
        + (f" From a sample of {MOST_FOR_IMPORTANCE:,}." if len(facts.complete()) > MOST_FOR_IMPORTANCE else ""),
    )


def parallel_figure(facts: Facts, searched: list[str]) -> Parallel | None:
    """Return parallel coordinates of the searched parameters and the objectives; None without two axes."""
    front = set(facts.front)
    others = [row for row in facts.feasible(facts.drawn) if row not in front]
    step = max(1, -(-len(others) // MOST_LINES))
    kept = sorted([*others[::step], *facts.front])
    names = [*searched[: MOST_AXES - len(facts.objectives)], *facts.objectives]
    if not kept or len(names) < 2:
        return None
    axes = []
    columns: list[tuple[Cell, ...]] = []
    for name in names:
        values = facts.column(name, kept)
        known = [value for value in values if value is not None]
        if name in facts.objectives:
            axes.append(metric_axis(name, known))
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
            axes.append(number_axis(name, known))
        else:
            texts = tuple(None if value is None else str(value) for value in values)
            axes.append(Axis(name, "category", categories=tuple(sorted({text for text in texts if text is not None}))))
            values = texts
        columns.append(values)
    drawn = f"{len(kept):,} of {len(facts.feasible()):,} feasible trials, all of the front among them. "
    return Parallel(
        id=f"parallel-{facts.index}",
        title="All parameters side by side",
        alt=f"A line a trial over {len(names)} axes: {', '.join(names)}",
        axes=tuple(axes),
        rows=tuple(zip(*columns, strict=True)),
        front=tuple(row in front for row in kept),
        trials=facts.numbers(kept),
        study=facts.index,
        caption=f"{drawn}Drag along an axis to pick trials; the front is drawn in blue.",
    )


def configuration_table(facts: Facts) -> dict[str, Any]:
    """Return what hovering over a drawn trial shows: columns by name, in the order of `numbers`.

    Parameters that all trials share are left out; they stand with the winner.
    """
    searched = searched_parameters(facts)
    names = [*facts.objectives, *[name for name in facts.table.metrics if name not in facts.objectives], *searched]
    columns = {name: facts.column(name, facts.drawn) for name in names}
    known = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    return {
        "study": facts.name,
        "numbers": facts.numbers(facts.drawn),
        "names": [words(name) for name in known],
        "columns": list(known.values()),
        "states": facts.column("state", facts.drawn),
    }
