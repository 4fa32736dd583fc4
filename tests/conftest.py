"""Fixtures for all tests: a home folder of their own, and the shared real data where they are."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import browser, postgresql
from tests.browser import Browser
from tests.command_line import Outcome, Run
from tests.repository import SHARED

# Of the cheap properties, for which no test gives a number of its own: a failing one is found by far fewer than 100. No
# deadline: on a busy machine any example may take long.
settings.register_profile("metasearch", max_examples=40, deadline=None)
settings.load_profile("metasearch")

LONGEST = ("test_faults_of_a_cluster.py", "test_faults.py", "test_secrets.py", "test_on_a_cluster.py", "test_runner.py")
"""Files of minutes of waiting: they come first, so that none is left over when another process has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def new_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The paths of folders that nothing has used yet; pytest's own numbering would look through all earlier ones."""
    parent = tmp_path_factory.mktemp("homes")
    return (parent / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def metasearch_home(new_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point METASEARCH_HOME to a fresh folder and unset METASEARCH_DATA, so that no test touches the user's own."""
    home = next(new_homes)
    home.mkdir()
    monkeypatch.setenv("METASEARCH_HOME", str(home))
    monkeypatch.delenv("METASEARCH_DATA", raising=False)
    return home


@pytest.fixture
def metasearch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process; return exit code, stdout and stderr."""

    from metasearch import cli

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metasearch", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session", autouse=True)
def programs_hear_an_interrupt() -> None:
    """Take SIGINT by default: run in a shell's background it is ignored, by every program started here, too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def nothing_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the priors of the package away, so that a storage's own are all there are."""
    from metasearch.search import priors

    monkeypatch.setattr(priors, "BUILT_IN_FILE", tmp_path / "none.parquet")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let torch use one thread: the networks here are small, and threads that wait for each other cost more."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def revisions_read_once() -> Iterator[None]:
    """Let Optuna read its schema's revisions once, not with every storage: that is most of what opening one costs."""
    from optuna.storages._rdb.storage import _VersionManager

    read, heads = _VersionManager.get_head_version, list[str]()

    def head(manager: _VersionManager) -> str:
        if not heads:
            heads.append(read(manager))
        return heads[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "get_head_version", head)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data root of real images: METASEARCH_TEST_DATA, else shared/data beside the repository; skips without."""
    beside = SHARED / "data"
    root = Path(os.environ.get("METASEARCH_TEST_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no real data: METASEARCH_TEST_DATA is not set and {beside} is not there")
    return root


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL server, password included; skips where it is not installed."""
    binaries = postgresql.programs()
    if binaries is None:
        pytest.skip("no PostgreSQL: Debian's package `postgresql` is not installed")
    # not in pytest's own folder, which it closes to others: the server runs as somebody else
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder, postgresql.running(Path(folder), binaries) as url:
        yield url


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser of 1200 pixels that shows nothing yet; skipped where none is installed."""
    if browser.program() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    with browser.browsing(tmp_path / "profile") as found:
        found.view(1200)
        yield found
