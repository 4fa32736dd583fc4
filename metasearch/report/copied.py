"""A storage copied into a SQLite file of its own, for programs that write to what they show."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from metasearch.report.database import Database
from metasearch.search.names import SQLITE

AT_ONCE = 5000
"""Rows in memory together."""

OF_THE_SCHEMA = ("version_info", "alembic_version")
"""Tables that a new storage has filled already."""


def copy_storage(database: Database, file: Path) -> str:
    """Copy all studies into a new SQLite file, as they are at one moment; return its URL.

    Raises StorageError if the storage is locked or away.
    """
    url = f"{SQLITE}{file}"
    if database.file is not None:
        with database.sqlite() as source, closing(sqlite3.connect(file)) as target:
            source.backup(target)
    elif database.known:
        _copy_rows(database, url)
    else:
        _copy_studies(database, url)
    return url


def _copy_rows(database: Database, url: str) -> None:
    """Copy Optuna's tables row by row, ids included: a trial at a time takes minutes for thousands."""
    import sqlalchemy
    from optuna.storages._rdb import models

    from metasearch.search.store import open_storage, storage_errors

    assert database.engine is not None
    target = open_storage(url, create=True)
    tables = [table for table in models.BaseModel.metadata.sorted_tables if table.name not in OF_THE_SCHEMA]
    with storage_errors(database.url), database.engine.connect() as source, target.engine.begin() as sink:
        for table in tables:
            rows = source.execution_options(yield_per=AT_ONCE).execute(sqlalchemy.select(table))
            for some in rows.mappings().partitions():
                sink.execute(sqlalchemy.insert(table), [dict(row) for row in some])
    target.engine.dispose()


def _copy_studies(database: Database, url: str) -> None:
    import optuna

    from metasearch.search.store import open_storage

    source, target = open_storage(database.url), open_storage(url, create=True)
    for name in optuna.get_all_study_names(source):
        optuna.copy_study(from_study_name=name, from_storage=source, to_storage=target)
