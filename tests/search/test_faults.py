"""Real faults: drivers that are killed, interrupted and refused, each a process of its own.

Run as a script (`python test_faults.py STORAGE TARGET`) this file is the driver that the tests start and kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState

from metasearch.errors import StorageError
from metasearch.records import EpochReport, TrialResult
from metasearch.search.attempts import RETRIES
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.pareto import dominates
from metasearch.search.samplers import make_sampler
from metasearch.search.store import CONTROLS, FAILURE, LEFT, LOSSES, STOP, is_finished, open_storage
from tests.fakes import new_storage

pytestmark = pytest.mark.slow

SECONDS = 0.15


def books_of(url: str, target: int) -> Ledger:
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    study.sampler = make_sampler("random", seed=0, trials_so_far=len(study.trials))
    return Ledger(
        study,
        lambda trial: Proposal({"x": trial.suggest_float("x", 0, 1), "y": trial.suggest_float("y", 0, 1)}),
        target=target,
        seed=5,
        objectives=("val_accuracy", "macs"),
        artefacts=str(Path(url.removeprefix("sqlite:///")).parent / "artefacts"),
    )


def main(url: str, target: int) -> int:
    """Drive the study as `run_study` does, with trials that sleep."""
    from metasearch.search.lease import Lease
    from metasearch.search.runner import Resources, drive, ray_running
    from metasearch.search.stopping import StopFlag
    from metasearch.search.worker import TrialRequest

    seconds = SECONDS

    def evaluate(request: TrialRequest, shared: object) -> Generator[EpochReport, None, TrialResult]:
        x, y = request.config["x"], request.config["y"]
        for epoch in (1, 2, 3):
            time.sleep(seconds)
            yield EpochReport("distill", epoch, 3, 0.1, x, 10, 0.1, 1.0, 0.1)
        assert request.folder is not None
        folder = Path(request.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(json.dumps([request.config, request.seed]))
        return TrialResult(request.config, request.seed, {"val_accuracy": x * y, "macs": x + y})

    stop = StopFlag()
    resources = Resources(workers=2)
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    lease = Lease(study, on_stop=stop.set)
    try:
        lease.acquire()
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    with ray_running(resources):
        drive(books_of(url, target), evaluate, lambda: None, resources=resources, stop=stop)
    lease.release()
    return 0


# The processes of a session that a test started


def members(session: int) -> dict[int, str]:
    """Return the living processes of a session: number -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.25)


@contextlib.contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own; end whatever is left of that session afterwards."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *members(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(storage=new_storage(url), study_name="s", directions=["maximize", "minimize"])
    study.enqueue_trial({"x": 0.5, "y": 0.25})
    return url


@cache
def opened(url: str) -> RDBStorage:
    """Return a storage that is opened once: the tests ask it many times a second, on cores that the search wants."""
    return open_storage(url)


def study_at(url: str, name: str = "s") -> Study:
    return optuna.load_study(study_name=name, storage=opened(url))


def finished_at(url: str, name: str = "s") -> int:
    return sum(map(is_finished, study_at(url, name).get_trials(deepcopy=False)))


def front_of(study: Study) -> dict[int, tuple[float, float]]:
    return {trial.number: (-trial.values[0], trial.values[1]) for trial in study.best_trials}


def test_a_driver_killed_at_random_moments_comes_to_exactly_n_trials(url: str, tmp_path: Path) -> None:
    target, moments = 24, random.Random(7)
    asked: dict[int, dict[str, Any]] = {}
    front: dict[int, tuple[float, float]] = {}
    driver = (sys.executable, __file__, url, str(target))

    def take_stock() -> None:
        nonlocal front
        trials = study_at(url).trials
        for trial in trials:
            known = asked.setdefault(trial.number, dict(trial.params))
            assert known.items() <= trial.params.items(), "a trial's parameters changed"
            asked[trial.number] = dict(trial.params)
        now = front_of(study_at(url))
        for old in front.values():
            assert any(old == new or dominates(new, old) for new in now.values()), "the front became worse"
        front = now

    for _ in range(3):
        before = finished_at(url)
        with started(*driver) as process:
            wait_until(lambda n=before: finished_at(url) > n, timeout_s=300, what="a trial finishes")  # type: ignore[misc]
            time.sleep(moments.uniform(0, 1.0))
            os.kill(process.pid, signal.SIGKILL)
            wait_until(
                # Two agents of Ray's wait up to a minute for the dead head node, then leave by themselves.
                lambda sid=process.pid: all("Agent" in line for line in members(sid).values()),  # type: ignore[misc]
                timeout_s=30,
                what="Ray's processes die with the driver",
            )
        take_stock()
        assert finished_at(url) < target
    assert subprocess.run(driver, check=False, capture_output=True).returncode == 0
    take_stock()
    study = study_at(url)
    assert finished_at(url) == target
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert all(trial.state.is_finished() for trial in study.trials)
    assert any(trial.user_attrs.get(LOSSES) for trial in study.trials)
    parameters = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(parameters)) == len(parameters)
    assert study.trials[0].params == {"x": 0.5, "y": 0.25}
    # Artefacts: those of the front alone, each written by its own trial.
    folders = {int(folder.name[6:]): folder for folder in (tmp_path / "artefacts").glob("trial-*")}
    assert folders.keys() == front.keys()
    for number, folder in folders.items():
        config, _ = json.loads((folder / "weights").read_text())
        assert config == study.trials[number].params


