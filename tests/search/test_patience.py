"""A storage that is away for a moment costs no search; one that stays away ends it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy import event

from metasearch.records import TrialResult
from metasearch.search import patience as module
from metasearch.search.driver_storage import DriverStorage
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.patience import Patience, is_away
from metasearch.search.samplers import make_sampler
from metasearch.search.writing import TrialWriter
from tests.fakes import new_storage

AWAY = sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("connection refused"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.004)


def failing(times: int, error: Exception = AWAY) -> Callable[[bool], list[bool]]:
    """Return an operation that fails so many times, then returns what it was told at each attempt."""
    told: list[bool] = []

    def operation(again: bool) -> list[bool]:
        told.append(again)
        if len(told) <= times:
            raise error
        return told

    return operation


def test_an_operation_is_tried_until_the_storage_is_back_and_told_so_once() -> None:
    heard: list[str] = []
    assert Patience(tell=heard.append).retried(failing(3)) == [False, True, True, True]
    assert heard == ["the storage is away (connection refused); trying again for up to 60 s"]


def test_a_storage_that_stays_away_raises_its_own_error_after_the_time_given() -> None:
    started = time.monotonic()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="connection refused"):
        Patience(give_up_s=0.05).retried(failing(1000))
    assert 0.03 < time.monotonic() - started < 5


def test_an_error_that_waiting_does_not_mend_is_raised_at_once() -> None:
    operation = failing(1, ValueError("no such study"))
    with pytest.raises(ValueError, match="no such study"):
        Patience().retried(operation)
    assert operation(False) == [False, False]  # the second attempt is this line's


def test_a_search_that_is_to_stop_does_not_wait_for_its_storage() -> None:
    operation = failing(1000)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        Patience(stopped=lambda: True).retried(operation)


def test_what_optuna_wraps_is_known_by_its_cause() -> None:
    wrapped = optuna.exceptions.StorageInternalError("an exception is raised during the commit")
    wrapped.__cause__ = AWAY
    assert is_away(wrapped)
    assert not is_away(optuna.exceptions.StorageInternalError("another"))


# The ledger on a storage whose every statement may fail, before or after the commit


class Faults:
    """Makes the next statements or commits of an engine fail. lost_answers: the commit is done, its answer is lost."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self.statements = self.lost_answers = 0
        event.listen(engine, "before_cursor_execute", self._before)
        original = engine.dialect.do_commit

        def commit(connection: Any) -> None:
            original(connection)
            if self.lost_answers > 0:
                self.lost_answers -= 1
                raise sqlite3.OperationalError("connection lost")

        engine.dialect.do_commit = commit  # type: ignore[method-assign, assignment]  # a lost connection, seen from here

    def _before(self, *_: object) -> None:
        if self.statements > 0:
            self.statements -= 1
            raise sqlite3.OperationalError("connection refused")


@pytest.fixture
def faulty(tmp_path: Any) -> tuple[Study, Faults]:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    study.sampler = make_sampler("random", seed=0, trials_so_far=0)
    return study, Faults(storage.engine)


def propose(trial: optuna.Trial) -> Proposal:
    return Proposal({"a": trial.suggest_float("a", 0, 1), "b": trial.suggest_int("b", 1, 1000)})


@pytest.mark.parametrize("kind", ["statements", "lost_answers"])
@pytest.mark.parametrize("when", ["ask", "tell"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_exactly_n_trials_are_finished_whatever_the_storage_loses(
    faulty: tuple[Study, Faults], kind: str, when: str, count: int
) -> None:
    study, faults = faulty
    books = Ledger(study, propose, target=4, seed=1, objectives=("val_accuracy", "macs"))
    for index in range(4):
        setattr(faults, kind, count if when == "ask" and index == 1 else 0)
        number, proposal, _ = books.ask()
        setattr(faults, kind, count if when == "tell" and index == 2 else 0)
        result = TrialResult(proposal.config, 0, {"val_accuracy": proposal.config["a"], "macs": 1.0})
        books.tell_result(number, result, {})
    setattr(faults, kind, 0)
    trials = study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert all(trial.values == [trial.params["a"], 1.0] for trial in trials)
    assert all(set(trial.params) == {"a", "b"} for trial in trials)
    assert books.wanted == 0


def test_losses_and_marks_are_written_when_the_storage_is_back(faulty: tuple[Study, Faults]) -> None:
    study, faults = faulty
    books = Ledger(study, propose, target=2, seed=1, objectives=("val_accuracy", "macs"))
    for _ in range(2):
        books.ask()
    faults.statements = 3
    books.tell_lost(0, "its worker died", {})
    faults.statements = 3
    books.leave_running()
    lost, left = study.get_trials(deepcopy=False)
    assert (lost.user_attrs, left.user_attrs) == ({"losses": 1, "left": True}, {"left": True})


def test_a_search_that_is_to_stop_still_writes_what_it_leaves_and_all_of_it_at_once(
    faulty: tuple[Study, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, faults = faulty
    patience = Patience(stopped=lambda: True)
    books = Ledger(study, propose, target=9, seed=1, objectives=("val_accuracy", "macs"), patience=patience)
    numbers = [books.ask()[0] for _ in range(3)]
    faults.statements = 3
    books.leave_running()
    trials = study.get_trials(deepcopy=False)
    assert all(trials[number].user_attrs == {"left": True} for number in numbers)
    written: list[object] = []
    monkeypatch.setattr(DriverStorage, "_send", lambda storage, writes: written.append(writes))
    books.leave_running()
    assert len(written) == 1


def test_a_trial_whose_end_was_written_without_an_answer_keeps_no_other_from_being_left(
    faulty: tuple[Study, Faults],
) -> None:
    study, faults = faulty
    books = Ledger(
        study, propose, target=2, seed=1, objectives=("val_accuracy", "macs"), patience=Patience(give_up_s=0.0)
    )
    for _ in range(2):
        books.ask()
    faults.lost_answers = 1
    with pytest.raises(optuna.exceptions.StorageInternalError):
        books.tell_failure(0, "diverged", "nan", {})
    books.leave_running()
    ended, left = study.get_trials(deepcopy=False)
    assert (ended.state, left.user_attrs) == (TrialState.FAIL, {"left": True})


@pytest.mark.parametrize("kind", ["statements", "lost_answers"])
def test_a_driver_that_adopts_trials_waits_for_its_storage_too_and_counts_each_loss_once(
    faulty: tuple[Study, Faults], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, faults = faulty
    dead = Ledger(study, propose, target=3, seed=1, objectives=("val_accuracy", "macs"))
    for _ in range(3):
        dead.ask()
    note = TrialWriter.note

    def faulty_note(*arguments: Any) -> None:
        setattr(faults, kind, 2)
        note(*arguments)

    monkeypatch.setattr(TrialWriter, "note", faulty_note)
    again = Ledger(study, propose, target=3, seed=1, objectives=("val_accuracy", "macs"))
    setattr(faults, kind, 0)
    assert again.wanted == 3
    assert [trial.user_attrs["losses"] for trial in study.get_trials(deepcopy=False)] == [1, 1, 1]
