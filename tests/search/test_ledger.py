"""The books of a study: exactly N finished trials, whatever dies when."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import Study
from optuna.trial import TrialState

from metasearch.records import EpochReport, TrialResult
from metasearch.search.attempts import RETRIES
from metasearch.search.early_stopping import SuccessiveHalving
from metasearch.search.ledger import MOST_LOST, Ledger, Proposal, trial_seed
from metasearch.search.objectives import Constraint
from metasearch.search.samplers import make_sampler
from metasearch.search.store import FAILURE, LEFT, LOSSES, LOST, RESULT, is_finished
from tests.fakes import new_storage

CURVE = [EpochReport("distill", epoch, 3, 0.1, 0.5, 10, 0.1, 1.0, 0.1) for epoch in (1, 2)]


def propose(trial: optuna.Trial) -> Proposal:
    return Proposal({"a": trial.suggest_float("a", 0, 1), "b": trial.suggest_int("b", 1, 1000)})


def result(accuracy: float, macs: float, **more: float) -> TrialResult:
    return TrialResult({}, 0, {"val_accuracy": accuracy, "macs": macs, **more})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    study.sampler = make_sampler("random", seed=0, trials_so_far=0)
    return study


def ledger(study: Study, target: int | None = 4, **options: Any) -> Ledger:
    """Return the ledger of a driver that has just started, which knows no more than the storage does."""
    so_far = len(study.get_trials(deepcopy=False))
    study = optuna.load_study(
        study_name="s", storage=study._storage, sampler=make_sampler("random", seed=0, trials_so_far=so_far)
    )
    return Ledger(study, propose, target=target, seed=5, objectives=("val_accuracy", "macs"), **options)


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


# Exactly N


def test_complete_pruned_and_failed_trials_count_and_lost_ones_do_not(study: Study) -> None:
    books = ledger(study)
    books.tell_result(books.ask()[0], result(0.9, 1), {})
    books.tell_pruned(books.ask()[0], CURVE, {})
    books.tell_failure(books.ask()[0], "diverged", "nan", {})
    books.tell_failure(books.ask()[0], LOST, "killed", {})
    assert (books.finished, books.wanted) == (3, 1)
    books.tell_result(books.ask()[0], result(0.8, 1), {})
    assert books.wanted == 0
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert sum(map(is_finished, study.trials)) == 4
    assert (ledger(study).finished, ledger(study).wanted) == (4, 0)


def test_no_more_trials_are_asked_than_could_be_needed(study: Study) -> None:
    books = ledger(study, 2)
    books.ask()
    assert books.wanted == 1
    books.ask()
    assert books.wanted == 0


def test_configurations_in_the_queue_run_first_and_count(study: Study) -> None:
    study.enqueue_trial({"a": 0.25, "b": 7})
    books = ledger(study, 2)
    number, proposal, _ = books.ask()
    assert (number, proposal.config) == (0, {"a": 0.25, "b": 7})
    assert books.wanted == 1
    assert books.ask()[1].config != proposal.config


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["ask", "complete", "prune", "fail", "lose", "give up", "die", "stop"]), max_size=40))
def test_whatever_happens_exactly_n_finish_with_their_first_parameters(events: list[str]) -> None:
    target = 5
    study = optuna.create_study(study_name="s", directions=["maximize", "minimize"])
    study.enqueue_trial({"a": 0.5, "b": 3})
    books = ledger(study, target)
    first: dict[int, tuple[Any, int]] = {}

    def ask() -> None:
        number, proposal, seed = books.ask()
        assert first.setdefault(number, (proposal.config, seed)) == (proposal.config, seed)

    ends: dict[str, Callable[[int], None]] = {
        "complete": lambda n: books.tell_result(n, result(n / 100, n), {}),
        "prune": lambda n: books.tell_pruned(n, CURVE, {}),
        "fail": lambda n: books.tell_failure(n, "diverged", "", {}),
        "lose": lambda n: books.tell_lost(n, "killed", {}),
        "give up": lambda n: books.tell_failure(n, LOST, "", {}),
    }
    for event in events:
        if event in {"die", "stop"}:
            if event == "stop":
                books.leave_running()
            books = ledger(study, target)
        elif event == "ask":
            if books.wanted and len(books.running) < 3:
                ask()
        elif books.running:
            ends[event](next(iter(books.running)))
    while books.wanted or books.running:
        while books.wanted:
            ask()
        ends["complete"](next(iter(books.running)))
    trials = study.trials
    assert sum(map(is_finished, trials)) == target
    assert all(trial.state.is_finished() for trial in trials)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(first[t.number][0].items() >= t.params.items() for t in trials if t.number in first)


# Lost and adopted trials


def test_a_lost_trial_is_run_again_under_the_same_number_parameters_and_seed(study: Study) -> None:
    books = ledger(study)
    asked = books.ask()
    for _ in range(RETRIES):
        books.tell_lost(asked[0], "the worker died", {})
        assert books.ask() == asked
    books.tell_lost(asked[0], "the worker died", {"pid": 1})
    [trial] = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[FAILURE] == {"reason": LOST, "message": "the worker died"}
    assert (books.finished, books.wanted, books.failures) == (0, 4, {LOST: 1})


def test_trials_lost_in_a_row_are_counted_until_one_ends(study: Study) -> None:
    books = ledger(study, 10)
    for _ in range(MOST_LOST - 1):
        books.tell_failure(books.ask()[0], LOST, "", {})
    books.tell_pruned(books.ask()[0], CURVE, {})
    assert books.lost_in_a_row == 0


def test_a_trial_that_a_dead_driver_left_is_adopted_with_its_folder(study: Study, tmp_path: Path) -> None:
    dead = ledger(study, artefacts=str(tmp_path / "a"))
    asked = [dead.ask(), dead.ask()]
    books = ledger(study, artefacts=str(tmp_path / "a"))
    assert books.wanted == 4
    assert [books.ask(), books.ask()] == asked
    assert books.ask()[0] == 2
    assert books.folder_of(1) == dead.folder_of(1)


def test_adopted_trials_run_although_the_target_is_reached(study: Study) -> None:
    dead = ledger(study)
    dead.ask()
    assert ledger(study, 0).wanted == 1


def test_a_driver_that_died_while_asking_leaves_a_trial_that_is_completed(study: Study) -> None:
    half = study.ask()
    a = half.suggest_float("a", 0, 1)
    study.ask()  # and one without any parameter
    books = ledger(study)
    number, proposal, seed = books.ask()
    assert (number, proposal.config["a"], seed) == (0, a, trial_seed(5, 0))
    assert study.trials[0].params == proposal.config
    assert books.ask()[1].config.keys() == {"a", "b"}


def test_a_queued_configuration_survives_a_driver_that_died_while_asking(study: Study) -> None:
    study.enqueue_trial({"a": 0.25, "b": 7})
    study.ask()
    assert ledger(study).ask()[1].config == {"a": 0.25, "b": 7}


def test_a_trial_that_takes_every_driver_with_it_is_given_up(study: Study) -> None:
    for _ in range(RETRIES + 1):
        assert ledger(study).ask()[0] == 0
    books = ledger(study)
    assert study.trials[0].user_attrs[FAILURE]["reason"] == LOST
    assert (books.finished, books.wanted, books.ask()[0]) == (0, 4, 1)


def test_a_driver_that_stops_in_good_order_loses_no_trial(study: Study) -> None:
    for _ in range(RETRIES + 3):
        books = ledger(study)
        assert books.ask()[0] == 0
        books.leave_running()


@pytest.mark.parametrize("end", ["stop", "death"])
@pytest.mark.parametrize("before", ["left", "lost with its worker", "lost with its driver"])
def test_a_driver_that_ends_before_an_adopted_trial_is_asked_again_loses_none(
    study: Study, before: str, end: str
) -> None:
    first = ledger(study)
    first.ask()
    if before == "left":
        first.leave_running()
    elif before == "lost with its worker":
        first.tell_lost(0, "the worker died", {})
    for _ in range(RETRIES + 3):
        books = ledger(study)
        if end == "stop":
            books.leave_running()
    assert ledger(study).ask()[0] == 0
    assert study.trials[0].user_attrs[LEFT] is False  # what ends this driver now is a loss
    assert study.trials[0].user_attrs.get(LOSSES, 0) == (before != "left")


@pytest.mark.parametrize("end", ["COMPLETE", "PRUNED", "FAIL"])
def test_a_driver_that_died_between_writing_and_telling_has_nothing_to_run_again(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in memory, where there is no transaction for both, as earlier versions had none in a database
    study = optuna.create_study(study_name="s", directions=["maximize", "minimize"])
    dead = ledger(study)
    number = dead.ask()[0]
    monkeypatch.setattr(dead.study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    tells: dict[str, Callable[[], None]] = {
        "COMPLETE": lambda: dead.tell_result(number, result(0.9, 10), {}),
        "PRUNED": lambda: dead.tell_pruned(number, CURVE, {}),
        "FAIL": lambda: dead.tell_failure(number, "diverged", "nan", {}),
    }
    with pytest.raises(KeyboardInterrupt):
        tells[end]()
    assert states(study) == ["RUNNING"]
    books = ledger(study)
    assert states(study) == [end]
    assert (books.finished, books.wanted) == (1, 3)
    assert study.trials[0].values == ([0.9, 10] if end == "COMPLETE" else None)


# Results


@pytest.mark.parametrize("metrics", [{"val_accuracy": math.nan, "macs": 1.0}, {"val_accuracy": 0.5}])
def test_a_metric_that_is_not_finite_is_a_recorded_failure(study: Study, metrics: dict[str, float]) -> None:
    books = ledger(study)
    books.tell_result(books.ask()[0], TrialResult({}, 0, metrics), {})
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs[FAILURE]["reason"] == "non_finite"
    assert books.finished == 1


def test_an_infinite_constrained_metric_is_a_failure_too(study: Study) -> None:
    books = ledger(study, constraints=(Constraint.parse("val_ece<=0.1"),))
    books.tell_result(books.ask()[0], result(0.9, 10, val_ece=math.inf), {})
    assert study.trials[0].user_attrs[FAILURE]["message"] == "val_ece is inf"


def test_the_sampler_sees_constraint_violations(study: Study) -> None:
    books = ledger(study, constraints=(Constraint.parse("macs<=50"),))
    books.tell_result(books.ask()[0], result(0.9, 80), {})
    assert next(iter(study.trials[0].constraints.values())) > 0
    assert books.front.members == {}


def test_a_stored_result_is_the_one_that_was_told(study: Study) -> None:
    books = ledger(study)
    told = replace(result(0.9, 10), curve=tuple(CURVE))
    books.tell_result(books.ask()[0], told, {"pid": 3})
    assert TrialResult.from_json(study.trials[0].user_attrs[RESULT]) == told


def test_rungs_are_refilled_from_stored_curves(study: Study) -> None:
    def halving() -> SuccessiveHalving:
        return SuccessiveHalving(by_size=False)

    first = ledger(study, halving=halving())
    for end in ("complete", "prune"):
        number = first.ask()[0]
        for report in CURVE:
            first.report(number, report)
        if end == "complete":
            first.tell_result(number, replace(result(0.9, 10), curve=tuple(CURVE)), {})
        else:
            first.tell_pruned(number, CURVE, {})
    second = ledger(study, halving=halving())
    assert first.halving is not None
    assert second.halving is not None
    assert second.halving.records == first.halving.records
    assert second.halving.records


# Artefacts


def finish(books: Ledger, accuracy: float, macs: float) -> int:
    """Run one trial as a worker does, artefacts included."""
    number = books.ask()[0]
    write(books, number)
    books.tell_result(number, result(accuracy, macs), {})
    return number


def write(books: Ledger, number: int) -> None:
    folder = books.folder_of(number)
    assert folder is not None
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "student.safetensors").write_text(str(number))


def folders(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.glob("trial-*"))


def test_artefacts_are_kept_for_the_feasible_front_alone(study: Study, tmp_path: Path) -> None:
    books = ledger(study, 9, artefacts=str(tmp_path), constraints=(Constraint.parse("macs<=50"),))
    finish(books, 0.7, 10)
    finish(books, 0.9, 60)  # infeasible
    finish(books, 0.6, 20)  # dominated
    assert folders(tmp_path) == ["trial-00000"]
    finish(books, 0.8, 20)
    assert folders(tmp_path) == ["trial-00000", "trial-00003"]
    finish(books, 0.8, 9)  # beats both
    assert folders(tmp_path) == ["trial-00004"]
    number = books.ask()[0]
    write(books, number)
    books.tell_failure(number, "diverged", "", {})
    assert folders(tmp_path) == ["trial-00004"]


def test_what_a_dead_driver_left_off_the_front_is_removed(study: Study, tmp_path: Path) -> None:
    dead = ledger(study, 9, artefacts=str(tmp_path))
    finish(dead, 0.9, 10)
    worse = finish(dead, 0.8, 20)
    failed = dead.ask()[0]
    dead.tell_failure(failed, "diverged", "", {})
    running = dead.ask()[0]
    for number in (worse, failed, running):
        write(dead, number)
    (tmp_path / "controls" / "trial-00000").mkdir(parents=True)
    ledger(study, 9, artefacts=str(tmp_path))
    assert folders(tmp_path) == ["trial-00000"]
    assert (tmp_path / "controls" / "trial-00000").exists()


def test_every_run_of_a_companion_keeps_its_artefacts(study: Study, tmp_path: Path) -> None:
    for _ in range(3):
        study.enqueue_trial({"a": 0.5})
    books = ledger(study, None, artefacts=str(tmp_path))
    assert books.wanted == 3
    for accuracy in (0.9, 0.8):
        finish(books, accuracy, 10)
    assert folders(tmp_path) == ["trial-00000", "trial-00001"]
    again = ledger(study, None, artefacts=str(tmp_path))
    assert (again.target, again.wanted) == (3, 1)
    assert folders(tmp_path) == ["trial-00000", "trial-00001"]


def test_a_folder_that_cannot_be_removed_does_not_end_the_search(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = ledger(study, artefacts=str(tmp_path))
    finish(books, 0.9, 10)

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(path)

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", refuse)
        finish(books, 0.8, 20)
    assert states(study) == ["COMPLETE", "COMPLETE"]
    ledger(study, artefacts=str(tmp_path))
    assert folders(tmp_path) == ["trial-00000"]


# Seeds


def test_a_trials_seed_depends_on_the_studys_seed_and_its_number_alone() -> None:
    seeds = {trial_seed(study, number) for study in range(5) for number in range(100)}
    assert len(seeds) == 500
    assert trial_seed(1, 2) == trial_seed(1, 2)
