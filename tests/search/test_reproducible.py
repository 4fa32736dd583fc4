"""What one seed fixes: the trials of a search, run again, on other numbers of workers, and after an interruption."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import Study

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.samplers import make_sampler
from metasearch.search.stopping import StopFlag
from metasearch.search.store import RESULT, RUN
from metasearch.search.worker import TrialRequest
from metasearch.transfer import sampler as module
from metasearch.transfer.prior import Prior, prior_of
from tests.fakes import new_storage

OBJECTIVES = ("val_accuracy", "macs")
RUNNING = 8
"""Trials that run for each that is planned more at once."""
Trials = dict[int, tuple[dict[str, Any], int, Mapping[str, float]]]
"""Number -> parameters, seed, metrics."""


def propose(trial: optuna.Trial) -> Proposal:
    config: dict[str, Any] = {
        "x": trial.suggest_float("x", 0, 1),
        "kind": trial.suggest_categorical("kind", ["a", "b"]),
    }
    if config["kind"] == "b":
        config["depth"] = trial.suggest_int("depth", 1, 5)
    return Proposal(config)


def measured(config: Mapping[str, Any], seed: int) -> TrialResult:
    """Return what a trial gives: of its configuration and its seed alone."""
    accuracy = 1 - (config["x"] - 0.3) ** 2 + 0.02 * config.get("depth", 0) + 0.01 * (seed % 97) / 97
    return TrialResult(dict(config), seed, {"val_accuracy": accuracy, "macs": 10 * config["x"] + 1})


def evaluate(request: TrialRequest, shared: object) -> Generator[EpochReport, None, TrialResult]:
    yield from ()
    time.sleep(0.02 * (request.seed % 5))  # so that trials end in another order than they began in
    return measured(request.config, request.seed)


def nothing_shared() -> None:
    """Share nothing."""


def prior() -> Prior:
    """Return a study of the same parameters, at random."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=3))
    named(study)
    for number in range(12):
        trial = study.ask()
        metrics = measured(propose(trial).config, number).metrics
        study.tell(trial, [metrics[name] - 0.1 for name in OBJECTIVES])
    return prior_of(study)


def opened(folder: Path, name: str) -> Study:
    storage = new_storage(f"sqlite:///{folder / 'studies.db'}")
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
    if not study.metric_names:
        named(study)
    return study


def named(study: Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))


def driver(study: Study, sampler: str, target: int, *, seed: int = 4, priors: tuple[Prior, ...] = ()) -> Ledger:
    """Return the ledger of a driver that has just started, as `launch` makes it."""
    so_far = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(sampler, seed=seed, trials_so_far=so_far, priors=priors)
    return Ledger(study, propose, target=target, seed=seed, objectives=OBJECTIVES)


def run_one_after_the_other(books: Ledger) -> None:
    """Run the wanted trials as one worker does."""
    while books.wanted:
        number, proposal, seed = books.ask()
        books.tell_result(number, measured(proposal.config, seed), {"seed": seed})


def trials_of(study: Study) -> Trials:
    return {
        trial.number: (
            dict(trial.params),
            trial.user_attrs[RUN]["seed"],
            TrialResult.from_json(trial.user_attrs[RESULT]).metrics,
        )
        for trial in study.trials
    }


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with ray_running(Resources(workers=4)):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_random_sampler_gives_the_same_trials_on_one_two_and_four_workers(tmp_path: Path) -> None:
    def trials(workers: int) -> Trials:
        study = opened(tmp_path, f"{workers} workers")
        books = driver(study, "random", 16)
        drive(books, evaluate, nothing_shared, resources=Resources(workers=workers), stop=StopFlag())
        return trials_of(study)

    one, two, four = trials(1), trials(2), trials(4)
    assert list(one) == list(range(16))
    assert one == two == four
    assert len({str(params) for params, _, _ in one.values()}) == 16


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tpe_gives_the_same_trials_in_three_runs_of_one_ray_worker(tmp_path: Path) -> None:
    def trials(run: int) -> Trials:
        study = opened(tmp_path, f"run {run}")
        drive(driver(study, "tpe", 16), evaluate, nothing_shared, resources=Resources(workers=1), stop=StopFlag())
        return trials_of(study)

    first = trials(0)
    assert len(first) == 16
    assert first == trials(1) == trials(2)


@pytest.mark.parametrize(("sampler", "priors"), [("random", 0), ("tpe", 0), ("transfer", 0), ("transfer", 1)])
def test_three_searches_of_one_worker_and_one_seed_are_the_same(tmp_path: Path, sampler: str, priors: int) -> None:
    def trials(name: str, seed: int) -> Trials:
        study = opened(tmp_path, name)
        run_one_after_the_other(driver(study, sampler, 12, seed=seed, priors=(prior(),) * priors))
        return trials_of(study)

    runs = [trials(f"run {index}", 4) for index in range(3)]
    assert len(runs[0]) == 12
    assert runs[0] == runs[1] == runs[2]
    assert trials("another seed", 5) != runs[0]


@pytest.mark.parametrize(("sampler", "priors"), [("random", 0), ("tpe", 0), ("transfer", 0), ("transfer", 1)])
def test_searches_interrupted_after_the_same_trial_go_on_the_same(tmp_path: Path, sampler: str, priors: int) -> None:
    def trials(name: str) -> Trials:
        run_one_after_the_other(driver(opened(tmp_path, name), sampler, 11, priors=(prior(),) * priors))
        study = opened(tmp_path, name)  # by another process, as far as it can tell
        run_one_after_the_other(driver(study, sampler, 16, priors=(prior(),) * priors))
        return trials_of(study)

    first = trials("first")
    assert len({str(params) for params, _, _ in first.values()}) == 16
    assert first == trials("second")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "transfer"])
def test_trials_that_are_planned_several_at_once_are_the_same_again_and_all_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setattr(module, "RUNNING_A_PLAN", RUNNING)  # with as many as usual the test takes four times as long

    def asked(name: str) -> list[str]:
        books = driver(opened(tmp_path, name), sampler, 200)
        for _ in range(12):
            number, proposal, seed = books.ask()
            books.tell_result(number, measured(proposal.config, seed), {"seed": seed})
        return [str(books.ask()[1].config) for _ in range(2 * RUNNING + 6)]

    first = asked("first")
    assert len(set(first)) == len(first)
    assert first == asked("second")
