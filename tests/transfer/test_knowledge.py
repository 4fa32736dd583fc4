from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from metasearch.transfer import gp
from metasearch.transfer import knowledge as module
from metasearch.transfer.encoding import Encoding, Params
from metasearch.transfer.knowledge import Knowledge, thinned
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.results import Results
from tests.transfer.families import SPACE, inverted, loss, prior, shuffled

LOSS = {"loss": "minimize"}
X: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1)}


def own_trials(count: int, task: int = 0, seed: int = 5) -> list[FrozenTrial]:
    rng, encoding = np.random.default_rng(seed), Encoding.of(SPACE)
    drawn = [encoding.draw(rng) for _ in range(count)]
    return [create_trial(params=config, distributions=SPACE, value=loss(config, task)) for config in drawn]


def weight_of_priors(priors: list[Prior], count: int) -> float:
    """Return what the prior studies count for, after so many own trials."""
    knowledge = Knowledge.of(priors, SPACE, LOSS)
    results = Results.of(own_trials(count), knowledge.encoding([]), knowledge.signs, {})
    return float(knowledge.beliefs(results)[0].weights[0])


def test_misleading_priors_lose_their_weight_and_good_ones_keep_it() -> None:
    bad = [prior(task, change=inverted) for task in (1, 2, 3)]
    good = [prior(task) for task in (1, 2, 3)]
    assert weight_of_priors(bad, 20) < 0.2
    assert weight_of_priors(good, 20) > 0.8
    assert weight_of_priors(bad, 2) > weight_of_priors(bad, 20)


def doubted(priors: list[Prior], count: int) -> bool:
    knowledge = Knowledge.of(priors, SPACE, LOSS)
    return knowledge.doubted(Results.of(own_trials(count), knowledge.encoding([]), knowledge.signs, {}))


def test_priors_without_anything_in_common_are_doubted_before_any_result_and_good_ones_never() -> None:
    bad = [prior(task, trials=80, change=shuffled) for task in (1, 2, 3)]
    knowledge = Knowledge.of(bad, SPACE, LOSS)
    assert [objective.pool for objective in knowledge.objectives] == [None]
    assert doubted(bad, 0)
    for count in (0, 1, 5, 20):
        assert not doubted([prior(task) for task in (1, 2, 3)], count)


def test_priors_that_agree_on_what_is_wrong_are_doubted_once_results_say_so() -> None:
    wrong = [prior(task, change=inverted) for task in (1, 2, 3)]
    assert not doubted(wrong, 0)
    assert doubted(wrong, 20)


def test_beliefs_follow_the_priors_first_and_the_own_results_later() -> None:
    knowledge = Knowledge.of([prior(task, change=inverted) for task in (1, 2)], SPACE, LOSS)
    rng, encoding = np.random.default_rng(0), Encoding.of(SPACE)
    configurations = [encoding.draw(rng) for _ in range(60)]
    truth = [loss(config, 0) for config in configurations]

    def agreement(trials: list[FrozenTrial]) -> float:
        results = Results.of(trials, encoding, knowledge.signs, {})
        return float(np.corrcoef(knowledge.beliefs(results)[0].mean(encoding.encode(configurations)), truth)[0, 1])

    assert agreement([]) < -0.5
    assert agreement(own_trials(40)) > 0.5


def test_an_objective_that_no_prior_measured_is_believed_from_own_results_alone() -> None:
    knowledge = Knowledge.of([prior(1)], SPACE, {"loss": "minimize", "accuracy": "maximize"})
    assert [o.pool is None for o in knowledge.objectives] == [False, True]
    assert knowledge.signs.tolist() == [1, -1]
    for count in (0, 1, 5):  # also before the first result, when nothing is known of it
        trials = own_trials(count)
        two = [create_trial(params=t.params, distributions=SPACE, values=[*t.values, 1.0]) for t in trials]
        believed = knowledge.beliefs(Results.of(two, knowledge.encoding([]), knowledge.signs, {}))[1]
        assert len(believed.processes) == 1
        found = believed.predict(np.full((3, 6), 0.5))[0]
        assert np.isfinite(found.mean).all()
        assert (found.deviation > 0).all()


