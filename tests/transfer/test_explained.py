"""What is said of prior studies is so, on tasks whose kinship is known."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.study import Study
from optuna.trial import TrialState, create_trial
from scipy.stats import spearmanr

from metasearch.transfer.explained import agreements, knowledge_for, some_counts, weights_over_trials
from metasearch.transfer.knowledge import Knowledge
from metasearch.transfer.prior import prior_of
from tests.transfer.known_answers import DIRECTIONS, SPACE, random_study, task

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def study() -> Study:
    """Thirty random trials of a task whose moving parameter is best at 0.2."""
    return random_study(task(0.2), count=30, seed=9)


def knowledge(study: Study, *priors: Study) -> Knowledge:
    return knowledge_for(prior_of(study), [prior_of(prior) for prior in priors])


def test_numbers_of_trials_hold_the_powers_of_two_and_both_ends() -> None:
    for total in (1, 2, 5, 64, 300):
        counts = some_counts(total, 40)
        assert counts == sorted(set(counts))
        assert (counts[0], counts[-1]) == (1, total)
        assert {2**power for power in range(10) if 2**power <= total} <= set(counts)
        assert len(counts) <= 41
    assert some_counts(30, 40) == list(range(1, 31))


def test_belief_in_priors_of_like_tasks_stays_and_in_inverted_ones_goes(study: Study) -> None:
    like = weights_over_trials(study.trials, knowledge(study, random_study(task(0.2), seed=1)))
    unlike = weights_over_trials(study.trials, knowledge(study, random_study(task(0.2, sign=-1), seed=1)))
    assert [weights.trials for weights in like] == list(range(1, 31))
    assert like[-1].shares.keys() == DIRECTIONS.keys()
    for name in DIRECTIONS:
        assert like[-1].shares[name] > 0.7
        assert unlike[-1].shares[name] < 0.3
        assert all(0 <= weights.shares[name] <= 1 for weights in (*like, *unlike))


def test_belief_after_n_trials_is_that_of_a_study_of_n_trials(study: Study) -> None:
    prior = random_study(task(0.5), seed=1)
    whole = weights_over_trials(study.trials, knowledge(study, prior))
    part = weights_over_trials(study.trials[:6], knowledge(study, prior))
    for early, late in zip(part, whole[:6], strict=True):
        assert early.trials == late.trials
        assert early.shares == pytest.approx(late.shares)


def test_without_a_prior_or_a_complete_trial_there_is_no_weight(study: Study) -> None:
    failed = [create_trial(state=TrialState.FAIL, params=t.params, distributions=SPACE) for t in study.trials[:3]]
    prior = random_study(task(0.2), seed=1)
    assert weights_over_trials(study.trials, knowledge(study)) == ()
    assert agreements(study.trials, knowledge(study)) == ()
    assert weights_over_trials(failed, knowledge(study, prior)) == ()
    assert weights_over_trials([*failed, study.trials[0]], knowledge(study, prior))[0].trials == 4


def test_the_prior_of_the_like_task_agrees_most_and_an_inverted_one_disagrees(study: Study) -> None:
    priors = [
        random_study(task(0.2, sign=-1), seed=1, name="inverted"),
        random_study(task(0.2), seed=2, name="like"),
        random_study(task(0.9), seed=3, name="moved"),
    ]
    found = agreements(study.trials, knowledge(study, *priors))
    assert [a.prior for a in found] == ["like", "like", "moved", "moved", "inverted", "inverted"]
    correlations = {(a.prior, a.objective): a.correlation or 0.0 for a in found}
    assert {a.trials for a in found} == {30}
    for name in DIRECTIONS:
        assert correlations["like", name] > 0.8
        assert correlations["inverted", name] < -0.8


def test_the_agreement_with_one_prior_does_not_depend_on_the_others_results(study: Study) -> None:
    """The expectation of one study from a pool is that of its own points alone, up to its scale."""
    priors = [random_study(task(0.2), seed=1, name="first"), random_study(task(0.9), seed=2, name="second")]
    known = knowledge(study, *priors)
    pool = known.objectives[0].pool
    assert pool is not None
    x = known.encoding(study.trials).encode([trial.params for trial in study.trials])
    alone = pool.alone(1)
    assert len(alone.y) == len(priors[1].trials)
    expected = alone.mean(alone.explained(x))
    truth = [-task(0.9)(trial.params)[0] for trial in study.trials]
    assert spearmanr(expected, truth).statistic > 0.9
    blank = pool.__class__(
        pool.x, np.where(pool.study == 1, pool.y, 0), pool.study, pool.parameter, pool.hyper, pool.location
    )
    np.testing.assert_allclose(blank.alone(1).mean(alone.explained(x)), expected)


def test_four_trials_or_equal_values_correlate_with_nothing(study: Study) -> None:
    known = knowledge(study, random_study(task(0.2), seed=1))
    assert {a.correlation for a in agreements(study.trials[:4], known)} == {None}
    assert None not in {a.correlation for a in agreements(study.trials[:5], known)}
    level = [create_trial(params=t.params, distributions=SPACE, values=[1, 1]) for t in study.trials]
    assert {a.correlation for a in agreements(level, known)} == {None}
