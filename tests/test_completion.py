"""Completion as a shell asks for it: through the environment, after every word of a command line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from metasearch.completion import complete_space, complete_task
from metasearch.resources import preset_names
from metasearch.tasks.registered import REGISTERED
from tests.command_line import Run
from tests.report.studies import reported_study

PROGRAM = """
import sys
from metasearch.cli import main
sys.argv = ["metasearch"]
try:
    main()
finally:
    print(*(name for name in ("torch", "ray", "pandas") if name in sys.modules), file=sys.stderr)
"""
Complete = Callable[[str], list[str]]
"""What bash is offered after a command line; no word goes to stderr."""


def asked(line: str) -> dict[str, str]:
    """Return the environment by which bash asks what may follow a command line."""
    position = str(len(line.split(" ")) - 1)
    return {"_METASEARCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": position}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with the studies ten, with its controls, and other."""
    folder = tmp_path_factory.mktemp("studies")
    found = f"sqlite:///{folder / 'studies.db'}"
    reported_study(found, folder, trials=5)
    reported_study(found, folder, "other", trials=5, with_controls=False)
    return found


@pytest.fixture
def complete(metasearch: Run, monkeypatch: pytest.MonkeyPatch) -> Complete:
    def run(line: str) -> list[str]:
        for name, value in asked(line).items():
            monkeypatch.setenv(name, value)
        code, out, err = metasearch()
        assert (code, err) == (0, "")
        return out.split()

    return run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("metasearch best ", ["other", "ten"]),
        ("metasearch watch t", ["ten"]),
        ("metasearch compare ten o", ["other"]),
        ("metasearch report ten o", ["other"]),
        ("metasearch launch digits --fix-structure t", ["ten"]),
        ("metasearch launch digits --warm-start a", ["auto"]),
        ("metasearch launch digits --warm-start ten,o", ["ten,other"]),
        ("metasearch launch fashion", ["fashion_mnist"]),
        ("metasearch tasks check fold", ["folder:"]),
        ("metasearch launch digits --space qu", ["quick"]),
    ],
)
def test_names_are_completed(
    complete: Complete, url: str, monkeypatch: pytest.MonkeyPatch, line: str, offered: list[str]
) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", url)
    assert complete(line) == offered


@pytest.mark.parametrize(
    "line", ["metasearch best t", "metasearch launch fashion", "metasearch launch digits --space q"]
)
def test_completion_loads_no_heavy_module(url: str, line: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=os.environ | asked(line) | {"METASEARCH_STORAGE": url},
        timeout=60,
        check=True,
    )
    assert run.stdout != ""
    assert run.stderr == "\n"


def test_the_storage_of_the_command_line_is_the_one_that_is_asked(complete: Complete, url: str) -> None:
    assert complete(f"metasearch best --storage {url} t") == ["ten"]


@pytest.mark.parametrize("url", ["sqlite:///nowhere.db", "redis://host", "postgresql://u@127.0.0.1:9/none"])
def test_a_storage_that_is_missing_foreign_or_away_offers_nothing_and_says_nothing(
    complete: Complete, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", url)
    assert complete("metasearch best t") == []


def test_a_file_that_is_locked_or_no_database_offers_nothing_and_says_nothing(
    complete: Complete, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("this is no database")
    monkeypatch.setenv("METASEARCH_STORAGE", f"sqlite:///{tmp_path / 'text.db'}")
    assert complete("metasearch best t") == []
    monkeypatch.setenv("METASEARCH_STORAGE", f"sqlite:///{tmp_path / 'locked.db'}")
    with closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as locking:
        locking.execute("CREATE TABLE studies (study_name TEXT)")
        locking.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert complete("metasearch best t") == []
        assert time.monotonic() - started < 30  # other readers are patient for a minute


def test_every_task_and_preset_is_offered() -> None:
    assert set(REGISTERED) | {"folder:", "npz:", "table:", "python:"} <= set(complete_task(""))
    assert list(complete_space("")) == preset_names()


def test_bash_is_told_how_to_ask() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).with_name("metasearch")), "--show-completion", "bash"],
        capture_output=True,
        text=True,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        timeout=60,
        check=True,
    )
    assert "_METASEARCH_COMPLETE=complete_bash" in run.stdout
