from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from metasearch.report.database import Database, open_database
from metasearch.report.standing import Standing, standing
from metasearch.search import patience
from metasearch.search.lease import _here
from metasearch.search.names import FAILURE, LEASE, LOST
from metasearch.watch_command import picture, summary
from tests.command_line import Run
from tests.report.studies import reported_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage with a study of 30 finished trials, of 40 wanted, whose every fifth failed."""
    found = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(found, tmp_path, "thirty", trials=30)
    study = optuna.load_study(storage=found, study_name="thirty")
    described = study.user_attrs["metasearch"]
    study.set_user_attr("metasearch", described | {"trials": 40})
    return found


@pytest.fixture
def database(url: str) -> Database:
    return open_database(url)


def drive(url: str, pid: int) -> None:
    """Give the study a driver: a process of this machine."""
    lease = {**_here(), "pid": pid, "token": "other", "time": time.time()}
    optuna.load_study(storage=url, study_name="thirty").set_user_attr(LEASE, lease)


def made_up(**changes: Any) -> Standing:
    values: dict[str, Any] = {
        "study": "s",
        "target": 10,
        "states": {"COMPLETE": 4, "RUNNING": 2, "PRUNED": 1},
        "finished": 5,
        "failures": {},
        "rate": 2.5,
        "driver": {"pid": 7, "host": "here"},
        "front": None,
    }
    return Standing(**values | changes)


def test_a_standing_counts_what_the_study_has(url: str, database: Database) -> None:
    study = optuna.load_study(storage=url, study_name="thirty")
    study.add_trial(create_trial(state=TrialState.RUNNING))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: {"reason": LOST}}))
    now = standing(database, "thirty", top=3)
    assert now.states == {"COMPLETE": 24, "FAIL": 7, "RUNNING": 1}
    assert now.failures == {"diverged": 6, LOST: 1}
    assert (now.finished, now.target) == (30, 40)  # a lost trial does not count
    assert now.driver is None
    assert now.front is not None
    best = {trial.number for trial in study.best_trials}
    assert len(now.front) == min(3, len(best))
    assert set(now.front.cells["number"]) <= best


def test_a_status_needs_no_description_of_ours(metasearch: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    optuna.create_study(storage=url, study_name="theirs").optimize(lambda trial: 1.0, n_trials=2)
    assert metasearch("status", "theirs", "--storage", url)[:2] == (
        0,
        "theirs: 2 trials finished, 0 running\nno driver\n",
    )
    found = json.loads(metasearch("status", "theirs", "--json", "--storage", url)[1])
    assert (found["task"], found["trials"], found["teacher"]) == (None, None, None)


def test_a_driver_is_shown_while_its_process_lives(url: str, database: Database) -> None:
    drive(url, os.getppid())
    found = standing(database, "thirty", top=1).driver
    assert found is not None
    assert found["pid"] == os.getppid()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    drive(url, ended.pid)
    assert standing(database, "thirty", top=1).driver is None


def test_the_time_left_follows_from_the_rate() -> None:
    assert made_up().seconds_left == 60 * 5 / 2.5
    assert made_up(rate=None).seconds_left is None
    assert made_up(finished=10).seconds_left is None


def test_the_summary_says_who_drives_or_what_to_do() -> None:
    assert summary(made_up()) == (
        "s: 5/10 finished, 2 running, 1 stopped early, 2.5 trials/min, 2 min 0 s left; driver 7 on here"
    )
    stopped = made_up(driver=None, states={"COMPLETE": 4}, failures={"diverged": 1})
    assert summary(stopped) == "s: 5/10 finished, 0 running, 1 failed (diverged); no driver: metasearch resume s"
    assert summary(made_up(driver=None, finished=10)).endswith("; done")
    assert summary(made_up(target=None)).startswith("s: 5 finished")


def test_the_picture_holds_summary_and_front(database: Database) -> None:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed with the process
    now = standing(database, "thirty", top=2)
    console.print(picture(now))
    text = console.export_text()
    assert "thirty: 30/40 finished" in text
    assert now.front is not None
    assert all(f"\n{number:6}" in text for number in now.front.cells["number"])
    console.print(picture(made_up(no_front="none of 4 trials")))
    assert "none of 4 trials" in console.export_text()


def test_into_a_pipe_goes_a_line_a_change_until_the_driver_ends(
    url: str, metasearch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(url, os.getppid())
    study, looks = optuna.load_study(storage=url, study_name="thirty"), 0

    def pass_time(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: {"reason": "no_effect"}}))
        if looks == 4:
            drive(url, 2**22 + 1)  # no process has this number

    monkeypatch.setattr(time, "sleep", pass_time)
    code, out, _ = metasearch("watch", "thirty", "--storage", url)
    assert code == 0
    assert looks == 4
    first, second, last = out.splitlines()
    assert first.startswith("thirty: 30/40 finished")
    assert "1 failed (no_effect)" in second
    assert last.endswith("no driver: metasearch resume thirty")


def test_a_storage_that_was_away_for_a_moment_is_watched_on(
    url: str, metasearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, away = tmp_path / "studies.db", tmp_path / "away.db"
    drive(url, os.getppid())

    def come_back(seconds: float) -> None:
        away.rename(there)
        drive(url, 2**22 + 1)  # no process has this number

    monkeypatch.setattr(time, "sleep", lambda seconds: there.rename(away))
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=come_back))
    code, out, err = metasearch("watch", "thirty", "--storage", url)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err == "the storage is away (unable to open database file); trying again for up to 60 s\n"


def test_a_storage_that_stays_away_ends_with_exit_code_5(
    url: str, metasearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(url, os.getppid())
    monkeypatch.setattr(time, "sleep", lambda seconds: (tmp_path / "studies.db").rename(tmp_path / "away.db"))
    late = SimpleNamespace(monotonic=count(0, patience.GIVE_UP_S / 2).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(patience, "time", late)
    code, out, err = metasearch("watch", "thirty", "--storage", url)
    assert (code, len(out.splitlines())) == (5, 1)
    assert err.splitlines()[-1] == f"metasearch: {url}: unable to open database file"


def test_an_unknown_study_is_one_line(url: str, metasearch: Run) -> None:
    code, _, err = metasearch("watch", "thirsty", "--storage", url)
    assert code == 3
    assert "did you mean thirty" in err
