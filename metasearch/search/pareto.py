"""The Pareto front of a study, kept up to date trial by trial. M objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether a is nowhere worse than b and somewhere better; both (M,), smaller is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the volume that points (N, M) dominate up to a reference (M,), smaller being better.

    Exact, by slicing along the last objective (Zitzler 2001, section 3.3); meant for tens of points.
    """
    inside = sorted((p for p in points if all(x < r for x, r in zip(p, reference, strict=True))), key=lambda p: p[-1])
    if not inside or len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum(
        (end - p[-1]) * hypervolume([q[:-1] for q in inside[: index + 1]], reference[:-1])
        for index, (p, end) in enumerate(zip(inside, ends, strict=True))
    )


@dataclass
class Front:
    """The trials that no other dominates. signs: (M,), -1 for an objective to maximize, 1 for one to minimize.

    members: costs (M,), smaller is better, by trial. worst: the largest first cost of all trials ever added.
    """

    signs: tuple[int, ...]
    members: dict[int, tuple[float, ...]] = field(default_factory=dict)
    worst: float = -math.inf

    @classmethod
    def of(cls, directions: Sequence[str]) -> Front:
        """Return the empty front for directions "minimize" or "maximize"."""
        return cls(tuple(-1 if direction == "maximize" else 1 for direction in directions))

    def add(self, number: int, values: Sequence[float]) -> list[int]:
        """Take in a feasible trial; return the trials that are off the front now (perhaps itself)."""
        costs = tuple(sign * value for sign, value in zip(self.signs, values, strict=True))
        self.worst = max(self.worst, costs[0])
        if any(dominates(other, costs) for other in self.members.values()):
            return [number]
        beaten = [other for other, theirs in self.members.items() if dominates(costs, theirs)]
        for other in beaten:
            del self.members[other]
        self.members[number] = costs
        return beaten

    def in_order(self) -> list[int]:
        """Return the members, the one best in the first objective first."""
        return sorted(self.members, key=lambda number: (self.members[number], number))
