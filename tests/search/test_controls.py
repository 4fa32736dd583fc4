"""Which students of the front are measured again, and against what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState

from metasearch.errors import InputError
from metasearch.measure import count_macs
from metasearch.models import NetworkSpec, build_network
from metasearch.search.controls import (
    FINAL_SEEDS,
    START_SEEDS,
    choose,
    companion,
    final_seed,
    propose_control,
    roles_of,
    width_of_macs,
)
from metasearch.search.ledger import Ledger, trial_seed
from metasearch.search.pareto import Front
from metasearch.search.store import FAILURE, ROLE, StudyDescription, create_study
from metasearch.tasks import Task, TaskSource, load_task
from tests.fakes import new_storage
from tests.synthetic import synthetic_task

CONFIG = {"student.family": "mlp", "student.width": 16, "student.depth": 2, "alpha": 0.5, "epochs": 1}
PRUNED = CONFIG | {"pruning_ratio": 0.5}
DESCRIPTION = StudyDescription({}, "", "", "", ["val_accuracy", "macs"], [], 4, 7, "tpe", "", "cpu", "")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(TaskSource("digits"))


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return new_storage(f"sqlite:///{tmp_path / 'studies.db'}")


@pytest.fixture
def study(storage: RDBStorage) -> Study:
    return create_study(storage, "s", DESCRIPTION)


def roles(runs: Study) -> list[dict[str, Any]]:
    return [trial.user_attrs[ROLE] for trial in runs.trials]


def front_of(accuracies: list[float]) -> Front:
    """Return a front whose trial i has accuracies[i], the better the bigger, after a trial no better than luck."""
    front = Front.of(["maximize", "minimize"])
    front.add(99, [0.1, 1.0])
    for number, accuracy in enumerate(accuracies):
        front.add(number, [accuracy, accuracy])
    return front


def test_a_small_front_is_chosen_whole() -> None:
    assert choose(front_of([0.88, 0.9, 0.87])) == [1, 0, 2]
    assert choose(Front.of(["maximize"])) == []


def test_the_best_and_the_knees_of_a_front_are_chosen() -> None:
    front = Front.of(["maximize", "minimize"])
    front.add(99, [0.1, 1e6])
    sizes = {0: (0.91, 72e3), 1: (0.905, 52e3), 2: (0.904, 40e3), 3: (0.903, 11e3), 4: (0.883, 5e3), 5: (0.87, 4.5e3)}
    for number, (accuracy, size) in sizes.items():
        front.add(number, [accuracy, size])
    chosen = choose(front, most=3)
    assert chosen[0] == 0
    assert {3, 4} <= set(chosen)


def test_networks_that_nobody_ships_are_not_chosen() -> None:
    assert choose(front_of([0.34, 0.9, 0.84])) == [1, 2]


def test_final_seeds_are_no_trials_seed() -> None:
    trials = {trial_seed(7, number) for number in range(2000)}
    finals = {final_seed(7, index) for index in range(FINAL_SEEDS)}
    assert len(finals) == FINAL_SEEDS
    assert not finals & trials


def test_a_pruned_distilled_student_gets_every_control(storage: RDBStorage, study: Study, task: Task) -> None:
    found = roles(companion(storage, study, DESCRIPTION, {3: (PRUNED, {"macs": 900})}, task))
    assert [role["role"] for role in found] == ["final"] * FINAL_SEEDS + ["direct", "alone"]
    assert {role["of"] for role in found} == {3}
    direct, alone = found[-2]["config"], found[-1]["config"]
    assert direct["pruning_ratio"] == 0
    assert alone == PRUNED | {"alpha": 0.0}


def test_a_student_with_a_start_of_its_own_is_compared_with_a_random_one(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    config = CONFIG | {"pruning_ratio": 0.0, "student.init": "teacher_slice"}
    found = roles(companion(storage, study, DESCRIPTION, {3: (config, {"macs": 900})}, task))
    assert [role["role"] for role in found] == ["final"] * START_SEEDS + ["alone"] + ["random"] * START_SEEDS
    final, alone, random = found[:START_SEEDS], found[START_SEEDS], found[START_SEEDS + 1 :]
    assert alone["config"] == config | {"alpha": 0.0, "student.init": "random"}  # the teacher's weights are the teacher
    assert all(role["config"] == config | {"student.init": "random"} for role in random)
    assert [role["seed"] for role in random] == [role["seed"] for role in final]


def test_only_the_best_students_start_that_is_not_random_is_compared_over_several_seeds(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    config = CONFIG | {"alpha": 0.0, "pruning_ratio": 0.0, "student.init": "teacher_slice"}
    metrics = {"macs": 900.0}
    random = config | {"student.init": "random"}
    chosen = {7: (random, metrics), 5: (config, metrics), 3: (config, metrics)}
    found = roles(companion(storage, study, DESCRIPTION, chosen, task))
    pairs = {of: sum(role["role"] == "random" for role in found if role["of"] == of) for of in chosen}
    assert pairs == {7: 0, 5: START_SEEDS, 3: 1}


def test_a_schedule_that_ends_at_no_pruning_has_no_direct_control(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    unpruned = {"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.0, "pruning_ratio.end": 0.5}
    found = roles(companion(storage, study, DESCRIPTION, {3: (CONFIG | unpruned, {"macs": 900})}, task))
    assert [role["role"] for role in found] == ["final"] * FINAL_SEEDS + ["alone"]


def test_a_student_without_pruning_or_teacher_needs_no_control(storage: RDBStorage, study: Study, task: Task) -> None:
    config = CONFIG | {"alpha": 0.0, "pruning_ratio": 0.0}
    found = roles(companion(storage, study, DESCRIPTION, {0: (config, {"macs": 900})}, task))
    assert [role["role"] for role in found] == ["final"] * FINAL_SEEDS


def test_the_student_without_the_teacher_makes_as_many_steps_as_with_unlabelled_inputs(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    more = replace(task, unlabelled=task.train.inputs[: len(task.train) // 2])
    config = CONFIG | {"epochs": 10, "fine_tune_epochs": 4}
    alone = roles(companion(storage, study, DESCRIPTION, {3: (config, {"macs": 900})}, more))[-1]["config"]
    assert alone == config | {"alpha": 0.0, "epochs": 15, "fine_tune_epochs": 6}


@pytest.mark.parametrize("macs", [100, 1_000, 5_000, 20_000])
def test_the_direct_student_has_the_width_with_the_nearest_macs(macs: int, task: Task) -> None:
    def distance(width: int) -> float:
        spec = NetworkSpec("mlp", width=width, depth=2)
        network = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
        return abs(count_macs(network, task.input_shape) - macs)

    found = width_of_macs(CONFIG, macs, task)
    assert found is not None
    assert distance(found) == min(distance(width) for width in range(1, 40))


@pytest.mark.parametrize(("macs", "width"), [(1, 8), (15_000, 24), (1e6, 256)])
def test_widths_at_which_a_family_cannot_be_built_are_skipped(macs: float, width: int) -> None:
    task = synthetic_task(shape=(1, 10, 10))  # 24 channels of 8 x 8 pixels from 3 x 3: 13,824 MACs
    config = CONFIG | {"student.family": "tests.user_networks:in_eights"}
    assert width_of_macs(config, macs, task) == width


def test_a_family_that_cannot_be_built_any_more_has_no_direct_control(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    config = PRUNED | {"student.family": "tests.user_networks:raising"}
    found = roles(companion(storage, study, DESCRIPTION, {3: (config, {"macs": 900})}, task))
    assert [role["role"] for role in found] == ["final"] * FINAL_SEEDS + ["alone"]


def test_a_resumed_search_queues_no_run_twice(storage: RDBStorage, study: Study, task: Task) -> None:
    chosen = {3: (PRUNED, {"macs": 900.0})}
    first = len(companion(storage, study, DESCRIPTION, chosen, task).trials)
    again = companion(storage, study, DESCRIPTION, chosen | {4: (CONFIG, {"macs": 900.0})}, task)
    assert len(again.trials) == first + FINAL_SEEDS + 1
    assert {role["of"] for role in roles(again)[first:]} == {4}


def test_a_run_that_its_machine_lost_is_queued_again_and_one_that_failed_is_not(
    storage: RDBStorage, study: Study, task: Task
) -> None:
    chosen = {0: (CONFIG | {"alpha": 0.0}, {"macs": 900.0})}
    runs = companion(storage, study, DESCRIPTION, chosen, task)
    for reason in ("lost", "diverged"):
        trial = runs.ask()
        trial.set_user_attr(FAILURE, {"reason": reason, "message": ""})
        runs.tell(trial, state=TrialState.FAIL)
    again = companion(storage, study, DESCRIPTION, chosen, task).trials
    assert len(again) == FINAL_SEEDS + 1
    assert again[-1].user_attrs[ROLE] == again[0].user_attrs[ROLE]


def test_a_lost_run_is_not_replaced_by_one_without_a_role(storage: RDBStorage, study: Study, task: Task) -> None:
    runs = companion(storage, study, DESCRIPTION, {0: (CONFIG | {"alpha": 0.0}, {"macs": 900.0})}, task)
    books = Ledger(runs, propose_control, target=None, seed=7, objectives=("val_accuracy", "macs"))
    assert books.wanted == FINAL_SEEDS
    number, proposal, seed = books.ask()
    assert (seed, proposal.read_test) == (final_seed(7, 0), True)
    books.tell_failure(number, "lost", "killed", {})
    assert books.wanted == FINAL_SEEDS - 1
    for _ in range(FINAL_SEEDS - 1):
        books.tell_failure(books.ask()[0], "diverged", "nan", {})
    assert books.wanted == 0
    assert len(runs.trials) == FINAL_SEEDS


def test_a_study_that_is_no_companion_has_no_roles(storage: RDBStorage) -> None:
    study = create_study(storage, "t", replace(DESCRIPTION, objectives=["macs"]))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match="is no companion of controls"):
        roles_of(study)
