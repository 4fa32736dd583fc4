"""Tables of real evaluations that a search is replayed against: which configurations there are, and what each gave.

N configurations of a task, two objectives, both minimized and min-max scaled to [0, 1] over the task's whole table.

fcnet, nmt: exhaustive grids (METASEARCH_TABLES, else shared/tables beside the repository), the same on every task;
ordered parameters are integers, their rank. own: the pool of the priors that ship with the package, 1 - val_accuracy
and log10(model_bytes), over the space that they searched, with its conditional parameters. A proposal that a pool
lacks is answered by its nearest member that was not yet used, for every sampler alike.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from metasearch.search.priors import BUILT_IN_FILE, builtin_space
from metasearch.search.space import Space
from metasearch.transfer.prior import Prior
from metasearch.transfer.priors_file import read_priors
from tests.bench.transfer.gower import Gower
from tests.repository import SHARED

NAMES = ("fcnet", "nmt", "own")

Array = NDArray[np.float64]
Params = dict[str, Any]


class Table(Protocol):
    """Several tasks over one search space.

    label: the name and a digest of the data, so that results of other data are told apart.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def distributions(self) -> Mapping[str, BaseDistribution]: ...

    def values(self, task: str) -> Array:
        """Return (N, 2), what every configuration gave."""
        ...

    def params(self, task: str, row: int) -> Params:
        """Return the searched parameters of a configuration, those that are active."""
        ...

    def suggest(self, trial: Trial) -> None:
        """Ask the trial's sampler for every parameter, a conditional one only where it is active."""
        ...

    def answer(self, task: str, proposal: Params, used: Sequence[int]) -> int:
        """Return the row that a proposal is answered by. used: the rows of earlier trials."""
        ...


@dataclass(frozen=True, eq=False)
class Grid:
    """Every configuration of a grid on every task. index: (N, P), which choice of each parameter, in C order."""

    name: str
    parameters: Mapping[str, Mapping[str, Any]]
    index: NDArray[np.int8]
    results: Mapping[str, Array]

    @cached_property
    def label(self) -> str:
        """The name and a digest of all values."""
        return f"{self.name}-{_digest(self.results)}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.results)

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Ordered parameters are the integers of their ranks: that is how the tables are spaced."""
        return {
            name: CategoricalDistribution(tuple(about["choices"]))
            if about["categorical"]
            else IntDistribution(0, len(about["choices"]) - 1)
            for name, about in self.parameters.items()
        }

    def values(self, task: str) -> Array:
        """Return (N, 2)."""
        return self.results[task]

    def params(self, task: str, row: int) -> Params:
        """Return a configuration."""
        return {
            name: about["choices"][i] if about["categorical"] else int(i)
            for (name, about), i in zip(self.parameters.items(), self.index[row], strict=True)
        }

    def suggest(self, trial: Trial) -> None:
        """Ask for every parameter."""
        for name, distribution in self.distributions.items():
            if isinstance(distribution, IntDistribution):
                trial.suggest_int(name, distribution.low, distribution.high)
            else:
                assert isinstance(distribution, CategoricalDistribution)
                trial.suggest_categorical(name, distribution.choices)

    def answer(self, task: str, proposal: Params, used: Sequence[int]) -> int:
        """Return the row of just this configuration, used or not."""
        places = [
            about["choices"].index(proposal[name]) if about["categorical"] else proposal[name]
            for name, about in self.parameters.items()
        ]
        return int(np.ravel_multi_index(places, [len(about["choices"]) for about in self.parameters.values()]))


@dataclass(frozen=True, eq=False)
class Pools:
    """A pool of configurations on each task, of a space too large for a grid."""

    name: str
    space: Space
    configurations: Mapping[str, tuple[Params, ...]]
    results: Mapping[str, Array]

    @cached_property
    def label(self) -> str:
        """The name and a digest of all configurations and values."""
        return f"{self.name}-{_digest(self.results, json.dumps(self.configurations, sort_keys=True))}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.results)

    @cached_property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Those of the space."""
        return self.space.distributions()

    def values(self, task: str) -> Array:
        """Return (N, 2)."""
        return self.results[task]

    def params(self, task: str, row: int) -> Params:
        """Return a configuration."""
        return self.configurations[task][row]

    def suggest(self, trial: Trial) -> None:
        """Ask for the active parameters."""
        self.space.suggest(trial)

    def answer(self, task: str, proposal: Params, used: Sequence[int]) -> int:
        """Return the nearest member that was not yet used; the first of several."""
        distances = self._gower[task].distances(proposal)
        distances[list(used)] = np.inf
        return int(np.argmin(distances))

    @cached_property
    def _gower(self) -> dict[str, Gower]:
        return {task: Gower.of(self.distributions, members) for task, members in self.configurations.items()}


def grid_table(name: str, folder: Path) -> Grid:
    """Read one of the exhaustive tables of a folder."""
    parameters = json.loads((folder / "tables.json").read_text(encoding="utf-8"))[name]["parameters"]
    with np.load(folder / f"{name}.npz") as arrays:
        results = {task: arrays[task].astype(float) for task in arrays if task != "index"}
        return Grid(name, parameters, arrays["index"], results)


def pools_table(name: str, priors: Sequence[Prior], space: Space) -> Pools:
    """Return the table of priors that have val_accuracy and model_bytes. Raises InputError if the space is another."""
    configurations, results = {}, {}
    for prior in priors:
        members = tuple(dict(trial.params) for trial in prior.complete)
        for params in members:
            space.check_parameters(params, prior.name)
        error = np.array([1 - trial.metrics["val_accuracy"] for trial in prior.complete])
        size = np.log10([trial.metrics["model_bytes"] for trial in prior.complete])
        configurations[prior.name] = members
        results[prior.name] = np.column_stack([_scaled(error), _scaled(size)])
    return Pools(name, space, configurations, results)


def tables_folder() -> Path:
    """Return where the exhaustive tables lie, or would lie."""
    return Path(os.environ.get("METASEARCH_TABLES") or SHARED / "tables")


@cache
def load_table(name: str) -> Table | None:
    """Return one of NAMES, None where its data are missing."""
    if name == "own":
        if not BUILT_IN_FILE.is_file():
            return None
        return pools_table(name, read_priors(BUILT_IN_FILE), builtin_space())
    return grid_table(name, tables_folder()) if (tables_folder() / f"{name}.npz").is_file() else None


def _scaled(values: Array) -> Array:
    low, high = values.min(), values.max()
    return np.asarray((values - low) / (high - low))


def _digest(results: Mapping[str, Array], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for task, values in results.items():
        digest.update(task.encode())
        digest.update(np.round(values, 6).astype("<f8").tobytes())
    return digest.hexdigest()[:8]
