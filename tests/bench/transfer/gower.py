"""The distance of Gower (1971) between configurations of mixed and conditional parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gower:
    """Distances to N members. places: (N, P), the place of each value in its range, a choice's index; NaN if absent."""

    distributions: Mapping[str, BaseDistribution]
    places: Array

    @classmethod
    def of(cls, distributions: Mapping[str, BaseDistribution], members: Sequence[Mapping[str, Any]]) -> Gower:
        """Return the distances to members."""
        rows = [_places(distributions, member) for member in members]
        return cls(distributions, np.array(rows, float).reshape(len(rows), len(distributions)))

    def distances(self, params: Mapping[str, Any]) -> Array:
        """Return (N,), each in [0, 1]: the mean over the parameters that at least one of the two has.

        A number counts its difference as a share of its range (of the logarithm where that is searched), a choice 0 if
        equal and 1 if not, a parameter that only one of the two has 1.
        """
        own = np.array(_places(self.distributions, params), float)
        choice = np.array([isinstance(d, CategoricalDistribution) for d in self.distributions.values()], bool)
        difference = np.abs(self.places - own)
        difference[:, choice] = np.where(difference[:, choice] > 0, 1.0, difference[:, choice])
        there = ~(np.isnan(self.places) & np.isnan(own))
        return np.asarray(np.where(np.isnan(difference), there, difference).sum(1) / np.maximum(there.sum(1), 1))


def _places(distributions: Mapping[str, BaseDistribution], params: Mapping[str, Any]) -> list[float]:
    return [_place(d, params[name]) if name in params else math.nan for name, d in distributions.items()]


def _place(distribution: BaseDistribution, value: Any) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if high == low:
        return 0.0
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return float(value - low) / (high - low)
