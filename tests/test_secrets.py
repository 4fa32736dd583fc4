"""A storage's password during a real search on PostgreSQL: in no process list, no log, no file and no table."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from tests import postgresql
from tests.command_line import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CANARY = postgresql.PASSWORD
MARK = "METASEARCH_TEST_MARK"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray's session: the sockets in it need a shorter path than pytest's folders have."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Family:
    """The processes of a search: those that carry its mark in their environment, and all that these started.

    titles: what the list of processes has shown of them. Ray's workers write theirs over their environment, so that
    a parent is needed, too.
    """

    def __init__(self, mark: str) -> None:
        self._mark, self._known = f"{MARK}={mark}".encode(), set[int]()
        self.titles: set[str] = set()

    def look(self) -> None:
        """Read the command line of every process of the family."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in self._known or self._mark in (folder / "environ").read_bytes():
                    self._known.add(int(folder.name))
                    self.titles.add((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is not ours


def holders(folders: Iterable[Path]) -> tuple[list[str], int]:
    """Return which files hold the canary, in their name or their bytes, and how many files were read."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if CANARY in str(path) or CANARY.encode() in path.read_bytes()], len(files)


def rows_of(url: str) -> list[str]:
    """Return every row of every table of a database as text."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(engine).get_table_names()
            texts = [f'SELECT CAST(t AS text) FROM "{table}" t' for table in tables]
            return [row for text in texts for (row,) in connection.execute(sqlalchemy.text(text))]
    finally:
        engine.dispose()


def test_a_search_shows_the_password_of_its_storage_nowhere(
    postgresql_url: str,
    metasearch_home: Path,
    short_folder: Path,
    tmp_path: Path,
    metasearch: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark, name = uuid.uuid4().hex, "secret"
    both = make_url(postgresql_url).update_query_dict({"password": CANARY})  # before the host, and among the options
    url = both.render_as_string(hide_password=False)
    environment = os.environ | {"METASEARCH_STORAGE": url, "RAY_TMPDIR": str(short_folder), MARK: mark}
    family, said = Family(mark), tmp_path / "said.txt"
    launch = ["launch", "digits", "--space", "quick", "--trials", "2", "--workers", "1", "--name", name]
    launch += ["--teacher", "mlp:width=16,depth=1", "--max-train", "300", "--warm-start", "none"]
    with said.open("w") as output:
        search = subprocess.Popen(
            [sys.executable, "-m", "metasearch", *launch], env=environment, stdout=output, stderr=output
        )
        while search.poll() is None:
            family.look()
            time.sleep(0.3)
    assert search.returncode == 0, said.read_text()

    for part in ("metasearch launch", "raylet", "gcs_server", "ray::"):  # all have been seen
        assert any(part in title for title in family.titles), (part, family.titles)
    assert [title for title in family.titles if CANARY in title] == []

    written = tmp_path / "written"
    written.mkdir()
    monkeypatch.setenv("METASEARCH_STORAGE", url)
    for command in (
        ("report", name, "--html", str(written)),
        ("best", name, "--json"),
        ("status", name, "--json"),
        ("priors", "export", name, "--to", str(written / "priors.parquet")),
    ):
        code, out, err = metasearch(*command)
        assert (code, CANARY in out + err) == (0, False), command
    assert {path.name for path in written.iterdir()} == {"index.html", "priors.parquet"}

    sessions = list(short_folder.glob("ray/session_*/logs"))
    assert sessions
    found, count = holders([short_folder, metasearch_home, tmp_path])
    assert (found, count > 30) == ([], True)
    rows = rows_of(postgresql_url)
    assert any(name in row for row in rows)
    assert [row for row in rows if CANARY in row] == []
