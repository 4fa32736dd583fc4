"""Opening storages and making studies; every way it can go wrong is one clear line."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import optuna
import pytest
from optuna.trial import TrialState

from metasearch.errors import InputError, MetasearchError, NotFoundError, StorageError
from metasearch.search import store
from metasearch.search.store import (
    FAILURE,
    StudyDescription,
    create_study,
    description_of,
    is_finished,
    load_study,
    open_storage,
    shown_url,
    storage_errors,
    storage_url,
    study_names,
)

DESCRIPTION = StudyDescription(
    {"text": "digits"}, "f", "space", "d", ["val_accuracy", "macs"], [], 4, 0, "tpe", "t", "cpu", "/a"
)
SECRET = "hunter2"


def one_line(caught: pytest.ExceptionInfo[MetasearchError]) -> str:
    """Return the message, which must be one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def made(path: Path) -> str:
    url = f"sqlite:///{path}"
    create_study(open_storage(url, create=True), "s", DESCRIPTION)
    return url


# URLs and secrets


@pytest.mark.parametrize("url", [f"postgresql://me:{SECRET}@db/x", f"postgresql://db/x?user=me&password={SECRET}"])
def test_a_password_on_the_command_line_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="METASEARCH_STORAGE or PGPASSFILE") as caught:
        storage_url(url)
    assert SECRET not in one_line(caught)


@pytest.mark.parametrize("url", [f"postgresql://me:{SECRET}@db/x", f"postgresql://db/x?user=me&password={SECRET}"])
def test_a_password_from_the_environment_is_used_and_never_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", url)
    used = storage_url()
    assert SECRET in used
    assert used.startswith("postgresql+psycopg://")
    assert SECRET not in shown_url(used)


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{SECRET}@127.0.0.1:9/x", f"postgresql://127.0.0.1:9/x?password={SECRET}"]
)
def test_an_unreachable_server_is_a_storage_error_without_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", url)
    with pytest.raises(StorageError, match=r"127\.0\.0\.1") as caught:
        open_storage(storage_url())
    assert SECRET not in one_line(caught)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host/name",
        "redis://host",
        "studies.db",
        "postgresql://h:abc/x",
        "postgresql://[::1/x",
        "//[::1/x",
        "sqlite:///a b:c@@://",
    ],
)
def test_a_url_of_another_kind_is_refused_in_one_line(url: str) -> None:
    if url.startswith("sqlite"):
        assert storage_url(url)  # odd, yet a path
        return
    with pytest.raises(InputError, match="--storage: must be") as caught:
        storage_url(url)
    one_line(caught)


def test_without_flag_and_environment_the_studies_lie_in_the_home_folder(
    metasearch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METASEARCH_STORAGE", raising=False)
    assert storage_url() == f"sqlite:///{metasearch_home / 'studies.db'}"


# Files that are not there, not ours or not readable


def test_a_missing_file_is_not_found_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no studies here yet; `metasearch launch`") as caught:
        open_storage(f"sqlite:///{tmp_path / 'none.db'}")
    one_line(caught)
    assert not (tmp_path / "none.db").exists()


def test_a_missing_folder_is_made_for_a_new_storage(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path / 'a' / 'b' / 'studies.db'}", create=True)
    assert (tmp_path / "a" / "b" / "studies.db").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"studies\.db: (Not a directory|File exists)") as caught:
        open_storage(f"sqlite:///{tmp_path / 'file' / 'studies.db'}", create=True)
    one_line(caught)


def test_a_folder_in_place_of_the_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open database file") as caught:
        open_storage(f"sqlite:///{tmp_path}", create=True)
    one_line(caught)


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    for create in (False, True):
        with pytest.raises(StorageError, match="file is not a database") as caught:
            open_storage(f"sqlite:///{tmp_path / 'studies.db'}", create=create)
        one_line(caught)


def test_a_newer_schema_is_a_storage_error(tmp_path: Path) -> None:
    url = made(tmp_path / "studies.db")
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("UPDATE version_info SET schema_version = 99")
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(StorageError, match="is of another version of Optuna") as caught:
        open_storage(url)
    one_line(caught)


def test_a_database_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    url = made(tmp_path / "studies.db")
    storage = open_storage(url)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")  # what a read-only file gives, which root would not see
    with pytest.raises(StorageError, match="readonly database") as caught, storage_errors(url):
        create_study(storage, "t", DESCRIPTION)
    one_line(caught)


# Locks


def locked_for(path: Path, seconds: float, locked: threading.Event) -> threading.Thread:
    def lock() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        locked.set()
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    thread = threading.Thread(target=lock)
    thread.start()
    return thread


