from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import optuna
import pytest
import sqlalchemy

from metasearch.errors import StorageError
from metasearch.report.copied import copy_storage
from metasearch.report.database import open_database
from metasearch.search.store import open_storage
from tests.fakes import new_storage
from tests.report.studies import reported_study


def rows_of(url: str) -> dict[str, list[str]]:
    """Return every row of every table, as Python has it."""
    engine = open_storage(url).engine
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            name: sorted(repr(tuple(row)) for row in connection.execute(sqlalchemy.select(table)))
            for name, table in metadata.tables.items()
        }


def test_a_copy_holds_every_row_and_is_its_own(url: str, tmp_path: Path) -> None:
    name = f"copied-{uuid4().hex}"  # the server has studies of other tests
    reported_study(url, tmp_path, name, trials=8)
    copy = copy_storage(open_database(url), tmp_path / "copy.db")
    assert rows_of(copy) == rows_of(url)
    study = optuna.load_study(study_name=name, storage=open_storage(copy))
    study.set_user_attr("note", "only here")
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))  # new ids do not collide
    original = optuna.load_study(study_name=name, storage=open_storage(url))
    assert "note" not in original.user_attrs
    assert (len(study.trials), len(original.trials)) == (9, 8)


def test_a_schema_that_is_not_known_is_copied_by_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(url, tmp_path, trials=4)
    database = open_database(url)
    for name, value in (("known", False), ("file", None)):  # as of a server's
        object.__setattr__(database, name, value)
    copy = copy_storage(database, tmp_path / "copy.db")
    copied, original = (optuna.load_study(study_name="ten", storage=open_storage(each)) for each in (copy, url))
    assert [(t.number, t.params, t.user_attrs, t.values) for t in copied.trials] == [
        (t.number, t.params, t.user_attrs, t.values) for t in original.trials
    ]


def test_a_locked_file_is_waited_for_no_longer_when_it_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    new_storage(f"sqlite:///{file}").engine.dispose()
    database = open_database(f"sqlite:///{file}", patience_s=0)
    with closing(sqlite3.connect(file, isolation_level=None)) as locking:
        locking.execute("PRAGMA journal_mode=DELETE")
        locking.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="database is locked"):
            copy_storage(database, tmp_path / "copy.db")
    copy_storage(database, tmp_path / "copy.db")