def test_a_second_live_driver_is_refused_and_the_first_goes_on(url: str) -> None:
    driver = (sys.executable, __file__, url, "6")
    with started(*driver) as first:
        wait_until(lambda: "lease" in study_at(url).user_attrs, timeout_s=60, what="the first driver starts")
        second = subprocess.run(driver, check=False, capture_output=True, text=True)
        assert second.returncode == 5
        assert second.stderr.count("\n") == 1
        assert f"a driver is running (process {first.pid}" in second.stderr
        assert first.wait(timeout=300) == 0
    assert finished_at(url) == 6
    assert "lease" not in study_at(url).user_attrs


def test_a_worker_that_ray_kills_for_want_of_memory_is_a_lost_trial_and_not_the_end_of_the_search(url: str) -> None:
    # to Ray the memory of the node is as good as full, and every worker one too many
    full = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    with started(sys.executable, __file__, url, "1", **full) as driver:
        assert driver.wait(timeout=300) == 0
    [trial] = study_at(url).trials
    assert trial.user_attrs[LOSSES] == RETRIES + 1
    assert trial.user_attrs[FAILURE]["reason"] == "out_of_memory"


# The real command line


SPACE = """
name: tiny
objectives: [val_accuracy, model_bytes]
policies:
  learning_rate: {low: 0.01, high: 0.1}
  temperature: 2
  student.width: {low: 2, high: 12}
  pruning_ratio: 0.0
parameters:
  student.family: mlp
  student.depth: 1
  alpha: 0.5
  epochs: 6
  fine_tune_epochs: 0
  quantize: none
"""


def metasearch(*arguments: str) -> tuple[str, ...]:
    return (str(Path(sys.executable).with_name("metasearch")), *arguments)


@pytest.fixture
def launch(metasearch_home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the command of a search of small things, made study `s` in the home folder's storage."""
    monkeypatch.delenv("METASEARCH_STORAGE", raising=False)
    (metasearch_home / "tiny.yaml").write_text(SPACE)
    search = ("launch", "digits", "--space", str(metasearch_home / "tiny.yaml"), "--name", "s", "--workers", "2")
    return metasearch(*search, "--teacher", "mlp:width=16,depth=1", "--max-train", "400")


def test_a_search_that_is_interrupted_terminated_stopped_and_out_of_time_loses_nothing(
    metasearch_home: Path, launch: tuple[str, ...]
) -> None:
    url = f"sqlite:///{metasearch_home / 'studies.db'}"
    target, resume = 400, metasearch("resume", "s", "--workers", "2")

    def stop_by_command(pid: int) -> None:
        assert subprocess.run(metasearch("stop", "s"), check=False, capture_output=True).returncode == 0

    def reached(count: int) -> bool:
        with contextlib.suppress(Exception):  # the storage or the study may not be there yet
            return finished_at(url) >= count
        return False

    ways: list[tuple[str, Callable[[int], None]]] = [
        ("interrupted", lambda pid: os.killpg(pid, signal.SIGINT)),  # as a terminal does, to Ray's processes, too
        ("terminated", lambda pid: os.kill(pid, signal.SIGTERM)),
        ("stop requested", stop_by_command),
    ]
    for step, (reason, act) in enumerate(ways):
        before = finished_at(url) if step else 0
        with started(*(resume if step else (*launch, "--trials", str(target)))) as process:
            wait_until(lambda n=before + 1: reached(n), timeout_s=300, what="a trial finishes")  # type: ignore[misc]
            act(process.pid)
            out, err = process.communicate(timeout=180)
            assert process.returncode == 130, err
            assert f"stopped ({reason}); nothing finished is lost. Go on with: metasearch resume s" in err
            assert out == ""
            assert "Traceback" not in err
            assert "ray" not in err.lower()
            wait_until(lambda sid=process.pid: not members(sid), timeout_s=30, what="every process ends")  # type: ignore[misc]
        assert 0 < finished_at(url) < target
    done = subprocess.run((*resume, "--timeout", "10s"), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "controls, on the test split" in done.stdout  # a limit ends the trials alone
    study = study_at(url)
    assert 0 < finished_at(url) < target
    left = {trial.number for trial in study.trials if not is_finished(trial)}  # by the limit: they may have published
    assert all(study.trials[number].user_attrs[LEFT] for number in left)
    assert not any(trial.user_attrs.get(LOSSES) for trial in study.trials)  # a stop in good order loses nothing
    assert not any(FAILURE in trial.user_attrs for trial in study.trials)
    kept = {int(folder.name[6:]) for folder in (metasearch_home / "artefacts" / "s").glob("trial-*")}
    assert kept - left == {trial.number for trial in study.best_trials}
    runs = study_at(url, "s" + CONTROLS).trials
    assert all(trial.state == TrialState.COMPLETE for trial in runs)
    assert STOP not in study.user_attrs
    assert "ray" not in (done.stdout + done.stderr).lower()


def test_a_place_for_artefacts_that_cannot_be_written_is_refused_at_the_start(
    metasearch_home: Path, tmp_path: Path, launch: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        (*launch, "--artefacts", str(tmp_path / "file" / "a")), check=False, capture_output=True, text=True
    )
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "must be writable: Not a directory" in done.stderr
    assert optuna.get_all_study_names(open_storage(f"sqlite:///{metasearch_home / 'studies.db'}")) == []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
