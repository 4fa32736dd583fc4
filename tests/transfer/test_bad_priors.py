"""Prior studies that mislead do no lasting harm; good ones help: on a synthetic family and on tables of real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from metasearch.transfer.hypervolume import non_dominated
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.sampler import TransferSampler
from tests.transfer.families import best_after, inverted, named_study, prior, shuffled

Array = NDArray[np.float64]
SEEDS = range(3)


def mean_best(change: Callable[[list[float]], Any] | None, trials: int = 25) -> Array:
    """Return the mean over seeds of the best loss so far, with priors changed so, or without any."""
    curves = []
    for seed in SEEDS:
        priors = [] if change is None else [prior(task, seed=seed, change=change) for task in (1, 2, 3)]
        curves.append(best_after(TransferSampler(priors, seed=seed), task=0, trials=trials))
    return np.asarray(np.mean(curves, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("change", [inverted, shuffled])
def test_misleading_priors_do_no_lasting_harm(change: Callable[[list[float]], Any]) -> None:
    # random configurations have losses of 1 to 4; the best of 25 random ones is about 0.3
    assert mean_best(change)[-1] < 0.15


@pytest.mark.slow
def test_good_priors_are_worth_many_trials() -> None:
    good, cold = mean_best(list, trials=15), mean_best(None, trials=15)
    assert good[4] < 0.3 * cold[4]
    assert good[9] < cold[14]


def test_one_misleading_prior_among_good_ones_costs_little() -> None:
    for seed in SEEDS:
        priors = [prior(1), prior(2, change=shuffled), prior(3)]
        assert best_after(TransferSampler(priors, seed=seed), task=0, trials=12)[-1] < 0.15


def volume(values: Array) -> float:
    """Return the hypervolume of points (N, 2) below (1, 1), exactly."""
    total, height = 0.0, 1.0
    for first, second in sorted(values.tolist()):
        if second < height:
            total += (1 - first) * (height - second)
            height = second
    return total


class Table:
    """Every configuration of a grid on several tasks, two objectives in [0, 1], both minimized."""

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / "tables.json").read_text())[name]
        with np.load(folder / f"{name}.npz") as file:
            self.index = file["index"]
            self.tasks = {task: file[task].astype(float) for task in about["tasks"]}
        self.choices = {name: parameter["choices"] for name, parameter in about["parameters"].items()}
        self.distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(choices) for name, choices in self.choices.items()
        }
        self.sizes = [len(choices) for choices in self.choices.values()]

    def params(self, row: int) -> dict[str, Any]:
        return {n: c[i] for (n, c), i in zip(self.choices.items(), self.index[row], strict=True)}

    def prior(self, task: str, rng: np.random.Generator, change: Callable[[Array], Array]) -> Prior:
        rows = rng.choice(len(self.index), 100, replace=False)
        values = change(self.tasks[task][rows])
        trials = [
            PriorTrial(self.params(row), {"first": first, "second": second})
            for row, (first, second) in zip(rows, values.tolist(), strict=True)
        ]
        return Prior(task, {"first": "minimize", "second": "minimize"}, self.distributions, tuple(trials))

    def objective(self, task: str) -> Callable[[optuna.Trial], tuple[float, float]]:
        def objective(trial: optuna.Trial) -> tuple[float, float]:
            places = [c.index(trial.suggest_categorical(n, c)) for n, c in self.choices.items()]
            first, second = self.tasks[task][np.ravel_multi_index(places, self.sizes)]
            return float(first), float(second)

        return objective

    def regret(self, task: str, seed: int, change: Callable[[Array], Array] | None, trials: int) -> Array:
        """Return 1 - hypervolume of the first n trials / that of the whole table, for every n."""
        rng = np.random.default_rng(seed)
        others = [] if change is None else [self.prior(t, rng, change) for t in self.tasks if t != task]
        study = named_study(TransferSampler(others, seed=seed), "first", "second")
        study.optimize(self.objective(task), n_trials=trials)
        values = self.tasks[task]
        # the points of the front of a large table: the smallest second objective for each first one
        ordered = values[np.lexsort((values[:, 1], values[:, 0]))]
        front = ordered[np.r_[True, ordered[1:, 1] < np.minimum.accumulate(ordered[:, 1])[:-1]]]
        told = np.array([trial.values for trial in study.trials])
        return np.array([1 - volume(told[: n + 1]) / volume(front) for n in range(trials)])


@pytest.fixture(scope="module")
def fcnet(shared_data: Path) -> Table:
    folder = shared_data.parent / "tables"
    if not (folder / "fcnet.npz").is_file():
        pytest.skip(f"no tables of evaluations: {folder} is not there")
    return Table(folder, "fcnet")


def unchanged(values: Array) -> Array:
    return values


def upside_down(values: Array) -> Array:
    return np.asarray(values.max(0) + values.min(0) - values)


def permuted(values: Array) -> Array:
    return np.asarray(np.random.default_rng(0).permutation(values))


def mean_regret(table: Table, change: Callable[[Array], Array] | None, trials: int = 30) -> Array:
    tasks = list(table.tasks)
    curves = [table.regret(tasks[seed % len(tasks)], seed, change, trials) for seed in SEEDS]
    return np.asarray(np.mean(curves, axis=0))


def test_the_volume_of_a_front_is_that_of_all_points() -> None:
    points = np.random.default_rng(0).random((40, 2))
    front = points[non_dominated(points)]
    grid = (np.stack(np.meshgrid(*[np.arange(400)] * 2), axis=-1).reshape(-1, 2) + 0.5) / 400
    inside = np.any(np.all(grid[:, None] >= front[None], axis=2), axis=1)
    assert volume(points) == pytest.approx(volume(front))
    assert volume(points) == pytest.approx(np.mean(inside), abs=0.01)


@pytest.mark.slow
def test_good_priors_help_on_fcnet_and_misleading_ones_do_no_lasting_harm(fcnet: Table) -> None:
    cold, good = mean_regret(fcnet, None), mean_regret(fcnet, unchanged)
    assert good[4] < cold[4] - 0.03
    assert good[-1] < cold[-1] + 0.02
    for change in (upside_down, permuted):
        assert mean_regret(fcnet, change)[-1] < cold[-1] + 0.05
