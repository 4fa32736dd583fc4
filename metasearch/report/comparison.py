"""Two studies side by side: best values, fronts, hypervolume below one reference point, and what differs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.errors import InputError, NotFoundError
from metasearch.report.database import Database
from metasearch.report.fronts import costs_of
from metasearch.report.heads import Head, study_head
from metasearch.report.queries import Best, best
from metasearch.search.pareto import hypervolume

if TYPE_CHECKING:
    import pandas as pd

DESCRIBED = ("task", "teacher", "space", "constraints", "sampler", "warm_start", "seed", "device")
"""What two studies are compared in, of their descriptions."""


@dataclass(frozen=True)
class Comparison:
    """Two studies' fronts, a and b. objectives: those both have. hypervolumes: as shares of the box from the best value
    of each objective to the reference, its worst on either front. covered: the share of each front that the other's
    dominates or equals. settings, parameters: what differs, and each side's; a parameter's is its median or commonest
    value on the front."""

    a: Best
    b: Best
    objectives: dict[str, str]
    reference: dict[str, float]
    best_values: dict[str, tuple[float, float]]
    hypervolumes: tuple[float, float]
    covered: tuple[float, float]
    settings: dict[str, tuple[Any, Any]]
    parameters: dict[str, tuple[Any, Any]]

    def rows(self) -> list[tuple[str, str, Any, Any]]:
        """Return all but the fronts as rows: of what kind, which, in a, in b."""
        a, b = self.a, self.b
        counted = {
            "complete": (a.complete, b.complete),
            "feasible": (a.feasible, b.feasible),
            "front": (len(a.table), len(b.table)),
        }
        measured = {"share of the box": self.hypervolumes, "front covered by the other": self.covered}
        kinds: dict[str, dict[str, tuple[Any, Any]]] = {
            "trials": counted,
            "best": dict(self.best_values),
            "hypervolume": dict(measured),
            "setting": self.settings,
            "parameter": self.parameters,
        }
        return [(kind, name, *pair) for kind, pairs in kinds.items() for name, pair in pairs.items()]

    def frame(self) -> pd.DataFrame:
        """Return `rows` as a frame with the columns kind, name, a, b."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["kind", "name", "a", "b"])

    def record(self) -> dict[str, Any]:
        """Return it as `compare --json` prints it."""
        sides = {"a": self.a, "b": self.b}
        return {side: found.record() for side, found in sides.items()} | {
            "objectives": self.objectives,
            "reference": self.reference,
            "best": {name: dict(zip("ab", pair, strict=True)) for name, pair in self.best_values.items()},
            "hypervolume": dict(zip("ab", self.hypervolumes, strict=True)),
            "covered": dict(zip("ab", self.covered, strict=True)),
            "settings": {name: dict(zip("ab", pair, strict=True)) for name, pair in self.settings.items()},
            "parameters": {name: dict(zip("ab", pair, strict=True)) for name, pair in self.parameters.items()},
        }


def compare(database: Database, a: str, b: str) -> Comparison:
    """Return two studies' fronts side by side, in the objectives that both have; only feasible trials count.

    Raises InputError if they share no objective, NotFoundError if one has no complete trial, InfeasibleError if none of
    its trials keeps its own constraints.
    """
    heads = study_head(database, a), study_head(database, b)
    objectives = {
        name: direction for name, direction in heads[0].directions.items() if heads[1].directions.get(name) == direction
    }
    if not objectives:
        raise InputError(f"study {b}", f"must share an objective with {a}", ", ".join(heads[1].directions))
    found = best(database, a), best(database, b)
    for name, side in zip((a, b), found, strict=True):
        if not len(side.table):
            raise NotFoundError(f"study {name}: no trial is complete yet")
    costs = [costs_of(side.table.columns, objectives) for side in found]
    both = np.vstack(costs)
    ideal, reference = both.min(axis=0), both.max(axis=0)
    scale = np.where(reference > ideal, reference - ideal, 1.0)
    # one tenth further, or the ends of the fronts would count for nothing
    scaled = [np.unique((side - ideal) / scale, axis=0).tolist() for side in costs]
    volumes = [hypervolume(side, [1.1] * len(objectives)) / 1.1 ** len(objectives) for side in scaled]
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()]
    return Comparison(
        *found,
        objectives,
        {
            name: float(sign * (low + 1.1 * wide))
            for name, sign, low, wide in zip(objectives, signs, ideal, scale, strict=True)
        },
        {
            name: (float(sign * costs[0][:, index].min()), float(sign * costs[1][:, index].min()))
            for index, (name, sign) in enumerate(zip(objectives, signs, strict=True))
        },
        (volumes[0], volumes[1]),
        (_covered(costs[0], costs[1]), _covered(costs[1], costs[0])),
        _settings(*heads),
        _parameters(*found),
    )


def _covered(costs: Any, others: Any) -> float:
    """Return the share of points (N, M) that some other point is at least as good as."""
    return float(np.mean([bool(np.any(np.all(others <= point, axis=1))) for point in costs]))


def _settings(a: Head, b: Head) -> dict[str, tuple[Any, Any]]:
    """Return in what the descriptions differ; of tasks and spaces their names, digests and texts."""

    def said(head: Head, key: str) -> Any:
        value = head.description.get(key)
        if key == "space":
            return str(head.description.get("space_digest"))[:8] if head.description else None
        return value.get("text", value) if isinstance(value, dict) else value

    pairs = {key: (said(a, key), said(b, key)) for key in DESCRIBED}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _parameters(a: Best, b: Best) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*a.table.parameters, *b.table.parameters])
    pairs = {name: (_typical(a.table.cells.get(name)), _typical(b.table.cells.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _typical(cells: list[Any] | None) -> Any:
    """Return the median of numbers, the commonest of other values, None where no trial has one."""
    known = [cell for cell in cells or [] if cell is not None]
    if not known:
        return None
    if all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in known):
        median = float(np.median(known))
        return int(median) if median.is_integer() and math.isfinite(median) else median
    return (
        Counter(map(repr, known)).most_common(1)[0][0]
        if any(isinstance(c, (list, dict)) for c in known)
        else (Counter(known).most_common(1)[0][0])
    )
