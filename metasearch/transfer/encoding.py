"""Configurations as points of the unit cube, and back.

N configurations, P parameters, D columns. A number is one column, its place in its range (of the logarithm where the
range is logarithmic); a categorical parameter whose choices are numbers is one column too, its rank; another one has a
column per choice, 1/sqrt(2) for the chosen one, so that two choices lie at distance 1. A parameter that a
configuration does not have (a conditional one) stands at the middle, or at the origin of its choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.transfer.prior import NOTHING

Array = NDArray[np.float64]
Params = dict[str, Any]
SIDE = 0.5**0.5
FEW = 16
"""Values that a whole number may have to be one that others depend on, as widths do on a number of layers."""
LISTED = 1_000
"""Configurations of a space that may be listed, each of them."""


def value_at(distribution: BaseDistribution, share: float) -> Any:
    """Return the value below which `share` in [0, 1) of a distribution lies (of its logarithm, where that is uniform).

    A uniform share makes a uniform value: this is the inverse of the distribution function.
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and distribution.log:
        start, end = math.log(low - 0.5), math.log(high + 0.5)
        return min(max(round(math.exp(start + share * (end - start))), low), high)
    if distribution.log:
        return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)
    if step is None:
        return low + share * (high - low)
    return min(low + step * int(share * (round((high - low) / step) + 1)), high)


@dataclass(frozen=True)
class Axis:
    """One parameter's part of the cube."""

    name: str
    distribution: BaseDistribution

    @cached_property
    def choices(self) -> tuple[Any, ...] | None:
        """Its choices, those that are numbers in their order, or None if it is a range."""
        if not isinstance(self.distribution, CategoricalDistribution):
            return None
        choices = self.distribution.choices
        return tuple(sorted(choices)) if self.ordered else tuple(choices)

    @cached_property
    def ordered(self) -> bool:
        """Whether its values have an order."""
        if not isinstance(self.distribution, CategoricalDistribution):
            return True
        choices = self.distribution.choices
        return len(choices) > 2 and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in choices)

    @property
    def decides(self) -> bool:
        """Whether it has so few values that other parameters may be there for some of them only."""
        if not isinstance(self.distribution, IntDistribution):
            return self.choices is not None
        return (self.distribution.high - self.distribution.low) // self.distribution.step < FEW

    @property
    def columns(self) -> int:
        """How many columns it has."""
        return 1 if self.ordered else len(self.choices or ())

    @property
    def middle(self) -> list[float]:
        """What stands for a value that is not there."""
        return [0.5] if self.ordered else [0.0] * self.columns

    def encode(self, value: Any) -> list[float]:
        """Return the columns of a value."""
        if self.choices is not None:
            index = self.choices.index(value)
            if self.ordered:
                return [index / (len(self.choices) - 1)]
            return [SIDE * (position == index) for position in range(self.columns)]
        low, high = self._ends
        return [0.5 if high == low else (self._forward(value) - low) / (high - low)]

    def draw(self, rng: np.random.Generator) -> Any:
        """Return a random value of the distribution."""
        return value_at(self.distribution, float(rng.random()))

    def near(self, value: Any, spread: float, rng: np.random.Generator) -> Any:
        """Return another value than `value` if there is one, near it where values have an order.

        spread: of the range, a deviation.
        """
        if not self.ordered:
            others = [choice for choice in self.choices or () if choice != value]
            return others[int(rng.integers(len(others)))] if others else value
        if self.choices is not None:
            index = self.choices.index(value)
            return self.choices[_beside(index, 1 if rng.random() < 0.5 else -1, len(self.choices) - 1)]
        domain = self.distribution
        assert isinstance(domain, (FloatDistribution, IntDistribution))
        low, high = self._ends
        move = spread * (high - low) * float(rng.standard_normal())
        if domain.step is None:
            moved = self._moved(value, move)
            return moved if moved != value else self._moved(value, -move)  # it was at an end already
        before, after = (round((x - domain.low) / domain.step) for x in (value, self._moved(value, move)))
        if after == before:
            after = _beside(before, 1 if move > 0 else -1, round((domain.high - domain.low) / domain.step))
        return min(domain.low + domain.step * after, domain.high)

    def _moved(self, value: float, move: float) -> float:
        """Return a number farther along its range, or the range's end."""
        domain = self.distribution
        assert isinstance(domain, (FloatDistribution, IntDistribution))
        moved = self._forward(value) + move
        return float(min(max(math.exp(moved) if domain.log else moved, domain.low), domain.high))

    @cached_property
    def values(self) -> Sequence[Any]:
        """All its values, none where they are more than LISTED."""
        if self.choices is not None:
            return self.choices
        domain = self.distribution
        assert isinstance(domain, (FloatDistribution, IntDistribution))
        if domain.step is None or (steps := round((domain.high - domain.low) / domain.step)) >= LISTED:
            return []
        return [min(domain.low + domain.step * i, domain.high) for i in range(steps + 1)]

    @cached_property
    def _ends(self) -> tuple[float, float]:
        domain = self.distribution
        assert isinstance(domain, (FloatDistribution, IntDistribution))
        return self._forward(domain.low), self._forward(domain.high)

    def _forward(self, value: float) -> float:
        log = isinstance(self.distribution, (FloatDistribution, IntDistribution)) and self.distribution.log
        return math.log(value) if log else float(value)


def _beside(index: int, side: int, last: int) -> int:
    """Return the next index on a side (-1 or 1) in 0..last, on the other side if there is none."""
    return index + side if 0 <= index + side <= last else min(max(index - side, 0), last)


