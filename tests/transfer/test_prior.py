from __future__ import annotations

import optuna

from metasearch.transfer.prior import prior_of


def test_a_study_becomes_a_prior_with_its_objectives_by_name() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.set_metric_names(["val_accuracy", "model_bytes"])
    for _ in range(3):
        trial = study.ask()
        width = trial.suggest_int("width", 1, 8)
        study.tell(trial, [width / 10, width * 100])
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.ask()  # still running
    prior = prior_of(study, metrics=lambda trial: {"macs": trial.params["width"] * 7})
    assert prior.directions == {"val_accuracy": "maximize", "model_bytes": "minimize"}
    assert [trial.state for trial in prior.trials] == ["complete"] * 3 + ["fail"]
    for measured in prior.complete:
        width = measured.params["width"]
        assert measured.metrics == {"val_accuracy": width / 10, "model_bytes": width * 100, "macs": width * 7}
    assert set(prior.distributions) == {"width"}


def test_objectives_without_names_are_numbered() -> None:
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    assert prior_of(study).complete[0].metrics == {"objective_0": 1.0}


def test_a_value_that_is_not_finite_counts_as_a_failure() -> None:
    study = optuna.create_study()
    study.tell(study.ask(), float("inf"))
    prior = prior_of(study)
    assert [(trial.state, dict(trial.metrics)) for trial in prior.trials] == [("fail", {})]


def test_a_range_that_changed_during_a_study_covers_all_its_values() -> None:
    study = optuna.create_study()
    for low, high in ((1, 4), (3, 9)):
        trial = study.ask()
        study.tell(trial, trial.suggest_int("n", low, high) + trial.suggest_float("x", low, high, step=0.5))
    assert prior_of(study).distributions == {
        "n": optuna.distributions.IntDistribution(1, 9),
        "x": optuna.distributions.FloatDistribution(1, 9),
    }


def test_trials_that_do_not_count_are_left_out() -> None:
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    study.tell(study.ask(), 2.0)
    assert [t.metrics for t in prior_of(study, finished=lambda trial: trial.number == 1).trials] == [
        {"objective_0": 2.0}
    ]