def test_priors_that_share_nothing_are_left_out() -> None:
    other = replace(prior(1), distributions=X, trials=(PriorTrial({"x": 0.5}, {"loss": 1.0}),))
    failed = replace(prior(1), trials=(PriorTrial({"lr": 0.1}, {}, "fail"),))
    assert [len(Knowledge.of([p], SPACE, LOSS).priors) for p in (prior(1), other, failed)] == [1, 0, 0]
    assert Knowledge.of([prior(1)], SPACE, {"bleu": "maximize"}).priors == ()


def tiny(name: str, points: list[tuple[float, float, float]]) -> Prior:
    trials = tuple(PriorTrial({"x": x}, {"a": a, "b": b}) for x, a, b in points)
    return Prior(name, {"a": "minimize", "b": "maximize"}, X, trials)


def test_starts_are_the_fronts_of_the_priors_in_turn() -> None:
    first = tiny("first", [(0.1, 1, 1), (0.2, 2, 2), (0.3, 2, 1), (0.4, 3, 3)])
    second = tiny("second", [(0.5, 5, 0), (0.6, 4, 9)])
    knowledge = Knowledge.of([first, second], X, {"a": "minimize", "b": "maximize"})
    starts: list[Params] = knowledge.starts
    assert [start["x"] for start in starts] == [0.1, 0.6, 0.2, 0.4]


@pytest.mark.slow
def test_many_priors_are_thinned_but_each_is_heard() -> None:
    priors = [prior(task, trials=60) for task in range(40)]
    pool = Knowledge.of(priors, SPACE, LOSS).objectives[0].pool
    assert pool is not None
    assert len(pool.y) <= module.MOST_POINTS
    assert len(set(pool.study.tolist())) == 40


def test_hyperparameters_are_fitted_again_only_after_a_share_of_new_results(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    real = gp.fit

    def counted(x: np.ndarray, *args: object, **kwargs: object) -> object:
        fitted.append(len(x))
        return real(x, *args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(module, "fit", counted)
    knowledge, trials = Knowledge.of([], SPACE, LOSS), own_trials(60)
    for count in range(1, 61):
        knowledge.beliefs(Results.of(trials[:count], knowledge.encoding([]), knowledge.signs, {}))[0]
    assert 10 < len(fitted) < 50
    assert fitted == sorted(set(fitted))


def test_a_constraint_is_believed_from_the_trials_that_measured_it() -> None:
    trials = own_trials(30)
    for trial in trials[:20]:
        trial.set_constraint("width", trial.params["width"] - 8)
    knowledge = Knowledge.of([], SPACE, LOSS)
    results = Results.of(trials, knowledge.encoding([]), knowledge.signs, {})
    [believed] = knowledge.constraints(results)
    assert all(len(process.y) == 20 for process in believed.processes)
    config = {"act": "gelu", "dropout": 0.4, "lr": 0.01}
    small, large = believed.mean(results.encoding.encode([{**config, "width": 2}, {**config, "width": 60}]))
    assert small < 0 < large


def test_conditions_are_learned_from_priors_and_own_trials() -> None:
    space = X | {"c": CategoricalDistribution(["p", "q"])}
    told = [PriorTrial({"c": "p", "x": 0.5}, {"loss": 1.0}), PriorTrial({"c": "q"}, {"loss": 2.0})]
    knowledge = Knowledge.of([Prior("one", LOSS, space, tuple(told))], space, LOSS)
    assert not knowledge.encoding([]).conditions.permits("x", {"c": "q"})
    own = create_trial(params={"c": "q", "x": 0.1}, distributions=space, value=1.0)
    assert knowledge.encoding([own]).conditions.permits("x", {"c": "q"})


def test_thinned_configurations_are_even_and_few() -> None:
    kept = thinned([{"x": i} for i in range(1000)], most=100)
    assert [config["x"] for config in kept] == list(range(0, 1000, 10))
