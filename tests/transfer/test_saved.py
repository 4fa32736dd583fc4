"""Trials saved agree with a count by hand, and a search from good priors is seen to save some."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from metasearch.transfer.explained import knowledge_for
from metasearch.transfer.hypervolume import Hypervolume
from metasearch.transfer.prior import prior_of
from metasearch.transfer.saved import Saved, saved_by, trials_saved
from tests.transfer.known_answers import SPACE, drawn, random_study, task

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
UNIT = Hypervolume.of(np.ones(1), np.ones(1))


def single(losses: list[float | None]) -> list[FrozenTrial]:
    """Return trials of one objective; None is a failed one."""
    return [
        create_trial(state=TrialState.FAIL, params=params, distributions=SPACE)
        if loss is None
        else create_trial(params=params, distributions=SPACE, values=[loss])
        for loss, params in zip(losses, drawn(len(losses), 0), strict=True)
    ]


def test_of_one_objective_it_is_the_first_trial_that_is_as_good() -> None:
    own = np.array([[0.8], [0.5], [0.6], [0.1], [0.3]])
    cold = np.array([[0.9], [0.7], [np.nan], [0.4], [0.45], [0.2]])
    found = saved_by(own, [cold, own], UNIT)
    assert [(s.trials, s.cold) for s in found] == [(1, (2, 1)), (2, (4, 2)), (4, (None, 4)), (5, (None, 4))]
    assert {s.limit for s in found} == {6}
    assert [s.volume for s in found] == pytest.approx([0.2, 0.5, 0.9, 0.9])


def test_the_median_counts_a_search_that_never_got_there_as_longest() -> None:
    assert Saved(4, 0.5, (None, 3, 5), 9).median == 5
    assert Saved(4, 0.5, (None, 3, None), 9).median is None
    assert Saved(4, 0.5, (2, 3), 9).median == 2.5


def test_two_objectives_are_counted_by_the_area_they_dominate() -> None:
    rng = np.random.default_rng(0)
    own, cold = rng.random((20, 2)), rng.random((40, 2))
    measure = Hypervolume.of(np.ones(2), np.ones(2))
    for saved in saved_by(own, [cold], measure):
        wanted = measure.volume(own[: saved.trials])
        reached = [n for n in range(1, 41) if measure.volume(cold[:n]) >= wanted - 1e-9]
        assert saved.volume == pytest.approx(wanted)
        assert saved.cold == (reached[0] if reached else None,)


def test_against_a_real_search_failed_trials_count_as_trials() -> None:
    study = optuna.create_study()
    study.add_trials(single([0.5, 0.3, 0.2]))
    known = knowledge_for(prior_of(study), ())
    against = single([None, 0.9, 0.4, None, 0.25])
    found = trials_saved(study.trials, known, against=against)
    assert [(s.trials, s.cold) for s in found] == [(1, (3,)), (2, (5,)), (3, (None,))]


def test_without_a_complete_trial_nothing_is_said() -> None:
    study = optuna.create_study()
    study.add_trials(single([None, None]))
    assert trials_saved(study.trials, knowledge_for(prior_of(study), ())) == ()


def guided(count: int) -> Study:
    """Return a study whose trials are the best of many, as a search from perfect priors would have them."""
    study = random_study(task(0.2), count=0)
    ranked = sorted(drawn(400, 5), key=lambda params: -task(0.2)(params)[0])
    for params in ranked[:count]:
        study.add_trial(create_trial(params=params, distributions=SPACE, values=task(0.2)(params)))
    return study


@pytest.mark.slow
def test_simulated_cold_searches_need_more_trials_than_a_study_that_began_at_the_best() -> None:
    study = guided(6)
    known = knowledge_for(prior_of(study), [prior_of(random_study(task(0.2), count=80, seed=1))])
    found = trials_saved(study.trials, known)
    assert [s.trials for s in found] == [1, 2, 4, 6]
    assert all(len(s.cold) == 5 for s in found)
    first = found[0]
    assert first.median is None or first.median >= 2
    assert all(count is None or 1 <= count <= 12 for s in found for count in s.cold)
    assert found == trials_saved(study.trials, known)
