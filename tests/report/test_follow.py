"""The page of a running search: renewed while it has a driver, left still at its end, and never lost halfway."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from metasearch.errors import NotFoundError
from metasearch.report.database import open_database
from metasearch.report.page.follow import follow_page
from metasearch.report.page.render import PAGE, write_page
from metasearch.report.page.report import make_report
from metasearch.search import patience
from metasearch.search.lease import _here
from metasearch.search.names import FAILURE, LEASE
from metasearch.search.store import create_study
from tests.browser import Browser
from tests.command_line import Run
from tests.fakes import describe, new_storage
from tests.report.studies import reported_study

RENEWED = 'data-renew-s="'
NOBODY = 2**22 + 1
"""No process has this number."""


def drive(url: str, name: str, pid: int) -> None:
    """Give the study a driver: a process of this machine."""
    lease = {**_here(), "pid": pid, "token": "other", "time": time.time()}
    optuna.load_study(storage=url, study_name=name).set_user_attr(LEASE, lease)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage with a study of ten trials that has a driver."""
    found = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(found, tmp_path, trials=10)
    drive(found, "ten", os.getppid())
    return found


def test_a_followed_page_is_written_when_the_study_changed_and_stands_still_at_the_end(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, written = tmp_path / "page" / PAGE, list[tuple[int, bool]]()

    def pass_time(seconds: float) -> None:
        assert seconds >= 2
        written.append((page.stat().st_mtime_ns, RENEWED in page.read_text("utf-8")))
        if len(written) == 2:
            failure = {FAILURE: {"reason": "no_effect", "message": "a new one"}}
            study = optuna.load_study(storage=url, study_name="ten")
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=failure))
        if len(written) == 3:
            drive(url, "ten", NOBODY)

    monkeypatch.setattr(time, "sleep", pass_time)
    last = follow_page(open_database(url), ["ten"], tmp_path / "page", every_s=2)
    (first, running), (second, _), (third, still_running) = written
    assert running
    assert still_running
    assert first == second < third
    assert last is not None
    assert len(last.parts[0].facts.table) == 11
    text = page.read_text("utf-8")
    assert RENEWED not in text
    assert "a new one" in text


def test_a_study_without_trials_is_waited_for_while_it_has_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    create_study(new_storage(url), "new", describe(tmp_path))
    drive(url, "new", os.getppid())
    told: list[str] = []

    def end(seconds: float) -> None:
        drive(url, "new", NOBODY)

    monkeypatch.setattr(time, "sleep", end)
    with pytest.raises(NotFoundError, match="no trial yet"):
        follow_page(open_database(url), ["new"], tmp_path / "page", every_s=1, tell=told.append)
    assert told == ["study new: no trial yet; the page comes with the first"]
    assert not (tmp_path / "page").exists()


def test_leaving_ends_with_exit_code_0_and_a_page_that_stands_still(
    metasearch: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    page = tmp_path / "page" / PAGE
    follow = ["report", "ten", "--html", str(page.parent), "--follow", "--storage", url]
    monkeypatch.setattr(time, "sleep", interrupt)
    code, out, _ = metasearch(*follow)
    assert (code, out) == (0, f"{page}\n")
    assert RENEWED not in page.read_text("utf-8")


def test_a_storage_that_was_away_for_a_moment_is_followed_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, away, told = tmp_path / "studies.db", tmp_path / "away.db", list[str]()

    def come_back(seconds: float) -> None:
        away.rename(there)
        drive(url, "ten", NOBODY)

    monkeypatch.setattr(time, "sleep", lambda seconds: there.rename(away))
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=come_back))
    assert follow_page(open_database(url), ["ten"], tmp_path / "page", every_s=2, tell=told.append) is not None
    assert told.count("the storage is away (unable to open database file); trying again for up to 60 s") == 1


def test_a_storage_that_stays_away_ends_with_exit_code_5_and_a_page_that_stands_still(
    metasearch: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, page = tmp_path / "studies.db", tmp_path / "page" / PAGE
    monkeypatch.setattr(time, "sleep", lambda seconds: there.rename(tmp_path / "away.db"))
    late = SimpleNamespace(monotonic=count(0, patience.GIVE_UP_S / 2).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(patience, "time", late)
    code, _, err = metasearch("report", "ten", "--html", str(page.parent), "--follow", "--storage", url)
    assert code == 5
    assert err.splitlines()[-1] == f"metasearch: {url}: unable to open database file"
    assert RENEWED not in page.read_text("utf-8")


def test_following_needs_a_page(metasearch: Run, url: str, tmp_path: Path) -> None:
    code, _, err = metasearch("report", "ten", "--figures", str(tmp_path), "--follow", "--storage", url)
    assert (code, err) == (2, "metasearch: --follow: needs --html DIR, the page that is renewed\n")


@pytest.mark.slow
def test_an_open_page_renews_itself_in_place_until_the_search_has_ended(
    url: str, tmp_path: Path, opened: Browser
) -> None:
    database, ready = open_database(url), "document.documentElement?.dataset.ready === 'true'"
    page = write_page(make_report(database, ["ten"]), tmp_path, renew_s=1)
    opened.open(page)
    opened.wait("document.body.innerText.includes('this page renews itself every 1 seconds')")
    as_left = "scrollY === 700 && location.hash === '#study-0' && document.querySelectorAll('details')[1].open"
    assert opened.evaluate(  # at once: the page may be renewed between two questions
        "(() => { location.hash = '#study-0'; document.querySelectorAll('details')[1].open = true;"
        f" window.scrollTo(0, 700); window.old = true; return {as_left}; }})()"
    )
    opened.wait(f"window.old === undefined && {ready} && {as_left}")
    write_page(make_report(database, ["ten"]), tmp_path)
    opened.wait(f"document.documentElement?.dataset.renewS === undefined && {ready}")
    opened.evaluate("window.old = true")
    time.sleep(1.5)
    assert opened.evaluate("window.old")  # no more: the search has ended
    assert opened.evaluate("scrollY") != 0
    assert opened.messages == []
    assert {address for address in opened.requests if not address.startswith("data:")} <= {
        page.resolve().as_uri(),
        page.resolve().as_uri() + "#study-0",
    }