def test_a_storage_that_is_locked_for_two_seconds_is_waited_for(tmp_path: Path) -> None:
    url = made(tmp_path / "studies.db")
    study = load_study(open_storage(url), "s")
    locked = threading.Event()
    thread = locked_for(tmp_path / "studies.db", 2.0, locked)
    locked.wait()
    started = time.monotonic()
    with storage_errors(url):
        study.set_user_attr("a", 1)
    assert time.monotonic() - started > 1
    thread.join()
    assert load_study(open_storage(url), "s").user_attrs["a"] == 1


def test_a_storage_that_stays_locked_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.1)
    url = made(tmp_path / "studies.db")
    study = load_study(open_storage(url), "s")
    locked = threading.Event()
    thread = locked_for(tmp_path / "studies.db", 1.5, locked)
    locked.wait()
    with pytest.raises(StorageError, match="database is locked") as caught, storage_errors(url):
        study.set_user_attr("a", 1)
    one_line(caught)
    assert caught.value.exit_code == 5
    thread.join()


def test_the_storage_uses_write_ahead_logging_and_survives_a_killed_process(tmp_path: Path) -> None:
    storage = open_storage(made(tmp_path / "studies.db"))
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_errors_that_are_not_the_storages_pass_through() -> None:
    for error in (FileNotFoundError("data"), ModuleNotFoundError("mine"), RuntimeError("of another version")):
        with pytest.raises(type(error)), storage_errors("sqlite:///x"):
            raise error


# Studies


def test_a_study_keeps_its_description(tmp_path: Path) -> None:
    study = load_study(open_storage(made(tmp_path / "studies.db")), "s")
    assert description_of(study) == DESCRIPTION
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["val_accuracy", "macs"]


def test_a_second_study_of_the_same_name_is_refused_with_what_to_do(tmp_path: Path) -> None:
    storage = open_storage(made(tmp_path / "studies.db"))
    with pytest.raises(InputError, match="a study of this name exists: `metasearch resume s`"):
        create_study(storage, "s", DESCRIPTION)


def test_a_study_may_not_take_the_name_of_anothers_controls(tmp_path: Path) -> None:
    storage = open_storage(made(tmp_path / "studies.db"))
    with pytest.raises(InputError, match="must not end in /controls"):
        create_study(storage, "s/controls", DESCRIPTION)
    create_study(storage, "s/controls", replace(DESCRIPTION, trials=0))
    assert study_names(storage) == ["s"]


def test_a_misspelt_study_is_not_found_and_the_nearest_is_named(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", create=True)
    create_study(storage, "digits-quick-1", DESCRIPTION)
    with pytest.raises(NotFoundError, match=r"digits-quik-1.*digits-quick-1"):
        load_study(storage, "digits-quik-1")


def test_a_study_that_metasearch_did_not_make_is_refused(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", create=True)
    with pytest.raises(InputError, match="was not made by metasearch"):
        description_of(optuna.create_study(storage=storage, study_name="theirs"))


@pytest.mark.parametrize("change", [{"of_a_newer_one": 1}, {"seed": None}])
def test_a_study_that_another_metasearch_describes_otherwise_is_refused_with_its_version(
    change: dict[str, object], tmp_path: Path
) -> None:
    kept = asdict(replace(DESCRIPTION, versions={"metasearch": "9.9"})) | change
    described = {key: value for key, value in kept.items() if value is not None}
    with pytest.raises(InputError, match=rf"^study s: is described as metasearch 9\.9 does.*'{next(iter(change))}'$"):
        StudyDescription.of("s", described)
    assert StudyDescription.of("s", json.loads(json.dumps(asdict(DESCRIPTION)))) == DESCRIPTION


def test_finished_are_complete_and_pruned_trials_and_failures_of_their_own() -> None:
    def trial(state: TrialState, reason: str | None = None) -> optuna.trial.FrozenTrial:
        attrs = {} if reason is None else {FAILURE: {"reason": reason, "message": ""}}
        value = 0.0 if state == TrialState.COMPLETE else None
        return optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)

    assert is_finished(trial(TrialState.COMPLETE))
    assert is_finished(trial(TrialState.PRUNED))
    assert is_finished(trial(TrialState.FAIL, "diverged"))
    assert not is_finished(trial(TrialState.FAIL, "lost"))
    assert not is_finished(trial(TrialState.RUNNING))
    assert not is_finished(trial(TrialState.WAITING))


@pytest.mark.slow
def test_many_may_make_the_storage_at_the_same_time(tmp_path: Path) -> None:
    for attempt in range(5):
        url, together = f"sqlite:///{tmp_path / f'{attempt}.db'}", Barrier(6)

        def open_at_once(_: int, url: str = url, together: Barrier = together) -> list[str]:
            together.wait()
            return study_names(open_storage(url, create=True))

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(open_at_once, range(6))) == [[]] * 6
