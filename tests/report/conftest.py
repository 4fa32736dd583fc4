"""Storages that the tests of queries read: a SQLite file, and a real PostgreSQL server where one is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgresql


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL server, password included; skips where it is not installed."""
    binaries = postgresql.programs()
    if binaries is None:
        pytest.skip("no PostgreSQL: Debian's package `postgresql` is not installed")
    # not in pytest's own folder, which it closes to others: the server runs as somebody else
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder, postgresql.running(Path(folder), binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that may hold studies of other tests already."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    return str(request.getfixturevalue("postgresql_url"))
