"""What TransferSampler does in a study: every kind of space, result, prior and way to run one."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from metasearch.transfer.encoding import Encoding
from metasearch.transfer.hypervolume import Hypervolume
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.sampler import TransferSampler
from tests.transfer.families import SPACE, best_after, loss, named_study, prior, suggested

GOOD = [prior(task) for task in (1, 2, 3)]
UNIT = FloatDistribution(0, 1)
FEW: dict[str, BaseDistribution] = {
    "a": CategoricalDistribution(["p", "q", "r"]),
    "n": IntDistribution(1, 4),
    "s": FloatDistribution(0, 1, step=1.0),
}


def drawn_params(sampler: TransferSampler, trials: int = 12) -> list[dict[str, Any]]:
    study = named_study(sampler, "loss")
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=trials)
    return [trial.params for trial in study.trials]


def few_suggested(trial: optuna.Trial) -> float:
    a = trial.suggest_categorical("a", ["p", "q", "r"])
    return (a == "q") + abs(trial.suggest_int("n", 1, 4) - 2) + trial.suggest_float("s", 0, 1, step=1.0)


def distinct(study: Study) -> int:
    return len({tuple(sorted(trial.params.items())) for trial in study.trials})


@pytest.mark.parametrize("priors", [[], GOOD[:1]], ids=["cold", "prior"])
def test_the_same_seed_makes_the_same_proposals_and_another_one_others(priors: list[Prior]) -> None:
    first, again, other = (drawn_params(TransferSampler(priors, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("family", "best"), [("convnet", 0.9), ("mlp", 0.1)])
def test_a_prior_that_tried_other_families_is_heard_for_the_one_that_is_fixed(family: str, best: float) -> None:
    optima = {"convnet": 0.9, "mlp": 0.1}
    distributions = {"x": FloatDistribution(0, 1), "family": CategoricalDistribution(list(optima))}
    tried = [{"x": x, "family": name} for x in np.linspace(0, 1, 15).tolist() for name in optima]
    trials = tuple(PriorTrial(params, {"loss": (params["x"] - optima[params["family"]]) ** 2}) for params in tried)
    old = Prior("old", {"loss": "minimize"}, distributions, trials)
    study = named_study(TransferSampler([old], seed=0, fixed={"family": family}), "loss")
    first = study.ask()
    assert abs(first.suggest_float("x", 0, 1) - best) < 0.1
    study.tell(first, 0.0)
    assert study.trials[0].params.keys() == {"x"}
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - best) ** 2, n_trials=4)
    assert distinct(study) == 5


def test_no_configuration_is_tried_twice_while_there_are_others() -> None:
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    study.optimize(few_suggested, n_trials=24)
    assert distinct(study) == 24  # all that there are
    study.optimize(few_suggested, n_trials=2)  # and it goes on


@pytest.mark.parametrize("told", [0, 6], ids=["cold", "prior"])
def test_twelve_trials_try_all_of_twelve_configurations(told: int) -> None:
    def twelve(trial: optuna.Trial) -> float:
        return (trial.suggest_categorical("a", ["p", "q", "r"]) == "q") + trial.suggest_int("n", 1, 4)

    for seed in range(3):
        earlier = optuna.create_study(sampler=RandomSampler(seed=seed))
        earlier.optimize(twelve, n_trials=told)
        study = optuna.create_study(sampler=TransferSampler([earlier] if told else [], seed=seed))
        study.optimize(twelve, n_trials=12)
        assert distinct(study) == 12


def test_more_workers_than_a_portfolio_has_configurations_try_others() -> None:
    every = [{"a": a, "n": n, "s": s} for a in "pqr" for n in (1, 2, 3, 4) for s in (0.0, 1.0)]
    told = tuple(PriorTrial(config, {"loss": float(i)}) for i, config in enumerate(every[:20]))
    known = [Prior(name, {"loss": "minimize"}, FEW, told) for name in ("one", "other")]
    for seed in range(3):
        study = named_study(TransferSampler(known, seed=seed), "loss")
        study.tell(first := study.ask(), few_suggested(first))
        for trial in [study.ask() for _ in range(23)]:
            few_suggested(trial)
        assert distinct(study) == 24


def test_no_configuration_is_tried_twice_by_eight_workers() -> None:
    told = [PriorTrial({"a": "p", "n": 2, "s": s}, {"objective_0": s}) for s in (0.0, 1.0)]
    known = Prior("few", {"objective_0": "minimize"}, FEW, tuple(told))
    for priors in ([], [known]):
        study = optuna.create_study(sampler=TransferSampler(priors, seed=0))
        for _ in range(3):
            trials = [study.ask() for _ in range(8)]
            for trial, value in [(trial, few_suggested(trial)) for trial in trials]:
                study.tell(trial, value)
        assert distinct(study) >= 22  # the first eight know each other only by their plans


def test_eight_workers_that_ask_first_are_sent_apart() -> None:
    study = named_study(TransferSampler(GOOD, seed=0), "loss")
    points = Encoding.of(SPACE).encode([suggested(study.ask()) for _ in range(8)])
    apart = np.abs(points[:, None] - points[None]).max(2) + np.eye(8)
    assert apart.min() > 1e-3


def layered(trial: optuna.Trial) -> float:
    layers = trial.suggest_int("layers", 1, 3)
    return sum(trial.suggest_categorical(f"width_{i}", [1, 2]) for i in range(layers))


def branched(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("pruner", ["none", "l1", "random"]) == "l1":
        return trial.suggest_float("amount", 0, 1) ** 2
    return 1 + trial.suggest_float("rate", 0, 1)


def test_inactive_parameters_do_not_make_a_configuration_new() -> None:
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    study.optimize(layered, n_trials=14)
    assert distinct(study) == 14  # 2 + 4 + 8, all that there are


def test_the_best_branch_of_a_conditional_space_is_found() -> None:
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    study.optimize(branched, n_trials=25)
    assert study.best_value < 0.05
    assert sum(trial.params["pruner"] == "l1" for trial in study.trials[12:]) > 8


@pytest.mark.parametrize("priors", [[], GOOD[:1]], ids=["cold", "prior"])
def test_failed_pruned_and_infinite_results_are_lived_with(priors: list[Prior]) -> None:
    study = named_study(TransferSampler(priors, seed=0), "loss")

    def objective(trial: optuna.Trial) -> float:
        value = loss(suggested(trial), 0)
        trial.report(value, 1)
        if trial.number % 5 == 1:
            raise optuna.TrialPruned
        if trial.number % 5 == 2:
            raise ZeroDivisionError
        return {0: value, 3: float("nan"), 4: float("inf")}.get(trial.number % 5, value)

    study.optimize(objective, n_trials=30, catch=ZeroDivisionError)
    assert len(study.trials) == 30
    assert distinct(study) == 30
    assert study.best_value < 1


def test_priors_are_not_followed_to_failures_again_and_again() -> None:
    study = named_study(TransferSampler(GOOD, seed=0), "loss")

    def runs_only_small(trial: optuna.Trial) -> float:
        value = loss(suggested(trial), 0)
        return float("nan") if trial.params["width"] > 4 else value  # the priors' best are wider

    study.optimize(runs_only_small, n_trials=20)
    assert any(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_priors_are_still_followed_after_a_trial_that_failed_before_it_had_parameters() -> None:
    study = named_study(TransferSampler(GOOD, seed=0), "loss")
    study.tell(study.ask(), state=TrialState.FAIL)
    assert loss(suggested(study.ask()), 0) < 0.5


def test_proposals_become_feasible() -> None:
    study = named_study(TransferSampler(seed=0), "loss")

    def objective(trial: optuna.Trial) -> float:
        value = loss(suggested(trial), 0)  # its best width is 28
        trial.set_constraint("width", trial.params["width"] - 8.0)
        return value

    study.optimize(objective, n_trials=30)
    late = study.trials[15:]
    assert sum(trial.params["width"] <= 8 for trial in late) > 0.6 * len(late)
    assert min(t.value for t in study.trials if t.params["width"] <= 8 and t.value is not None) < 1


def three_objectives(trial: optuna.Trial) -> tuple[float, float, float]:
    params = suggested(trial)
    return loss(params, 0), params["width"] / 64, -params["dropout"]


@pytest.mark.slow
def test_three_objectives_are_improved_faster_than_at_random() -> None:
    measure = Hypervolume.of(np.array([2.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.8]), count=500)

    def volume(sampler: optuna.samplers.BaseSampler) -> float:
        study = named_study(sampler, "loss", "size", "dropout")
        study.optimize(three_objectives, n_trials=25)
        return measure.volume(np.array([trial.values for trial in study.trials]))

    ours = np.mean([volume(TransferSampler(seed=seed)) for seed in range(3)])
    random = np.mean([volume(RandomSampler(seed=seed)) for seed in range(3)])
    assert ours > random + 0.03


def test_good_priors_find_the_optimum_in_fewer_trials() -> None:
    for seed in range(3):
        warm = best_after(TransferSampler(GOOD, seed=seed), task=0, trials=8)
        cold = best_after(TransferSampler(seed=seed), task=0, trials=8)
        assert warm[0] < 0.5  # nearly all random configurations are worse
        assert warm[-1] < 0.1
        assert warm[-1] < cold[-1]


UNFIT: dict[str, Prior] = {
    "no shared objective": replace(GOOD[0], directions={"bleu": "maximize"}, trials=tuple(
        replace(trial, metrics={"bleu": 1.0}) for trial in GOOD[0].trials
    )),
    "no complete trial": replace(GOOD[0], trials=tuple(
        replace(trial, state="fail", metrics={}) for trial in GOOD[0].trials
    )),
    "equal values": replace(GOOD[0], trials=tuple(replace(t, metrics={"loss": 0.1}) for t in GOOD[0].trials)),
    "one trial": replace(GOOD[0], trials=GOOD[0].trials[:1]),
    "other types": Prior(
        "other types",
        {"loss": "minimize"},
        {"act": IntDistribution(0, 3), "lr": CategoricalDistribution([0.1, "auto"]), "width": FloatDistribution(0, 1)},
        (
            PriorTrial({"act": 1, "lr": "auto", "width": 0.5}, {"loss": 1.0}),
            PriorTrial({"act": 2, "lr": 0.1, "width": 0.1}, {"loss": 0.5}),
        ),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFIT)
def test_a_prior_that_does_not_fit_is_lived_with(name: str) -> None:
    assert best_after(TransferSampler([UNFIT[name]], seed=0), task=0, trials=30)[-1] < 0.3


@pytest.mark.parametrize("name", UNFIT)
def test_a_prior_that_does_not_fit_does_not_spoil_a_good_one(name: str) -> None:
    assert best_after(TransferSampler([UNFIT[name], GOOD[1]], seed=0), task=0, trials=10)[-1] < 0.5


def test_a_prior_of_one_objective_serves_a_study_of_two() -> None:
    study = named_study(TransferSampler(GOOD, seed=0), "loss", "size")
    study.optimize(lambda trial: three_objectives(trial)[:2], n_trials=12)
    assert study.trials[0].values[0] < 0.5


def test_a_space_of_one_categorical_parameter_is_searched_through() -> None:
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    study.optimize(lambda trial: float(ord(trial.suggest_categorical("c", list("dcbae")))), n_trials=10)
    assert {trial.params["c"] for trial in study.trials[:8]} >= set("abc")
    assert study.best_params == {"c": "a"}


def test_a_range_that_changes_is_followed() -> None:
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    for low, high in ((0, 1), (0.5, 4), (3, 9), (0, 10)):
        study.optimize(lambda t, ends=(low, high): abs(t.suggest_float("x", *ends) - 5), n_trials=6)  # type: ignore[misc]
        assert all(low <= trial.params["x"] <= high for trial in study.trials[-6:])
    assert study.best_value < 0.5


def test_a_fixed_parameter_stays_fixed_and_the_rest_is_searched() -> None:
    sampler = PartialFixedSampler({"act": "tanh"}, TransferSampler(GOOD, seed=0))
    study = named_study(sampler, "loss")
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=12)
    assert {trial.params["act"] for trial in study.trials} == {"tanh"}
    assert study.best_value < 0.9  # 0.6 is the least with it


class Watched(TransferSampler):
    """A sampler that knows how many threads were in it at once, at most; it takes its time, so that others come."""

    inside = most = 0

    def _proposals(
        self, study: Study, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution], count: int
    ) -> list[dict[str, Any]]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        found = super()._proposals(study, trials, search_space, count)
        self.inside -= 1
        return found


def test_threads_that_share_a_sampler_plan_one_after_the_other() -> None:
    sampler = Watched(GOOD[:1], seed=0)
    study = named_study(sampler, "loss")
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=14, n_jobs=4)
    assert sampler.most == 1
    assert distinct(study) == 14
    assert study.best_value < 1


def test_two_studies_share_a_sampler() -> None:
    def proposed(*, shared: bool) -> dict[str, Any]:
        sampler = TransferSampler(GOOD, seed=0)
        study, other = named_study(sampler, "loss"), named_study(sampler, "loss")
        trial = study.ask()
        trial.suggest_categorical("act", ["relu", "gelu", "tanh"])  # plans all of it
        if shared:
            suggested(other.ask())
        return suggested(trial)

    assert proposed(shared=True) == proposed(shared=False)


@pytest.mark.parametrize("act", ["selu", 3])
def test_an_added_trial_with_a_choice_that_the_space_lacks_is_ignored(act: str | int) -> None:
    study = named_study(TransferSampler(GOOD[:1], seed=0), "loss")
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=2)
    kind: BaseDistribution = CategoricalDistribution(["selu"]) if act == "selu" else IntDistribution(0, 9)
    params = {"act": act, "dropout": 0.0, "lr": 0.1, "width": 4}
    study.add_trial(create_trial(params=params, distributions={**SPACE, "act": kind}, value=-1.0))
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=6)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert {trial.params["act"] for trial in study.trials[3:]} <= {"relu", "gelu", "tanh"}


def test_an_added_trial_with_a_number_that_is_none_of_the_choices_is_ignored() -> None:
    sizes, others = CategoricalDistribution([8, 16, 32]), CategoricalDistribution([12])
    study = optuna.create_study(sampler=TransferSampler(seed=0))
    study.add_trial(create_trial(params={"size": 8, "x": 0.5}, distributions={"size": sizes, "x": UNIT}, value=0.0))
    study.add_trial(create_trial(params={"size": 12, "x": 0.5}, distributions={"size": others, "x": UNIT}, value=-1.0))
    for _ in range(9):
        trial = study.ask()
        study.tell(trial, trial.suggest_categorical("size", [8, 16, 32]) * trial.suggest_float("x", 0, 1))
    assert {trial.params["size"] for trial in study.trials[2:]} <= {8, 16, 32}


def test_a_prior_that_tried_other_numbers_is_followed_to_the_nearest_choice() -> None:
    tried, here = [10, 30, 60], [8, 16, 32, 64]
    trials = tuple(PriorTrial({"x": x, "size": n}, {"loss": x + abs(n - 60)}) for n in tried for x in (0.1, 0.5, 0.9))
    old = Prior("old", {"loss": "minimize"}, {"x": UNIT, "size": CategoricalDistribution(tried)}, trials)
    for seed in range(3):
        trial = named_study(TransferSampler([old], seed=seed), "loss").ask({"x": UNIT})
        assert trial.suggest_categorical("size", here) == 64


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_a_copy_goes_on_as_the_sampler_would(copied: Callable[[TransferSampler], TransferSampler]) -> None:
    sampler = TransferSampler(GOOD[:1], seed=0)
    study = named_study(sampler, "loss")
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=5)
    twin = copied(sampler)
    expected, found = (s.sample_relative(study, study.trials[-1], SPACE) for s in (sampler, twin))
    assert expected == found


def test_a_study_in_a_database_is_proposed_the_same_as_one_in_memory(tmp_path: Path) -> None:
    def params(storage: str | None) -> list[dict[str, Any]]:
        study = named_study(TransferSampler(GOOD[:1], seed=0), "loss", storage=storage)
        study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=6)
        return [trial.params for trial in study.trials]

    assert params(f"sqlite:///{tmp_path}/study.db") == params(None)


def test_enqueued_trials_are_tried_first_and_learned_from() -> None:
    study = named_study(TransferSampler(seed=0), "loss")
    best = {"act": "gelu", "dropout": 0.2, "lr": 0.001, "width": 28}
    study.enqueue_trial(best)
    study.enqueue_trial({"act": "gelu"})
    study.optimize(lambda trial: loss(suggested(trial), 0), n_trials=12)
    assert study.trials[0].params == best
    assert study.trials[1].params["act"] == "gelu"
    assert distinct(study) == 12


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_computed_objective_is_known_exactly(direction: Literal["minimize", "maximize"]) -> None:
    sign = 1 if direction == "minimize" else -1

    def needle(params: Mapping[str, Any]) -> float:
        return sign * float(params["n"] != 37)  # no model of other values could tell

    study = optuna.create_study(direction=direction, sampler=TransferSampler(seed=0, computed={"objective_0": needle}))
    study.optimize(lambda trial: needle({"n": trial.suggest_int("n", 1, 64)}), n_trials=12)
    assert study.best_value == 0


def test_a_computed_objective_is_only_computed_where_it_stands_beside_a_measured_one() -> None:
    calls: list[Mapping[str, Any]] = []

    def size(params: Mapping[str, Any]) -> float:
        calls.append(params)
        return float(params["width"])

    study = named_study(TransferSampler(GOOD, seed=0, computed={"size": size}), "loss", "size")
    study.optimize(lambda trial: (three_objectives(trial)[0], size(trial.params)), n_trials=10)
    assert len(calls) > 1000  # for every candidate
    front = [trial.values for trial in study.best_trials]
    assert len(front) >= 3
    assert min(values[0] for values in front) < 0.5


def test_a_computed_objective_is_given_parameters_that_no_prior_had_and_fixed_ones() -> None:
    def size(params: Mapping[str, Any]) -> float:
        return float(params["width"] * params["bits"] * params["copies"])

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        value = three_objectives(trial)[0]
        trial.suggest_categorical("bits", [8, 16])
        trial.suggest_int("copies", 2, 2)
        return value, size(trial.params)

    study = named_study(TransferSampler(GOOD, seed=0, computed={"size": size}), "loss", "size")
    study.optimize(objective, n_trials=6)
    assert all(trial.values[1] == size(trial.params) for trial in study.trials)


def with_trials(sampler: TransferSampler, count: int) -> Study:
    rng, encoding = np.random.default_rng(0), Encoding.of(SPACE)
    study = named_study(sampler, "loss")
    for config in [encoding.draw(rng) for _ in range(count)]:
        study.add_trial(create_trial(params=config, distributions=SPACE, value=loss(config, 0)))
    return study


def seconds_to_ask(study: Study) -> float:
    start = time.process_time()
    suggested(study.ask())
    return time.process_time() - start


def test_a_thousand_own_trials_are_no_burden() -> None:
    study = with_trials(TransferSampler(seed=0), 1000)
    seconds_to_ask(study)
    assert seconds_to_ask(study) < 5


@pytest.mark.slow
def test_a_hundred_long_priors_are_no_burden() -> None:
    study = with_trials(TransferSampler([prior(task, trials=500) for task in range(100)], seed=0), 50)
    assert seconds_to_ask(study) < 120  # fits the pool, once
    assert seconds_to_ask(study) < 8
