"""The lease: one live driver per study."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import Study

from metasearch.errors import NotFoundError, StorageError
from metasearch.search import launch
from metasearch.search import lease as module
from metasearch.search.lease import Lease, ask_to_stop, holder_of
from metasearch.search.names import LEASE
from metasearch.search.store import STOP, create_study, load_study
from tests.command_line import Run
from tests.fakes import describe, new_storage

HERE = module._here()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    return optuna.create_study(storage=storage, study_name="s")


def quiet(reason: str) -> None:
    """Hear nothing."""


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(study: Study, *, pid: int = 1, age_s: float = 0.0, **changes: Any) -> None:
    study.set_user_attr(LEASE, HERE | changes | {"pid": pid, "token": "theirs", "time": time.time() - age_s})


def stored(study: Study) -> dict[str, Any]:
    """Return the lease that stands in the storage."""
    held: dict[str, Any] = study.user_attrs[LEASE]
    return held


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_for_renewal(study: Study) -> None:
    before = stored(study)["time"]
    wait_for(lambda: stored(study)["time"] != before)


def test_a_second_driver_is_refused_with_the_first_ones_process_and_what_to_do(study: Study) -> None:
    first = Lease(study, on_stop=quiet)
    first.acquire()
    try:
        with pytest.raises(
            StorageError, match=rf"study s: .*process {os.getpid()} on {HERE['host']}.*metasearch stop s"
        ):
            Lease(study, on_stop=quiet).acquire()
    finally:
        first.release()


def test_a_lease_given_back_is_free_for_the_next_driver(study: Study) -> None:
    for _ in range(2):
        lease = Lease(study, on_stop=quiet)
        lease.acquire()
        assert holder_of(study) is not None
        lease.release()
        assert holder_of(study) is None


def test_a_dead_process_on_this_host_loses_its_lease_at_once(study: Study) -> None:
    hold(study, pid=dead_process())
    assert holder_of(study) is None
    lease = Lease(study, on_stop=quiet)
    lease.acquire()
    assert stored(study)["token"] == lease._identity["token"]
    lease.release()


@pytest.mark.parametrize("name", ["boot", "pid_namespace"])
@pytest.mark.parametrize("theirs", ["another", None])
def test_a_process_of_a_machine_or_container_of_the_same_name_is_not_dead_at_once(
    study: Study, name: str, theirs: str | None
) -> None:
    changed: dict[str, Any] = {name: theirs}
    hold(study, pid=dead_process(), **changed)  # None: an older version did not say
    assert holder_of(study) is not None
    hold(study, pid=dead_process(), age_s=module.EXPIRES_S + 1, **changed)
    assert holder_of(study) is None


def test_a_driver_that_got_the_number_of_the_dead_one_takes_over(study: Study) -> None:
    hold(study, pid=os.getpid())  # as in a container, where the first process always has the same number
    lease = Lease(study, on_stop=quiet)
    lease.acquire()
    holder = holder_of(study)
    assert holder is not None
    assert holder["pid"] == os.getpid()
    lease.release()
    assert holder_of(study) is None


def test_a_process_that_does_not_renew_is_not_the_driver(study: Study) -> None:
    hold(study, pid=os.getppid(), age_s=module.EXPIRES_S + 1)
    assert holder_of(study) is None


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEW_S": 0.02, "EXPIRES_S": 0.4, "LOOK_S": 0.01}.items():
        monkeypatch.setattr(module, name, seconds)


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("skew_s", [-3600.0, 0.0, 3600.0])
def test_a_driver_on_another_host_is_alive_as_long_as_it_renews_whatever_its_clock(study: Study, skew_s: float) -> None:
    hold(study, host="elsewhere", age_s=skew_s)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.02):
            hold(study, host="elsewhere", age_s=skew_s)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(StorageError, match="elsewhere"):
            Lease(study, on_stop=quiet).acquire()
    finally:
        done.set()
        thread.join()
    started = time.monotonic()
    lease = Lease(study, on_stop=quiet)
    lease.acquire()  # nobody renews it now
    assert time.monotonic() - started < 5
    lease.release()


def test_there_is_no_lease_of_a_study_that_is_deleted_meanwhile(study: Study) -> None:
    lease = Lease(study, on_stop=quiet)
    optuna.delete_study(study_name="s", storage=study._storage)
    with pytest.raises(NotFoundError, match="study s: was deleted meanwhile"):
        lease.acquire()


@pytest.mark.usefixtures("short_lease")
def test_a_fresh_lease_of_another_host_is_waited_for_until_it_has_run_out(study: Study) -> None:
    hold(study, host="elsewhere")
    started = time.monotonic()
    lease = Lease(study, on_stop=quiet)
    lease.acquire()
    assert time.monotonic() - started > 0.3
    lease.release()


def test_a_lease_that_is_given_back_while_it_is_watched_is_taken_over_at_once(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    hold(study, host="elsewhere")
    heard: list[str] = []

    def watched(line: str) -> None:
        heard.append(line)
        with sqlite3.connect(str(study._storage._backend.engine.url.database)) as connection:  # type: ignore[attr-defined]  # behind the cache
            connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (LEASE,))

    started = time.monotonic()
    lease = Lease(study, on_stop=quiet, tell=watched)
    lease.acquire()
    assert time.monotonic() - started < 10  # of the 60 s that it is watched for
    lease.release()
    assert len(heard) == 1
    assert heard[0].startswith("study s: process 1 on elsewhere was driving it; watching for up to ")


def test_a_lease_that_is_given_back_between_the_look_and_the_take_over_is_taken(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Lease(study, on_stop=quiet) for _ in range(2))
    first.acquire()

    def dead(holder: object) -> bool:
        first.release()
        return False

    monkeypatch.setattr(module, "alive", dead)
    second.acquire()
    assert stored(study)["token"] == second._identity["token"]
    second.release()


def test_a_renewal_whose_answer_was_lost_is_ours_all_the_same(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    renewed = {**lease._identity, "time": time.time() + 1}
    study.set_user_attr(LEASE, renewed)  # in the storage, though the driver still holds the text before
    wait_for_renewal(study)
    lease.release()
    assert heard == []
    assert holder_of(study) is None


def test_of_drivers_that_start_at_once_exactly_one_goes_on(study: Study, tmp_path: Path) -> None:
    leases = [Lease(study, on_stop=quiet) for _ in range(6)]
    together = threading.Barrier(len(leases))
    won: list[Lease] = []

    def start(lease: Lease) -> None:
        together.wait()
        try:
            lease.acquire()
        except StorageError:
            return
        won.append(lease)

    threads = [threading.Thread(target=start, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_the_driver_hears_once_of_a_request_to_stop(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    ask_to_stop(study)
    wait_for(lambda: heard)
    for _ in range(2):
        wait_for_renewal(study)
    lease.release()
    assert heard == ["stop requested"]


def test_an_old_request_to_stop_does_not_stop_the_next_driver(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    study.set_user_attr(STOP, True)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    for _ in range(2):
        wait_for_renewal(study)
    lease.release()
    assert heard == []


def test_a_fault_of_the_thread_stops_the_driver_with_its_cause(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(held: str) -> bool:
        raise RuntimeError("a fault")

    monkeypatch.setattr(module, "RENEW_S", 0.02)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    monkeypatch.setattr(lease, "_swap", faulty)
    wait_for(lambda: heard)
    lease.release()
    assert heard == ["the lease cannot be renewed: RuntimeError: a fault"]


def test_a_driver_of_another_host_is_asked_to_stop_whatever_its_clock_and_a_dead_one_here_is_not(study: Study) -> None:
    with pytest.raises(NotFoundError, match=r"^study s: no driver is running$"):
        ask_to_stop(study)
    hold(study, pid=dead_process())
    with pytest.raises(NotFoundError):
        ask_to_stop(study)
    assert STOP not in study.user_attrs
    hold(study, host="elsewhere", age_s=3600)
    ask_to_stop(study)
    assert study.user_attrs[STOP]


def test_a_study_is_not_deleted_under_a_driver_of_another_host_whatever_its_clock(
    study: Study, tmp_path: Path, metasearch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(study, host="elsewhere", age_s=3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: hold(study, host="elsewhere", age_s=3600))
        code, _, err = metasearch("delete", "s", "--yes", "--storage", f"sqlite:///{tmp_path / 'studies.db'}")
    assert (code, "a driver is running (process 1 on elsewhere)" in err) == (5, True)
    assert optuna.get_all_study_names(study._storage) == ["s"]


def test_a_refused_driver_does_not_take_back_a_request_to_stop_the_first(study: Study) -> None:
    first = Lease(study, on_stop=quiet)
    first.acquire()
    study.set_user_attr(STOP, True)
    with pytest.raises(StorageError):
        Lease(study, on_stop=quiet).acquire()
    assert STOP in optuna.load_study(study_name="s", storage=study._storage).user_attrs
    first.release()


def test_the_driver_hears_that_another_took_its_study(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    hold(study, host="elsewhere")
    wait_for(lambda: heard)
    lease.release()
    assert heard == ["another driver took the study"]
    assert stored(study)["token"] == "theirs"


def test_a_storage_that_stays_away_stops_the_driver_and_release_does_not_fail(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    monkeypatch.setattr(module, "EXPIRES_S", 0.1)
    heard: list[str] = []
    lease = Lease(study, on_stop=heard.append)
    lease.acquire()
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("ALTER TABLE study_user_attributes RENAME TO away")
    time.sleep(0.5)
    lease.release()
    assert len(heard) == 1
    assert "the storage has been away" in heard[0]


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (True, 130, "stopped (stop requested); nothing finished is lost. Go on with: metasearch resume s"),
        (
            False,
            5,
            "study s: the storage has been away for 0 s: no such table: study_user_attributes; nothing finished",
        ),
    ],
)
def test_a_driver_that_stops_for_its_storage_is_to_be_tried_again_and_one_that_was_asked_to_is_not(
    asked: bool, code: int, told: str, tmp_path: Path, metasearch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    monkeypatch.setattr(module, "EXPIRES_S", 0.1)

    def run(search: launch._Search, **_: object) -> launch.Outcome:
        if asked:
            ask_to_stop(load_study(search.storage, "s"))
        else:
            rename("study_user_attributes", "away")
        wait_for(search.stop.is_set)
        if not asked:
            rename("away", "study_user_attributes")
        return launch.Outcome(search.study, stopped=search.stop.reason)

    def rename(old: str, new: str) -> None:
        with sqlite3.connect(tmp_path / "studies.db") as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

    monkeypatch.setattr(launch._Search, "run", run)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    create_study(new_storage(url), "s", describe(tmp_path))
    ended, _, err = metasearch("resume", "s", "--storage", url)
    assert (ended, told in err, "metasearch resume s" in err) == (code, True, True)


def test_the_lease_is_plain_json_without_the_storage_url(study: Study, tmp_path: Path) -> None:
    lease = Lease(study, on_stop=quiet)
    lease.acquire()
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        [(text,)] = connection.execute(
            "SELECT value_json FROM study_user_attributes WHERE key = ?", (LEASE,)
        ).fetchall()
    lease.release()
    assert json.loads(text).keys() == {*HERE, "pid", "token", "time"}
