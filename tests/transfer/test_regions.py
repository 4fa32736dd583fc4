"""Good regions are where they were put, and the verdicts say which parameters moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from metasearch.transfer.hypervolume import non_dominated
from metasearch.transfer.prior import Prior, PriorTrial, prior_of
from metasearch.transfer.regions import GoodRegions, best_share, good_regions
from tests.transfer.known_answers import SPACE, random_study, task

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def family(*moving: float, count: int = 150) -> list[Prior]:
    """Return a prior a task. moving: where that parameter is best on each."""
    return [
        prior_of(random_study(task(place), count=count, seed=seed, name=f"task {seed}"))
        for seed, place in enumerate(moving)
    ]


def found_in(studies: list[Prior]) -> dict[str, GoodRegions]:
    return {regions.parameter: regions for regions in good_regions(studies, SPACE)}


def prior_of_values(values: list[tuple[float, float]]) -> Prior:
    trials = tuple(PriorTrial({"x": 0.5}, {"first": a, "second": b}) for a, b in values)
    return Prior("p", {"first": "minimize", "second": "maximize"}, {"x": FloatDistribution(0, 1)}, trials)


def test_verdicts_tell_what_moves_what_stays_and_what_does_nothing() -> None:
    found = found_in(family(0.1, 0.1, 0.9))
    assert {name: regions.verdict for name, regions in found.items()} == {
        "moving": "differs",
        "steady": "same everywhere",
        "kind": "same everywhere",
        "idle": "does not matter",
    }
    assert next(iter(found)) == "moving"


def test_good_regions_lie_where_the_family_has_them() -> None:
    found = found_in(family(0.1, 0.9))
    for region in found["steady"].regions:
        assert 0.1 < region.low < 0.35
        assert 0.25 < region.high < 0.6
        assert region.trials == 30
    near, far = found["moving"].regions
    assert near.high < 0.45 < 0.55 < far.low
    for region in found["kind"].regions:
        assert region.choice == "best"
        assert region.share is not None
        assert region.share > 0.5
    assert all(isinstance(region.low, int) for region in found["idle"].regions)


def test_a_single_study_tells_what_matters_but_not_whether_it_is_so_elsewhere() -> None:
    verdicts = {name: regions.verdict for name, regions in found_in(family(0.1)).items()}
    assert verdicts == {"moving": "matters", "steady": "matters", "kind": "matters", "idle": "does not matter"}


def test_the_same_trials_told_six_times_are_no_more_evidence() -> None:
    """Studies of one pool of configurations share its accidents: of what chance does in one, all six have it."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(20):
        values = [(float(a), float(b)) for a, b in rng.random((50, 2))]
        trials = prior_of_values(values).trials
        drawn = tuple(replace(t, params={"x": float(rng.random())}) for t in trials)
        once = replace(prior_of_values(values), trials=drawn)
        copies = [replace(once, name=f"copy {index}") for index in range(6)]
        (regions,) = good_regions(copies, once.distributions)
        alarms += regions.verdict != "does not matter"
    assert alarms <= 3


def test_studies_with_too_few_good_trials_say_nothing() -> None:
    found = found_in(family(0.1, count=10))
    assert {(regions.verdict, regions.regions, regions.chance) for regions in found.values()} == {("", (), 1.0)}


def test_a_conditional_parameter_is_judged_where_it_is() -> None:
    (study,) = family(0.1)
    trials = tuple(
        replace(t, params=dict(t.params) if t.params["kind"] == "best" else {"kind": t.params["kind"]})
        for t in study.trials
    )
    found = found_in([replace(study, trials=trials)])
    good = best_share(study)
    with_it = sum(kept and t.params["kind"] == "best" for kept, t in zip(good, study.complete, strict=True))
    assert [region.trials for region in found["steady"].regions] == [with_it]


@pytest.mark.parametrize("units", [lambda v: v, lambda v: 1e6 * v + 3], ids=["as it is", "other units"])
def test_the_best_share_is_made_of_whole_fronts_and_the_ends_of_the_last(units: Callable[[float], float]) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((60, 2))
    study = prior_of_values([(units(a), b) for a, b in values])
    minimized = values * [1, -1]
    left, fronts = np.arange(60), []
    while len(left):
        fronts.append(left[non_dominated(minimized[left])])
        left = np.setdiff1d(left, fronts[-1])
    chosen = set(np.flatnonzero(best_share(study)))
    assert len(chosen) == 12
    partly = [front for front in fronts if chosen & set(front) and not set(front) <= chosen]
    assert len(partly) <= 1
    for front in partly:
        assert {front[values[front, 0].argmin()], front[values[front, 0].argmax()]} <= chosen
    whole = [front for front in fronts if set(front) <= chosen]
    assert all(set(front) <= chosen for front in fronts[: len(whole)])


def test_of_one_objective_the_best_share_is_its_best_values() -> None:
    values = np.random.default_rng(1).permutation(40)
    trials = tuple(PriorTrial({"x": 0.5}, {"loss": float(value)}) for value in values)
    study = Prior("p", {"loss": "minimize"}, {"x": FloatDistribution(0, 1)}, trials)
    assert set(np.flatnonzero(best_share(study))) == set(np.flatnonzero(values < 8))
