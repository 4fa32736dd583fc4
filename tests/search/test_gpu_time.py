"""`--gpu-hours`: what counts, who knows of it, and when a search ends by it. No GPU is needed: time is only counted."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import Study

from metasearch.errors import InputError
from metasearch.records import TrialResult
from metasearch.search import launch
from metasearch.search.attempts import RETRIES, Attempts
from metasearch.search.budget import NO_MORE, More
from metasearch.search.gpu_time import gpu_seconds, settle
from metasearch.search.lease import Lease
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.names import BEGUN, LEASE, LEFT, LOSSES, SPENT
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.samplers import make_sampler
from metasearch.search.searcher import GPU_HOURS_USED, LedgerSearcher, Limits
from metasearch.search.space import parse_space
from metasearch.search.stopping import StopFlag
from metasearch.search.store import create_study, description_of, load_study
from metasearch.search.worker import TrialOutcome
from metasearch.tasks import TaskSource
from metasearch.teachers import Teacher
from tests.command_line import Run
from tests.fakes import describe, new_storage

HALF = Resources(workers=1, gpus=0.5)
RESULT = TrialResult({"x": 0.1}, 0, {"val_accuracy": 0.5, "macs": 1.0})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    return optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])


def ledger(study: Study, target: int = 9) -> Ledger:
    """Return the ledger of a driver that has just started."""
    study.sampler = make_sampler("random", seed=0, trials_so_far=len(study.trials))
    propose = lambda trial: Proposal({"x": trial.suggest_float("x", 0, 1)})  # noqa: E731 - short
    return Ledger(study, propose, target=target, seed=5, objectives=("val_accuracy", "macs"))


def attempt(seconds: float) -> dict[str, Any]:
    return {"started": 100.0, "ended": 100.0 + seconds, "gpus": 0.5}


def test_attempts_that_ended_and_those_that_were_lost_count_and_the_next_driver_knows(study: Study) -> None:
    books = ledger(study)
    books.tell_result(books.ask()[0], RESULT, attempt(8))
    for _ in range(2):
        books.tell_lost(books.ask()[0], "its worker died", attempt(6))
    assert books.gpu_seconds == 4 + 3 + 3
    books.leave_running({1: 2.0})
    assert ledger(study).gpu_seconds == 10
    again = ledger(study)
    again.tell_result(again.ask()[0], RESULT, attempt(10))
    assert again.gpu_seconds == ledger(study).gpu_seconds == 15


def test_a_trial_that_is_given_up_counts_every_attempt_once(study: Study) -> None:
    books = ledger(study)
    for _ in range(RETRIES + 1):
        books.tell_lost(books.ask()[0], "its worker died", attempt(6))
    assert study.trials[0].state.name == "FAIL"
    assert books.gpu_seconds == ledger(study).gpu_seconds == 3 * (RETRIES + 1)


def searcher_of(books: Ledger, stop: StopFlag, hours: float) -> LedgerSearcher:
    return LedgerSearcher(books, at_once=lambda: 1, gpus=0.5, limits=Limits(gpu_hours=hours), stop=stop)


def test_the_search_ends_after_the_trial_that_used_the_last_of_them_and_a_resumed_one_asks_for_none(
    study: Study,
) -> None:
    stop = StopFlag()
    searcher = searcher_of(ledger(study), stop, hours=1.0)
    for index, hours in enumerate((1.5, 1.5)):
        assert not stop.is_set()
        searcher.suggest(str(index))
        worker = {"started": 0.0, "ended": 3600 * hours}
        searcher.on_trial_complete(str(index), {"outcome": TrialOutcome(RESULT, None, worker)})
    assert searcher.fault is None
    assert stop.reason == GPU_HOURS_USED
    stop = StopFlag()
    assert searcher_of(ledger(study), stop, hours=1.0).suggest("2") == "FINISHED"
    assert stop.reason == GPU_HOURS_USED
    assert len(study.trials) == 2
    assert isinstance(searcher_of(ledger(study), StopFlag(), hours=2.0).suggest("2"), dict)  # of a larger budget


def test_the_time_of_what_runs_counts_from_its_begin_and_is_kept_by_a_stop(study: Study) -> None:
    books = ledger(study)
    searcher = searcher_of(books, StopFlag(), hours=1.0)
    searcher.suggest("a")
    time.sleep(0.02)
    assert searcher.gpu_seconds_of_running() == {}  # it waits for a node
    searcher.report("a", {"begun": None})
    time.sleep(0.02)
    books.leave_running(searcher.gpu_seconds_of_running())
    assert 0.01 <= ledger(study).gpu_seconds < 5


def test_what_ran_under_a_driver_that_was_killed_counts_until_its_last_word_and_once(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = searcher_of(ledger(study), StopFlag(), hours=1.0)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    searcher.suggest("a")
    searcher.report("a", {"begun": None})
    for _ in range(2):  # two drivers: the first of them dies before it adopts what was left
        settle(study, 1060.0)
        assert gpu_seconds(study.trials) == 30.0
    assert ledger(study).gpu_seconds == 30.0
    searcher = searcher_of(ledger(study), StopFlag(), hours=1.0)
    searcher.suggest("a")
    settle(study, 5000.0)  # killed before the trial began again
    assert ledger(study).gpu_seconds == 30.0


def test_what_was_lost_or_left_in_good_order_is_not_counted_again(study: Study) -> None:
    books = ledger(study)
    searcher = searcher_of(books, StopFlag(), hours=1.0)
    searcher.suggest("a")
    searcher.report("a", {"begun": None})
    books.leave_running({0: 7.0})
    settle(study, time.time() + 3600)
    again = ledger(study)
    assert again.gpu_seconds == 7.0
    again.ask()
    settle(study, time.time() + 3600)  # killed before the trial began again
    assert ledger(study).gpu_seconds == 7.0


@pytest.mark.parametrize("killed", [True, False])
def test_a_driver_settles_what_a_killed_one_left_and_at_a_second_interrupt_its_own(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    create_study(storage, "s", describe(tmp_path))
    now = time.time()
    lease = {"host": "here", "pid": 1, "token": "theirs", "time": now - 600}

    def begin(started: float) -> None:
        trial = load_study(storage, "s").ask()
        trial.set_user_attr(BEGUN, {"started": started, "gpus": 0.5})

    def run(search: launch._Search, **_: object) -> launch.Outcome:
        if not killed:
            begin(now - 3600)
            raise KeyboardInterrupt
        return launch.Outcome(search.study)

    if killed:
        begin(now - 4200)
        load_study(storage, "s").set_user_attr(LEASE, lease)
    monkeypatch.setattr(Lease, "_watched", lambda _, held, holder: held)
    monkeypatch.setattr(launch._Search, "run", run)
    launch.run_study(storage, "s", resources=Resources())
    assert gpu_seconds(load_study(storage, "s").trials) == pytest.approx(1800, abs=60)


def test_a_worker_that_died_before_its_trial_began_has_used_nothing(study: Study) -> None:
    books = ledger(study)
    searcher = searcher_of(books, StopFlag(), hours=1.0)
    searcher.suggest("a")
    time.sleep(0.02)
    searcher.on_trial_complete("a", error=True)
    assert searcher.fault is None
    assert books.gpu_seconds == 0


@pytest.mark.parametrize(("hours", "more"), [(1.0, NO_MORE), (None, More(gpu_hours=1.0))])
def test_a_study_with_a_budget_is_not_resumed_without_a_share_of_a_gpu(
    hours: float | None, more: More, tmp_path: Path
) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    create_study(storage, "s", describe(tmp_path, gpu_hours=hours))
    with pytest.raises(InputError, match="--gpus-per-trial: must be given: the study has a budget of GPU-hours"):
        launch.run_study(storage, "s", resources=Resources(), more=more)


def test_a_time_limit_is_of_one_driver_and_what_adds_up_is_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    def run(search: launch._Search, **_: object) -> launch.Outcome:
        limits.append(search.timeout_s)
        return launch.Outcome(search.study)

    monkeypatch.setattr(launch._Search, "run", run)
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    create_study(storage, "s", describe(tmp_path, trials=8))
    launch.run_study(storage, "s", resources=Resources(), more=More(trials=9, timeout_s=60.0))
    launch.run_study(storage, "s", resources=Resources())
    assert limits == [60.0, None]
    assert description_of(load_study(storage, "s")).trials == 9


def test_the_controls_of_a_study_are_not_driven_alone(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    with pytest.raises(InputError, match="study s/controls: is of the controls of another, and is driven with it"):
        launch.run_study(storage, "s/controls", resources=Resources())


def test_what_is_left_of_an_attempt_says_all_that_is_known_of_the_earlier_ones() -> None:
    attempts = Attempts()
    attempts.lost(3)
    attempts.left(3, 5.0)  # whose note the storage never got
    assert attempts.left(3, 0.0) == {LEFT: True, SPENT: 5.0, LOSSES: 1}


def test_the_command_line_gives_a_study_more(metasearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[More] = []

    def run_study(*_: object, more: More, **__: object) -> None:
        given.append(more)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run_study", run_study)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    new_storage(url)
    flags = ["--trials", "64", "--gpu-hours", "2.5", "--timeout", "90s"]
    assert metasearch("resume", "s", *flags, "--storage", url)[0] == 130
    assert given == [More(64, 90.0, 2.5)]


SPACE = """
objectives: [val_accuracy, model_bytes]
policies: {learning_rate: 0.01, student.width: {low: 2, high: 9}}
parameters: {student.family: mlp, student.depth: 1, alpha: 0.0, epochs: 1, fine_tune_epochs: 0}
"""


def test_the_final_runs_are_made_in_full_although_the_search_has_used_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[Limits] = []

    def drive(books: Ledger, *_: object, stop: StopFlag, limits: Limits, **__: object) -> None:
        bounds.append(limits)
        while books.wanted:
            number, proposal, seed = books.ask()
            metrics = {"val_accuracy": 0.5, "test_accuracy": 0.5, "macs": 640.0, "model_bytes": 100.0}
            books.tell_result(number, TrialResult(proposal.config, seed, metrics), attempt(7200))
            if limits.gpu_hours is not None:
                stop.end_trials(GPU_HOURS_USED)
                return

    monkeypatch.setattr(launch, "drive", drive)
    monkeypatch.setattr(launch, "ray_running", lambda resources: contextlib.nullcontext())
    monkeypatch.setattr(launch._Search, "_teacher", lambda *_: Teacher("none", seed=0, logits={}, metrics={}))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    source, space = TaskSource("digits", max_train=100, augment="none"), parse_space(SPACE, place="space")
    options = Options(source, space, 4, "s", sampler="random", artefacts=str(tmp_path / "a"), gpu_hours=1.0)
    prepare_study(storage, options)
    outcome = launch.run_study(storage, "s", resources=HALF)
    assert bounds == [Limits(gpu_hours=1.0), Limits()]
    assert outcome.stopped == ""
    heard: list[str] = []
    monkeypatch.setattr(launch.Watcher, "stage", lambda _, line: heard.append(line))
    launch.run_study(storage, "s", resources=HALF, more=More(gpu_hours=2.0), final=False)
    assert bounds[2:] == [Limits(gpu_hours=2.0)]
    assert heard[-1] == "the study's 2 GPU-hours are used up: --gpu-hours gives it more"
    runs = optuna.load_study(study_name="s/controls", storage=storage)
    assert {trial.state.name for trial in runs.trials} == {"COMPLETE"}
    assert "latency" in runs.user_attrs
