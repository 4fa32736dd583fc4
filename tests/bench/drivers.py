"""Many drivers at once: 16 with a study each on one Ray cluster and one PostgreSQL, 8 on one SQLite file.

Beside them as many processes that ask and tell studies of Optuna's own, without Ray: the same parameters, the same two
values, the same sleep. Every process waits until all are ready. A trial here is shorter than any real one, so that the
databases, and Ray's head, have the most to do.

A process is started by `run` as `python -m tests.bench.drivers ours|optuna URL STUDY TRIALS ADDRESS FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.patience import Patience
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.samplers import make_sampler
from metasearch.search.stopping import StopFlag
from metasearch.search.store import LOSSES, open_storage
from metasearch.search.worker import TrialRequest
from tests.bench.counting import peak_mb
from tests.bench.sides import Verdict, conditions, print_table
from tests.cluster import Cluster, network, ray_cluster
from tests.postgresql import programs, running
from tests.repository import REPOSITORY

TRIALS, QUICK_TRIALS = 200, 6
SLEEP_S = 0.1
ON_POSTGRESQL, ON_SQLITE, QUICK_DRIVERS = 16, 8, 2
OBJECTIVES = ("loss", "cost")
READY_S, DONE_S = 300.0, 1800.0


@dataclass(frozen=True)
class Found:
    """What a side came to. rate: trials a second, of all drivers, from the first trial's end to the last's. waits: how
    often a driver found its storage locked or away. lost: trials that ran twice. wrong: what must not be."""

    rate: float
    waits: int
    lost: int
    peak_mb: float
    wrong: tuple[str, ...]


def run(*, quick: bool) -> Verdict:
    """Run both sides on both databases and print the table."""
    binaries = programs()
    trials = QUICK_TRIALS if quick else TRIALS
    sizes = (QUICK_DRIVERS, QUICK_DRIVERS) if quick else (ON_POSTGRESQL, ON_SQLITE)
    found: dict[str, tuple[int, Found]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        folder.chmod(0o755)  # the database server is another user
        loopback = stack.enter_context(network(namespaces=False))
        cluster = stack.enter_context(ray_cluster(nodes=0, head_cpus=max(sizes), on=loopback))
        for database, count in zip(("PostgreSQL", "SQLite"), sizes, strict=True):
            for side in ("ours", "optuna"):
                place = folder / f"{database}-{side}"
                place.mkdir()
                if database == "SQLite":
                    url = f"sqlite:///{place / 'studies.db'}"
                elif binaries is not None:
                    (place / "postgresql").mkdir()
                    url = stack.enter_context(running(place / "postgresql", binaries))
                else:
                    continue
                found[f"{database}, {side}"] = count, _side(side, url, place, cluster, count, trials)
    rows = [
        (name, str(count), f"{each.rate:.1f}", str(each.waits), str(each.lost), f"{each.peak_mb:.0f}")
        for name, (count, each) in found.items()
    ]
    header = ("", "drivers", "trials a second", "waits for the storage", "trials lost", "MB of a driver at most")
    notes = [conditions(), f"{trials} trials a study, each sleeps {SLEEP_S} s; one slot a driver; random sampler"]
    notes += [f"{name}: {line}" for name, (_, each) in found.items() for line in each.wrong]
    print_table("Many drivers", header, rows, notes)
    ours = {name: each for name, (_, each) in found.items() if "ours" in name}
    whole = all(not each.wrong and not each.waits and not each.lost for each in ours.values())
    text = "; ".join(f"{name} {each.rate:.1f} trials a second" for name, (_, each) in found.items())
    if binaries is None:
        text += "; PostgreSQL is not installed"
    return Verdict("drivers", None if quick or binaries is None else whole, text)


def _side(side: str, url: str, folder: Path, cluster: Cluster, count: int, trials: int) -> Found:
    names = [f"study {index}" for index in range(count)]
    storage = open_storage(url, create=True)
    for name in names:
        optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(OBJECTIVES))
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    start = partial(_started, side, url, str(trials), cluster, folder, environment)
    processes = {name: start(name) for name in names}
    wrong: list[str] = []
    try:
        ready = time.monotonic() + READY_S
        while len(list(folder.glob("ready-*"))) < count and time.monotonic() < ready:
            if all(process.poll() is not None for process in processes.values()):
                break
            time.sleep(0.1)
        (folder / "go").touch()
        for name, process in processes.items():
            if process.wait(timeout=DONE_S) != 0:
                wrong.append(f"{name}: {_last_line(folder / f'{name}.log')}")
    finally:
        for process in processes.values():
            process.kill()  # where we are interrupted; nothing happens to one that has ended
    ends: list[float] = []
    lost = 0
    for name in names:
        study = optuna.load_study(study_name=name, storage=storage)
        complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
        if len(complete) != trials or len(study.trials) != trials:
            wrong.append(f"{name}: {len(complete)} of {len(study.trials)} trials are complete, {trials} wanted")
        ends += [trial.datetime_complete.timestamp() for trial in complete if trial.datetime_complete is not None]
        lost += sum(trial.user_attrs.get(LOSSES, 0) for trial in study.trials)
    measured = [json.loads(file.read_text()) for file in folder.glob("measured-*")]
    return Found(
        rate=(len(ends) - 1) / (max(ends) - min(ends)) if len(ends) > 1 else 0.0,
        waits=sum(each["waits"] for each in measured),
        lost=lost,
        peak_mb=max((each["peak_mb"] for each in measured), default=0.0),
        wrong=tuple(wrong),
    )


def _started(
    side: str, url: str, trials: str, cluster: Cluster, folder: Path, environment: Mapping[str, str], name: str
) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.bench.drivers", side, url, name, trials, cluster.address, str(folder)],
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["ended without a word"])[-1]


def ours(url: str, name: str, trials: int, address: str, folder: Path) -> int:
    """Drive a study to its end through our runner; return how often its storage was waited for."""
    waits: list[str] = []
    study = optuna.load_study(study_name=name, storage=open_storage(url), sampler=_sampler())
    ledger = Ledger(study, _propose, target=trials, seed=0, objectives=OBJECTIVES, patience=Patience(tell=waits.append))
    resources = Resources(workers=1, address=address)
    with ray_running(resources):
        _wait_for_all(name, folder)
        drive(ledger, _evaluate, _nothing_shared, resources=resources, stop=StopFlag())
    return len(waits)


def alone(url: str, name: str, trials: int, address: str, folder: Path) -> int:
    """Ask and tell a study of Optuna's own, on the storage that Optuna makes of the URL."""
    study = optuna.load_study(study_name=name, storage=url, sampler=_sampler())
    _wait_for_all(name, folder)
    for _ in range(trials):
        trial = study.ask()
        config = _propose(trial).config
        time.sleep(SLEEP_S)
        study.tell(trial, list(_metrics(config).values()))
    return 0


def _sampler() -> optuna.samplers.BaseSampler:
    return make_sampler("random", seed=0, trials_so_far=0)


def _wait_for_all(name: str, folder: Path) -> None:
    (folder / f"ready-{name}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)


def _propose(trial: optuna.Trial) -> Proposal:
    return Proposal({"x": trial.suggest_float("x", -4, 4), "y": trial.suggest_float("y", 0, 1)})


def _nothing_shared() -> None:
    pass


def _evaluate(request: TrialRequest, shared: Any) -> Generator[EpochReport, None, TrialResult]:
    yield from ()
    time.sleep(SLEEP_S)
    return TrialResult(request.config, request.seed, _metrics(request.config))


def _metrics(config: Mapping[str, float]) -> dict[str, float]:
    return {"loss": config["x"] ** 2 + config["y"], "cost": (config["x"] - 2) ** 2 + config["y"]}


SIDES = {"ours": ours, "optuna": alone}


def main() -> None:
    """Run the driver that the command line names and write what it measured."""
    side, url, name, trials, address, folder = sys.argv[1:]
    waits = SIDES[side](url, name, int(trials), address, Path(folder))
    measured = {"waits": waits, "peak_mb": peak_mb()}
    (Path(folder) / f"measured-{name}").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
