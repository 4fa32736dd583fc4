"""A storage opened for reading alone: Optuna's tables by SQL, in short transactions that disturb no driver.

The tables are those of Optuna's schema 12, revision v3.2.0.a (optuna/storages/_rdb/models.py), which Optuna 3.2 to 5
make. Of another version (`known` is False) they are not touched: Optuna's own classes read it. SQLite is read by
Python's own module, since importing SQLAlchemy takes longer than most answers.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from metasearch.errors import NotFoundError, StorageError
from metasearch.search.names import BUSY_TIMEOUT_S, SQLITE, shown_url

if TYPE_CHECKING:
    from sqlalchemy import Engine

SCHEMA, REVISION = 12, "v3.2.0.a"
TABLES = ("SELECT name FROM sqlite_master", "SELECT table_name FROM information_schema.tables")
"""The statements that name the tables of SQLite and of PostgreSQL."""

Select = Callable[..., list[Any]]
"""Runs a statement with named values (`:name`) and returns its rows."""


@dataclass(frozen=True)
class Database:
    """url: the storage's, its password included. known: whether the schema is ours to read. file: of SQLite, else None.

    engine: of PostgreSQL, else None. patience_s: how long a locked file is waited for; an engine has its own patience.
    """

    url: str = field(repr=False)
    known: bool = True
    file: Path | None = None
    engine: Engine | None = field(default=None, repr=False)
    patience_s: float = BUSY_TIMEOUT_S

    @property
    def position(self) -> str:
        """The function that finds a text in another."""
        return "strpos" if self.file is None else "instr"

    @contextmanager
    def snapshot(self) -> Iterator[Select]:
        """Give a `select(statement, **values)`, all of whose answers are of one moment; leave it when all are there.

        Raises StorageError if the storage is locked or away.
        """
        if self.file is None:
            with self._postgresql() as select:
                yield select
            return
        with self.sqlite() as connection:
            yield lambda statement, **values: connection.execute(statement, values).fetchall()

    @contextmanager
    def sqlite(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that reads the SQLite file as it is at one moment.

        Raises StorageError if it is locked for longer than the patience, or no database.
        """
        assert self.file is not None
        address = f"file:{quote(str(self.file.resolve()))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=self.patience_s, isolation_level=None)) as opened:
                opened.execute("BEGIN")
                opened.execute(TABLES[0]).fetchone()  # takes the lock: `backup` would wait for it without end
                yield opened
        except sqlite3.Error as error:
            raise StorageError(f"{shown_url(self.url)}: {error}") from error

    @contextmanager
    def _postgresql(self) -> Iterator[Select]:
        import sqlalchemy

        from metasearch.search.store import storage_errors

        assert self.engine is not None
        with storage_errors(self.url), self.engine.connect() as connection:
            yield lambda statement, **values: list(connection.execute(sqlalchemy.text(statement), values).all())


def open_database(url: str, *, patience_s: int | None = None) -> Database:
    """Return the storage at `url`, opened for reading alone.

    patience_s: how long a locked file, or a server that does not answer, is waited for; None for a minute at a file,
    and for as long as the URL says at a server. Raises NotFoundError if its file, or Optuna's tables in it, are not
    there, StorageError if it cannot be read or has these tables in part.
    """
    database = _opened(url, patience_s)
    with database.snapshot() as select:
        there = {name for (name,) in select(TABLES[database.file is None])}
        made = there & {"studies", "version_info"}
        if not made:
            raise _empty(shown_url(url))
        if len(made) == 1:  # of another program, or just being made
            raise StorageError(f"{shown_url(url)}: holds no studies of Optuna")
        versions = [select("SELECT schema_version FROM version_info")]
        if "alembic_version" in there:  # not before Optuna 0.14
            versions.append(select("SELECT version_num FROM alembic_version"))
    return replace(database, known=[tuple(row) for rows in versions for row in rows] == [(SCHEMA,), (REVISION,)])


def trial_attributes(database: Database, ids: Sequence[int], *keys: str) -> list[tuple[int, str, Any]]:
    """Return the whole attributes of these keys that trials have, which tables cut: Optuna's id, key, value."""
    if database.known:
        named = {f"key{index}": key for index, key in enumerate(keys)}
        with database.snapshot() as select:
            rows = select(
                "SELECT a.trial_id, a.key, a.value_json FROM trial_user_attributes a"
                f" WHERE a.key IN ({', '.join(f':{name}' for name in named)})"
                f" AND a.trial_id IN ({', '.join(map(str, ids))})",
                **named,
            )
        return [(trial, key, json.loads(value)) for trial, key, value in rows]
    from metasearch.search.store import open_storage

    storage = open_storage(database.url)
    found = [(trial, storage.get_trial(trial).user_attrs) for trial in ids]
    return [(trial, key, attributes[key]) for trial, attributes in found for key in keys if key in attributes]


def _opened(url: str, patience_s: int | None) -> Database:
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE).partition("?")[0])
        if not path.is_file():
            raise _empty(str(path))
        return Database(url, file=path, patience_s=BUSY_TIMEOUT_S if patience_s is None else patience_s)
    import sqlalchemy

    from metasearch.search.store import storage_errors

    hurried = {} if patience_s is None else {"connect_timeout": patience_s}
    try:
        with storage_errors(url):
            engine = sqlalchemy.create_engine(
                url, isolation_level="REPEATABLE READ", pool_pre_ping=True, connect_args=hurried
            )
    except ModuleNotFoundError as error:
        place = shown_url(url)
        raise StorageError(f"{place}: needs the extra `postgresql` (module {error.name} is missing)") from error
    sqlalchemy.event.listen(engine, "connect", _read_only)
    return Database(url, engine=engine)


def _empty(place: str) -> NotFoundError:
    return NotFoundError(f"{place}: no studies here yet; `metasearch launch` makes the first")


def _read_only(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    cursor.close()
    connection.commit()
