"""What a driver's storage holds in memory is what the database holds, and costs few statements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState

from metasearch.errors import StorageError
from metasearch.search.driver_storage import DriverStorage, driven, written_together
from metasearch.search.samplers import make_sampler
from metasearch.search.store import open_storage
from tests.bench.counting import counted_statements
from tests.fakes import new_storage


def made(url: str, *, sampler: str = "random") -> tuple[RDBStorage, Study]:
    storage = new_storage(url)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    study.sampler = make_sampler(sampler, seed=0, trials_so_far=0)
    return storage, study


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def as_stored(study: Study) -> Study:
    """Return the study as another process finds it."""
    backend = study._storage._backend  # type: ignore[attr-defined]  # of Optuna's cached storage
    return optuna.load_study(study_name=study.study_name, storage=open_storage(str(backend.url)))


def interrupted_while_writing(study: Study, trial: optuna.Trial) -> None:
    with written_together(study):
        trial.set_user_attr("undone", True)
        raise KeyboardInterrupt


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["ask", "param", "attribute", "constraint", "complete", "fail", "undo"]), max_size=30))
def test_memory_holds_what_the_database_holds_whatever_is_written(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    _, plain = made(f"sqlite:///{tmp_path_factory.mktemp('storage') / 'studies.db'}")
    study = driven(plain)
    running: list[optuna.Trial] = []
    for step, event in enumerate(["ask", *events]):
        if event == "ask":
            running.append(study.ask())
        elif running:
            trial = running[-1]
            with written_together(study):
                if event == "param":
                    trial.suggest_float(f"x{step % 3}", 0, 1)
                    trial.suggest_categorical("c", ["a", "b"])
                elif event == "attribute":
                    trial.set_user_attr(f"name{step % 2}", {"a tuple": (1, step)})
                elif event == "constraint":
                    trial.set_constraint(f"c{step}", -1.0)
                elif event == "complete":
                    study.tell(running.pop(), [float(step), float("inf")])
                elif event == "fail":
                    study.tell(running.pop(), state=TrialState.FAIL)
            if event == "undo":
                with pytest.raises(KeyboardInterrupt):
                    interrupted_while_writing(study, trial)
    known, stored = study.get_trials(), as_stored(study).get_trials()
    for trials in (known, stored):
        for each in trials:  # by two clocks' looks, a moment apart
            assert (each.datetime_complete is None) == (not each.state.is_finished())
            each.datetime_complete = None
    assert known == stored


def test_what_another_process_has_ended_is_not_ended_again(url: str) -> None:
    _, plain = made(url)
    study = driven(plain)
    trial = study.ask()
    as_stored(study).tell(trial.number, [1.0, 2.0])
    with pytest.raises(StorageError, match=r"^another driver ended trial 0, which this one runs$"):
        study.tell(trial, [3.0, 4.0])
    assert study.trials[0].values == [1.0, 2.0]


def test_an_unfinished_trial_that_was_handed_out_is_a_copy(url: str) -> None:
    study = driven(made(url)[1])
    trial = study.ask()
    study._storage.get_trial(trial._trial_id).user_attrs["a"] = 1
    assert study.trials[0].user_attrs == {}


def test_a_study_in_memory_is_driven_as_it_is() -> None:
    study = optuna.create_study()
    assert driven(study) is study


@pytest.mark.parametrize("sampler", ["random", "tpe", "transfer"])
def test_a_trial_takes_few_statements_however_many_run(url: str, sampler: str) -> None:
    storage, plain = made(url, sampler=sampler)
    study = driven(plain)
    assert isinstance(study._storage, DriverStorage)
    running: list[optuna.Trial] = []

    def ask() -> None:
        with written_together(study):
            running.append(study.ask())
            for index in range(10):
                running[-1].suggest_float(f"x{index}", 0, 1)

    def tell() -> None:
        trial = running.pop(0)
        with written_together(study):
            for name in ("run", "result"):
                trial.set_user_attr(name, "a")
            study.tell(trial, [1.0, 2.0])

    def statements(act: Callable[[], None], count: int) -> float:
        with counted_statements(storage.engine) as counted:
            for _ in range(count):
                act()
        return counted.sent / count

    ask()
    few = statements(ask, 5)
    for _ in range(20):
        ask()
    assert statements(ask, 5) <= max(few, 12)
    assert statements(tell, 10) <= 8