@dataclass(frozen=True)
class Conditions:
    """Which parameters are there only for some values of others, learned from configurations.

    rules: parameter -> other parameter -> its values (None for its absence) with which the first one was never seen.
    """

    rules: Mapping[str, Mapping[str, frozenset[Any]]] = field(default_factory=dict)

    @classmethod
    def learned(cls, configurations: Sequence[Mapping[str, Any]], axes: Sequence[Axis]) -> Conditions:
        """Return the conditions that all configurations agree with.

        A parameter depends on another if it is there with some of its values and not with others, and no value has
        been seen both with and without it. Two that are never there together do not depend on each other, else each
        would rule the other out of a configuration that has both until it is known which of them goes.
        """
        tests = [axis for axis in axes if axis.decides]
        rules: dict[str, dict[str, frozenset[Any]]] = {}
        for axis in axes:
            with_it = [config for config in configurations if axis.name in config]
            without = [config for config in configurations if axis.name not in config]
            if not without or not with_it:
                continue
            for test in tests:
                present = {config.get(test.name) for config in with_it}
                absent = {config.get(test.name) for config in without}
                if test.name != axis.name and not present & absent and present != {None}:
                    rules.setdefault(axis.name, {})[test.name] = frozenset(absent)
        return cls(rules)

    def kept(self, config: Mapping[str, Any]) -> Params:
        """Return the part of a configuration that is there."""
        kept = dict(config)
        while gone := [name for name in kept if not self.permits(name, kept)]:  # one that goes may take others along
            for name in gone:
                del kept[name]
        return kept

    def permits(self, name: str, config: Mapping[str, Any]) -> bool:
        """Return whether a parameter may be there beside the others of a configuration."""
        return not any(config.get(other) in values for other, values in self.rules.get(name, {}).items())


@dataclass(frozen=True)
class Encoding:
    """The cube of some parameters. fixed: those among them that new configurations do not choose, with their value."""

    axes: tuple[Axis, ...]
    conditions: Conditions = field(default_factory=Conditions)
    fixed: Params = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        distributions: Mapping[str, BaseDistribution],
        configurations: Sequence[Mapping[str, Any]] = (),
        fixed: Mapping[str, Any] = NOTHING,
    ) -> Encoding:
        """Return the encoding of the distributions; conditions are learned from configurations."""
        axes = tuple(Axis(name, distributions[name]) for name in sorted(distributions))
        return cls(
            axes, Conditions.learned(configurations, axes), {a.name: fixed[a.name] for a in axes if a.name in fixed}
        )

    @cached_property
    def parameter(self) -> NDArray[np.intp]:
        """The parameter that each column belongs to, (D,)."""
        return np.repeat(np.arange(len(self.axes)), [axis.columns for axis in self.axes])

    def encode(self, configurations: Sequence[Mapping[str, Any]]) -> Array:
        """Return (N, D); values outside their distribution raise ValueError where they are categorical."""
        full = [{**self.fixed, **config} for config in configurations] if self.fixed else configurations
        rows = [
            [part for axis in self.axes for part in (axis.encode(c[axis.name]) if axis.name in c else axis.middle)]
            for c in full
        ]
        return np.array(rows, float).reshape(len(rows), len(self.parameter))

    def draw(self, rng: np.random.Generator) -> Params:
        """Return a random configuration, without what its own values make absent."""
        return self.completed({}, rng)

    def untried(self, taken: Array, rng: np.random.Generator) -> Params | None:
        """Return a random configuration that is not among those taken (T, D), of a space that may be listed.

        None where nothing is left, or the space is too large.
        """
        if not 0 < math.prod(len(axis.values) for axis in self.chosen) <= LISTED:
            return None
        combined = product(*([(axis.name, value) for value in axis.values] for axis in self.chosen))
        every = [self.conditions.kept(self.fixed | dict(config)) for config in combined]
        left = np.flatnonzero(~repeats(self.encode(every), taken))
        return every[rng.choice(left)] if len(left) else None

    def completed(self, config: Mapping[str, Any], rng: np.random.Generator) -> Params:
        """Return a configuration with random values of what is missing."""
        return self.conditions.kept(self._full(config, rng))

    def mutated(self, config: Mapping[str, Any], rng: np.random.Generator, *, spread: float = 0.2) -> Params:
        """Return a configuration that differs in one parameter or a few; what becomes active is drawn."""
        full = self._full(config, rng)
        changes = 1 + int(rng.geometric(0.6) - 1)
        present = [axis for axis in self.chosen if axis.name in config]
        for index in rng.permutation(len(present))[:changes]:
            axis = present[index]
            full[axis.name] = axis.near(full[axis.name], spread, rng)
        return self.conditions.kept(full)

    @cached_property
    def chosen(self) -> tuple[Axis, ...]:
        """The axes of parameters that are not fixed."""
        return tuple(axis for axis in self.axes if axis.name not in self.fixed)

    def _full(self, config: Mapping[str, Any], rng: np.random.Generator) -> Params:
        own = {axis.name: config[axis.name] if axis.name in config else axis.draw(rng) for axis in self.chosen}
        return self.fixed | own


def repeats(x: Array, taken: Array) -> NDArray[np.bool_]:
    """Return (Q,), which points (Q, D) are among those taken (T, D)."""
    known = {row.tobytes() for row in np.round(taken, 9)}
    return np.array([row.tobytes() in known for row in np.round(x, 9)], bool)
