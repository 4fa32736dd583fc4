"""The pool: distinct, even, conditional, and the same on every task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from metasearch.search.pool import evaluate_pool, sobol_pool
from metasearch.search.priors import builtin_priors, builtin_space, find_priors
from metasearch.search.runner import Resources
from metasearch.search.space import load_space, parse_space
from metasearch.search.store import load_study
from metasearch.tasks import TaskSource
from tests.fakes import new_storage

SMALL = """
objectives: [val_accuracy, model_bytes]
policies:
  learning_rate: {kind: cosine, start: {low: 0.005, high: 0.05, log: true}}
  student.width: {low: 2, high: 4}
parameters:
  student.family: mlp
  student.depth: {choices: [1, 2]}
  alpha: 0.0
  epochs: 1
  fine_tune_epochs: 0
"""


def test_a_pool_has_distinct_configurations_that_the_space_permits() -> None:
    space = load_space("distill_compress")
    pool = sobol_pool(space, 160)
    assert len({tuple(sorted(values.items())) for values in pool}) == 160
    for values in pool:
        space.check_parameters(values, "pool")


def test_a_pool_is_even_and_always_the_same() -> None:
    space = load_space("distill_compress")
    pool = sobol_pool(space, 160, seed=3)
    families = Counter(values["student.family"] for values in pool)
    assert max(families.values()) - min(families.values()) <= 8
    low, high = (sum(1 for values in pool if float(values["alpha"]) < share) for share in (0.475, 0.825))
    assert abs(low - 40) <= 4
    assert abs(high - 120) <= 4
    assert sobol_pool(space, 160, seed=3) == pool
    assert sobol_pool(space, 160, seed=4) != pool


def test_conditional_parameters_are_there_only_where_they_are_active() -> None:
    for values in sobol_pool(load_space("distill_compress"), 64):
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        assert ("loss" in values) == (values["student.family"] != "mlp")


def test_the_pool_of_the_priors_that_ship_can_be_made_again() -> None:
    pool = sobol_pool(builtin_space(), 160)
    assert all([trial.params for trial in prior.trials] == pool for prior in builtin_priors())


def test_a_small_space_gives_all_it_has() -> None:
    text = SMALL.replace("{low: 0.005, high: 0.05, log: true}", "0.01")
    assert len(sobol_pool(parse_space(text, place="small.yaml"), 50)) == 6


@pytest.mark.slow
def test_the_same_pool_runs_on_every_task_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path))
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    space = parse_space(SMALL, place="small.yaml")
    tasks = {name: TaskSource("digits", max_train=count) for name, count in (("few", 60), ("more", 80))}
    made = evaluate_pool(storage, tasks, space, size=4, resources=Resources(workers=1))
    assert next(made) == "few"
    made.close()  # as if its driver had died between two tasks
    before = [trial.datetime_complete for trial in load_study(storage, "few").trials]
    assert list(evaluate_pool(storage, tasks, space, size=4, resources=Resources(workers=1))) == ["few", "more"]
    assert [trial.datetime_complete for trial in load_study(storage, "few").trials] == before
    few, more = (known.prior for known in find_priors(storage, ["few", "more"]))
    assert [trial.params for trial in few.trials] == [trial.params for trial in more.trials] == sobol_pool(space, 4)
    assert {"val_accuracy", "model_bytes", "macs"} <= few.complete[0].metrics.keys()
