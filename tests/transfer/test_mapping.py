"""A mapped prior lies in the new space, and every value that moved or went is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.transfer.mapping import MappedPrior, fixed_choices, map_prior, nearest, summaries
from metasearch.transfer.prior import Prior, PriorTrial

ACCURACY = {"val_accuracy": "maximize"}
UNIT = FloatDistribution(0, 1)


def prior_of_values(
    distributions: Mapping[str, BaseDistribution], *trials: dict[str, Any], fixed: Mapping[str, Any] | None = None
) -> Prior:
    """Return a prior with one complete trial for each mapping of parameters."""
    return Prior(
        name="old",
        directions=ACCURACY,
        distributions=distributions,
        trials=tuple(PriorTrial(params, {"val_accuracy": 0.5, "macs": 9.0}) for params in trials),
        fixed=fixed or {},
    )


DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(-2, 3),
    FloatDistribution(0.01, 10, log=True),
    FloatDistribution(0.1, 0.9, step=0.1),
    IntDistribution(1, 9),
    IntDistribution(2, 20, step=6),
    IntDistribution(1, 64, log=True),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@given(value=st.floats(-100, 100) | st.integers(-100, 100))
def test_the_nearest_value_is_permitted_and_none_is_nearer(distribution: BaseDistribution, value: float) -> None:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    found = nearest(value, distribution)
    assert type(found) is (int if isinstance(distribution, IntDistribution) else float)
    if distribution.step is None:
        permitted = [min(max(value, distribution.low), distribution.high)]
    else:
        steps = round((distribution.high - distribution.low) / distribution.step)
        permitted = [distribution.low + k * distribution.step for k in range(steps + 1)]
    assert distribution.low <= found <= distribution.high
    assert min(abs(found - p) for p in permitted) < 1e-9
    assert abs(found - value) <= min(abs(p - value) for p in permitted) + 1e-9


@given(
    st.sampled_from(DISTRIBUTIONS),
    st.sampled_from(DISTRIBUTIONS),
    st.lists(st.floats(-100, 100), min_size=1, max_size=5),
)
def test_mapping_to_the_same_space_changes_nothing(old: Any, new: Any, values: list[float]) -> None:
    once = map_prior(prior_of_values({"x": old}, *({"x": nearest(v, old)} for v in values)), {"x": new}, ACCURACY)
    twice = map_prior(once.prior, {"x": new}, ACCURACY)
    assert twice.prior == once.prior
    assert twice.clipped == {}


def test_shared_parameters_are_kept_and_others_dropped() -> None:
    prior = prior_of_values({"a": UNIT, "b": UNIT}, {"a": 0.1, "b": 0.2})
    mapped = map_prior(prior, {"b": UNIT, "c": UNIT}, ACCURACY)
    assert (mapped.kept, mapped.dropped, mapped.absent) == (("b",), ("a",), ("c",))
    assert [trial.params for trial in mapped.prior.trials] == [{"b": 0.2}]
    assert mapped.prior.distributions == {"b": UNIT, "c": UNIT}


def test_values_outside_the_new_range_are_clipped_and_counted() -> None:
    old = {"a": FloatDistribution(0, 10), "n": IntDistribution(0, 99)}
    prior = prior_of_values(old, {"a": 9.0, "n": 7}, {"a": 0.5, "n": 50}, {"a": -0.0, "n": 40})
    mapped = map_prior(prior, {"a": UNIT, "n": IntDistribution(8, 40, step=4)}, ACCURACY)
    assert [trial.params for trial in mapped.prior.trials] == [
        {"a": 1.0, "n": 8},
        {"a": 0.5, "n": 40},
        {"a": 0.0, "n": 40},
    ]
    assert mapped.clipped == {"a": 1, "n": 2}


@pytest.mark.parametrize(
    ("value", "distribution", "found"),
    [
        (3, FloatDistribution(0, 9), 3.0),
        (3.0, IntDistribution(0, 9), 3),
        (3.4, IntDistribution(0, 9), 3),
        (64, CategoricalDistribution((32, 64)), 64),
        (64.0, CategoricalDistribution((32, 64)), 64),
        (50, CategoricalDistribution((32, 64, 8)), 64),
        (48, CategoricalDistribution((32, 64)), 32),
        (True, CategoricalDistribution((1, True)), True),
        (1, CategoricalDistribution((True, 1)), 1),
        (None, CategoricalDistribution(("a", None)), None),
    ],
)
def test_a_number_stays_a_number_whatever_kind_it_was(value: Any, distribution: BaseDistribution, found: Any) -> None:
    assert repr(nearest(value, distribution)) == repr(found)


@pytest.mark.parametrize(
    ("value", "distribution"),
    [
        (48, CategoricalDistribution((32, "all"))),
        ("64", CategoricalDistribution((32, 64))),
        (1, CategoricalDistribution((True, False))),
        ("sgd", UNIT),
        (True, UNIT),
        (None, IntDistribution(0, 1)),
    ],
)
def test_what_has_no_like_is_refused(value: Any, distribution: BaseDistribution) -> None:
    with pytest.raises(ValueError, match="is no"):
        nearest(value, distribution)


def test_trials_of_a_choice_that_is_no_more_are_left_out() -> None:
    old = CategoricalDistribution(("sgd", "adamw", "lion"))
    prior = prior_of_values({"o": old, "a": UNIT}, {"o": "sgd", "a": 0.1}, {"o": "lion", "a": 0.2}, {"a": 0.3})
    mapped = map_prior(
        prior, {"o": CategoricalDistribution(("adamw", "sgd")), "a": FloatDistribution(0, 0.15)}, ACCURACY
    )
    assert [trial.params for trial in mapped.prior.trials] == [{"o": "sgd", "a": 0.1}, {"a": 0.15}]
    assert mapped.left_out == 1
    assert mapped.clipped == {"a": 1}  # not that of the trial that went


def test_what_the_old_space_fixed_is_filled_in_and_the_rest_stays_absent() -> None:
    fixed = {"m": 0.99, "loss": "kd", "gone": "x", "other": 3}
    prior = prior_of_values({"a": UNIT}, {"a": 0.1}, {"a": 0.2}, fixed=fixed)
    new = {
        "a": UNIT,
        "m": FloatDistribution(0, 0.9),
        "loss": CategoricalDistribution(("dkd", "kd")),
        "gone": CategoricalDistribution(("y", "z")),
        "never": UNIT,
    }
    mapped = map_prior(prior, new, ACCURACY)
    assert mapped.filled == {"m": 0.9, "loss": "kd"}
    assert mapped.absent == ("gone", "never")
    assert [dict(trial.params) for trial in mapped.prior.trials] == [
        {"a": 0.1, "m": 0.9, "loss": "kd"},
        {"a": 0.2, "m": 0.9, "loss": "kd"},
    ]
    assert mapped.prior.fixed == {"other": 3}


def test_a_prior_of_a_program_without_a_choice_of_starts_counts_as_random() -> None:
    new = {
        "a": UNIT,
        "student.init": CategoricalDistribution(("random", "teacher_slice")),
        "source_weight": FloatDistribution(0, 1),
    }
    prior = prior_of_values({"a": UNIT}, {"a": 0.1})
    ours = replace(prior, versions={"metasearch": "0.1.0"})
    mapped = map_prior(ours, new, ACCURACY)
    assert mapped.filled == {"student.init": "random", "source_weight": 0.0}
    assert [dict(t.params) for t in mapped.prior.trials] == [{"a": 0.1, "student.init": "random", "source_weight": 0.0}]
    assert map_prior(prior, new, ACCURACY).absent == ("student.init", "source_weight")  # of another program
    sliced = replace(ours, fixed={"student.init": "teacher_slice"})
    assert map_prior(sliced, new, ACCURACY).filled["student.init"] == "teacher_slice"


def test_what_the_conditions_of_the_new_space_rule_out_is_taken_out_of_a_trial() -> None:
    optimizers = CategoricalDistribution(("sgd", "adamw"))
    new = {"o": optimizers, "m": UNIT, "w": UNIT}
    prior = prior_of_values(
        {"o": optimizers, "w": FloatDistribution(0, 9)},
        {"o": "sgd", "w": 5.0},
        {"o": "adamw", "w": 6.0},
        fixed={"m": 0.9},
    )
    mapped = map_prior(
        prior,
        new,
        ACCURACY,
        active=lambda params: {"o", "of the space alone", *(("m",) if params["o"] == "sgd" else ("w",))},
    )
    assert [trial.params for trial in mapped.prior.trials] == [{"o": "sgd", "m": 0.9}, {"o": "adamw", "w": 1.0}]
    assert mapped.clipped == {"w": 1}


def test_a_number_moves_to_the_nearest_of_choices_that_are_numbers() -> None:
    sizes = CategoricalDistribution((10, 25, 50))
    old = {"a": UNIT, "size": CategoricalDistribution((16, 64, 128))}
    prior = prior_of_values(old, {"a": 0.1, "size": 16}, {"a": 0.2, "size": 128})
    mapped = map_prior(prior, {"a": UNIT, "size": sizes}, ACCURACY)
    assert [trial.params["size"] for trial in mapped.prior.trials] == [10, 50]
    assert mapped.clipped == {"size": 2}
    assert mapped.left_out == 0
    mixed = CategoricalDistribution((10, "all"))
    assert map_prior(prior, {"a": UNIT, "size": mixed}, ACCURACY).refused != ""


def test_choices_that_the_new_space_fixes_stay_in_the_trials_of_a_prior() -> None:
    old = {"a": UNIT, "family": CategoricalDistribution(("convnet", "mlp")), "epochs": FloatDistribution(1, 9)}
    trials = ({"a": 0.1, "family": "mlp", "epochs": 3.0}, {"a": 0.2, "family": "convnet", "epochs": 3.0})
    prior = prior_of_values(old, *trials)
    mapped = map_prior(prior, {"a": UNIT}, ACCURACY, fixed={"family": "convnet", "epochs": 5.0, "elsewhere": "x"})
    assert [trial.params for trial in mapped.prior.trials] == [
        {"a": 0.1, "family": "mlp"},
        {"a": 0.2, "family": "convnet"},
    ]
    assert mapped.outcome.endswith("1 kept, 1 fixed here (family), 1 dropped (epochs)")


def test_fixed_choices_are_those_that_some_prior_tried_otherwise() -> None:
    families = CategoricalDistribution(("convnet", "mlp"))
    priors = [
        prior_of_values(
            {"a": UNIT, "family": families}, {"a": 0.1, "family": "mlp"}, fixed={"loss": "kd", "epochs": 3}
        ),
        prior_of_values({"a": UNIT}, {"a": 0.1}, fixed={"loss": "dkd", "optimizer": "sgd"}),
    ]
    fixed = {"family": "resnet", "loss": "kd", "optimizer": "sgd", "epochs": 5, "augment": False}
    assert fixed_choices(priors, fixed) == {
        "family": CategoricalDistribution(("resnet", "convnet", "mlp")),
        "loss": CategoricalDistribution(("kd", "dkd")),
    }


def test_a_metric_serves_as_an_objective_though_the_old_study_did_not_improve_it() -> None:
    mapped = map_prior(prior_of_values({"a": UNIT}, {"a": 0.5}), {"a": UNIT}, {"macs": "minimize", "ece": "minimize"})
    assert mapped.prior.directions == {"macs": "minimize"}
    assert mapped.refused == ""


def test_a_metric_that_some_complete_trial_lacks_is_not_shared() -> None:
    trials = (PriorTrial({"a": 0.5}, {"x": 1.0, "y": 2.0}), PriorTrial({"a": 0.5}, {"x": 1.0}))
    prior = Prior("old", {"x": "minimize"}, {"a": UNIT}, (*trials, PriorTrial({"a": 0.1}, {}, "fail")))
    assert map_prior(prior, {"a": UNIT}, {"x": "minimize", "y": "minimize"}).prior.directions == {"x": "minimize"}


def test_stopped_and_failed_trials_come_along_with_their_curves() -> None:
    trials = (PriorTrial({"a": 0.5}, {"val_accuracy": 1.0}), PriorTrial({"a": 0.1}, {}, "pruned", (0.2, 0.3)))
    mapped = map_prior(Prior("old", ACCURACY, {"a": UNIT}, trials), {"a": UNIT}, ACCURACY)
    assert mapped.prior.trials == trials


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        (prior_of_values({"b": UNIT}, {"b": 0.5}), "it shares no parameter"),
        (
            Prior("old", {"x": "minimize"}, {"a": UNIT}, (PriorTrial({"a": 1.0}, {"x": 1.0}),)),
            "it measured none of val",
        ),
        (Prior("old", ACCURACY, {"a": UNIT}, (PriorTrial({"a": 1.0}, {}, "pruned"),)), "no trial is complete"),
        (prior_of_values({"a": CategoricalDistribution(("x",))}, {"a": "x"}), "every complete trial has a choice that"),
    ],
)
def test_a_prior_that_cannot_be_used_says_why(prior: Prior, reason: str) -> None:
    mapped = map_prior(prior, {"a": UNIT}, ACCURACY)
    assert mapped.refused.startswith(reason)
    (line,) = summaries([mapped])
    assert line.startswith(f"prior old: not used: {reason}")


def test_the_summary_counts_everything_in_one_line() -> None:
    old = {"a": FloatDistribution(0, 9), "b": UNIT, "o": CategoricalDistribution(("x", "y"))}
    prior = prior_of_values(old, {"a": 5.0, "b": 0.1, "o": "x"}, {"a": 0.5, "b": 0.1, "o": "y"}, fixed={"m": 0.9})
    new = {"a": UNIT, "o": CategoricalDistribution(("x", "z")), "m": UNIT, "n": UNIT}
    assert summaries([map_prior(prior, new, ACCURACY | {"macs": "minimize"})]) == [
        "prior old: 1 trials for val_accuracy, macs; parameters 2 kept, 1 dropped (b), 1 filled (m=0.9), "
        "1 unknown there (n); 1 values clipped (a 1); 1 trials left out, of choices that the space does not have"
    ]


def test_priors_that_only_names_and_numbers_of_trials_tell_apart_share_a_line() -> None:
    def mapped(name: str, trials: int, parameter: str = "a") -> MappedPrior:
        prior = prior_of_values({parameter: UNIT}, *({parameter: i / 9} for i in range(trials)))
        return map_prior(replace(prior, name=name), {"a": UNIT, "b": UNIT}, ACCURACY)

    priors = [
        mapped("p", 4),
        mapped("q", 2, "b"),
        mapped("r", 3),
        mapped("s", 2, "x"),
        mapped("t", 4),
        mapped("u", 1, "y"),
    ]
    assert summaries(priors) == [
        "priors p, r, t: 3 to 4 trials each for val_accuracy; parameters 1 kept, 1 unknown there (b)",
        "prior q: 2 trials for val_accuracy; parameters 1 kept, 1 unknown there (a)",
        "priors s, u: not used: it shares no parameter",
    ]
    assert summaries(priors[::4])[0].startswith("priors p, t: 4 trials each for val_accuracy")
    assert summaries([]) == []
