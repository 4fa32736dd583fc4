"""Each policy as what it does over training, and each of its parameters against the first objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metasearch.errors import InputError
from metasearch.parameters import POLICIES, POLICY_DEFAULTS
from metasearch.policies import Policy
from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import Axis, Figure, Series, metric_axis, number_axis, words

MOST_CURVES = 30
"""Policies drawn faintly behind those of the front."""
MOST_ON_FRONT = 12
STEPS = 40
"""A curve has one point more than this."""


@dataclass(frozen=True)
class Slice:
    """A policy, or what is no policy (""), with its curves (None of the latter) and a figure a searched parameter."""

    policy: str
    curves: Figure | None
    figures: tuple[Figure, ...]


def slices(facts: Facts, searched: Sequence[str]) -> list[Slice]:
    """Return a slice for each policy that was searched, then one for the other searched parameters."""
    found = []
    rest = list(searched)
    for policy in POLICIES:
        own = [name for name in searched if name == policy or name.startswith(f"{policy}.")]
        if own:
            rest = [name for name in rest if name not in own]
            found.append(Slice(policy, curves_figure(facts, policy), tuple(slice_figure(facts, name) for name in own)))
    if rest:
        found.append(Slice("", None, tuple(slice_figure(facts, name) for name in rest)))
    return found


def policy_of(config: Mapping[str, Any], name: str) -> Policy | None:
    """Return a configuration's policy of this name; None where its parameters make none, as another program's may."""
    parts = {
        path.removeprefix(name).removeprefix("."): value
        for path, value in config.items()
        if (path == name or path.startswith(f"{name}.")) and value is not None
    }
    default = POLICY_DEFAULTS[name]
    if not parts:
        parts = dict(default) if isinstance(default, Mapping) else {"": default}
    try:
        if "" in parts:
            return Policy("constant", {"value": parts[""]}, name)
        return Policy(str(parts.pop("kind", "")), parts, name)
    except InputError:
        return None


def curves_figure(facts: Facts, name: str) -> Figure | None:
    """Return a policy over training progress, for the front and for a sample of the other feasible trials."""
    front = list(facts.front[:MOST_ON_FRONT])
    others = [row for row in facts.feasible(facts.drawn) if row not in set(facts.front)]
    others = others[:: max(1, -(-len(others) // MOST_CURVES))]
    paths = [path for path in facts.table.parameters if path == name or path.startswith(f"{name}.")]
    progress = tuple(step / STEPS for step in range(STEPS + 1))
    series = []
    for label, style, rows in (("trials", "faint", others), ("front", "one", front)):
        for row in rows:
            policy = policy_of({path: facts.table.cells[path][row] for path in paths}, name)
            if policy is not None:
                numbers = facts.numbers([row]) * len(progress)
                y = tuple(policy(p) for p in progress)
                series.append(Series(label, "line", style, progress, y, numbers, facts.index))
    if not series:
        return None
    return Figure(
        id=f"policy-{facts.index}-{name.replace('.', '-').replace('_', '-')}",
        title=f"{name} over training",
        alt=f"The policy {name} over training progress: {len(front)} of the front, {len(others)} of other trials",
        x=Axis("training progress", unit="share"),
        y=Axis(name),
        series=tuple(series),
        caption="A hypergradient is drawn at its start, from which training moves it."
        if "hypergradient" in facts.column(f"{name}.kind", [*front, *others])
        else "",
    )


def slice_figure(facts: Facts, name: str) -> Figure:
    """Return a parameter against the first objective, over the feasible trials."""
    first, front = facts.objectives[0], set(facts.front)
    rows = [row for row in facts.feasible(facts.drawn) if facts.table.cells[name][row] is not None]
    values = facts.column(name, rows)
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    axis = (
        number_axis(name, values)
        if numeric
        else Axis(name, "category", categories=tuple(sorted(set(map(str, values)))))
    )
    series = []
    for label, style, on_front in (("trials", "trial", False), ("front", "front", True)):
        shown = [row for row in rows if (row in front) == on_front]
        x = facts.column(name, shown) if numeric else tuple(str(value) for value in facts.column(name, shown))
        if shown:
            y = facts.column(first, shown)
            series.append(Series(label, "points", style, x, y, facts.numbers(shown), facts.index))
    return Figure(
        id=f"slice-{facts.index}-{facts.table.parameters.index(name)}",
        title=name,
        alt=f"{words(first)} against {name} over {len(rows)} feasible trials",
        x=axis,
        y=metric_axis(first, [value for one in series for value in one.y]),
        series=tuple(series),
    )
