"""A real search on a real cluster and database, whose parts are killed, restarted, filled and cut off in turn.

At the end its books must be whole: exactly as many finished trials as asked for, none left running, none twice, every
artefact of the front there with its digest, and trials computed again here with the same result.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from optuna import get_all_study_names
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import StorageError
from metasearch.pipeline import run_pipeline
from metasearch.records import TrialResult
from metasearch.search.artefacts import fetch, joined, trial_folder
from metasearch.search.earlier import front_of
from metasearch.search.patience import PATIENT
from metasearch.search.store import FAILURE, LOSSES, RESULT, description_of, is_finished, load_study, open_storage
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import TeacherSource, teacher_for
from tests.cluster import Cluster, first_argument
from tests.postgresql import Server

NAME = "faults"
KINDS = ("worker", "node", "driver", "database", "disk", "cut")
"""Killed: a worker process, a node, the driver. Restarted: the database. Full: the artefact folder. Cut off: a node."""
EXITS = (0, 5)
"""Of a driver that ends by itself: done, or its storage away for too long."""
SPACE = """
name: short
objectives: [val_accuracy, model_bytes]
policies:
  learning_rate: {low: 0.003, high: 0.1, log: true}
  student.width: {low: 2, high: 8}
parameters:
  student.family: convnet
  student.depth: 2
  batch_size: 128
  alpha: {low: 0.0, high: 1.0}
  epochs: EPOCHS
  quantize: int8
"""


@dataclass(frozen=True)
class Plan:
    """What is to be survived.

    trials: finished ones wanted. gap_s: from one fault to the next, at least and at most. cut_s, full_s: how long a
    node is cut off and the disk full. again: trials computed again at the end. epochs: of a trial. most: faults; None
    for as many as there is time for.
    """

    trials: int
    seed: int
    kinds: tuple[str, ...] = KINDS
    gap_s: tuple[float, float] = (5.0, 15.0)
    cut_s: float = 10.0
    full_s: float = 5.0
    again: int = 30
    epochs: int = 45
    most: int | None = None
    timeout_s: float = 1800.0


@dataclass
class Books:
    """What a fault run came to. exits: of drivers that ended by themselves, by exit code. wrong: what must not be."""

    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    seconds: float = 0.0
    compared: int = 0
    front: int = 0
    wrong: list[str] = field(default_factory=list)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a disk of a few megabytes for as long as the block lasts; None where that is not permitted."""
    folder.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False).returncode == 0
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FaultRun:
    """One search under faults. folder: for its home. disk: where its artefacts lie, None for in its home."""

    def __init__(self, cluster: Cluster, server: Server, folder: Path, plan: Plan, *, disk: Path | None) -> None:
        self.plan, self.books = plan, Books()
        self._cluster, self._server, self._folder, self._disk = cluster, server, folder, disk
        self._workers = list(range(1, len(cluster.nodes)))
        self._rng = random.Random(plan.seed)
        self._driver: subprocess.Popen[bytes] | None = None
        self._environment = {
            **cluster.environment,
            "METASEARCH_STORAGE": server.url,
            "METASEARCH_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        self._storage = open_storage(server.url, create=True)

    def run(self) -> Books:
        """Search under faults until as many trials are finished as asked for; let it end; check its books."""
        started = time.monotonic()
        injected = {
            "worker": self._kill_worker,
            "node": self._kill_node,
            "driver": self._kill_driver,
            "database": self._restart_database,
            "disk": self._fill_disk,
            "cut": self._cut_off_node,
        }
        self._start()
        try:
            self._until(lambda: self._finished() > 0)
            for kind in self._faults():
                if self._finished() >= self.plan.trials:
                    break
                injected[kind]()
                self.books.faults[kind] += 1
                self._pause(self._rng.uniform(*self.plan.gap_s))
            self._until(lambda: self._driver is None)
        finally:
            self._end()
        self.books.seconds = time.monotonic() - started
        self._check()
        return self.books

    def _faults(self) -> Iterator[str]:
        """Yield kinds of faults, each once before any comes again."""
        kinds = [kind for kind in self.plan.kinds if kind != "disk" or self._disk is not None]
        rounds = itertools.chain.from_iterable(self._rng.sample(kinds, len(kinds)) for _ in itertools.count())
        return itertools.islice(rounds, self.plan.most)

    # The driver

    def _start(self) -> None:
        log = self._folder / "driver.log"
        command = ["resume", NAME]
        if NAME not in self._studies():
            space = self._folder / "short.yaml"
            space.write_text(SPACE.replace("EPOCHS", str(self.plan.epochs)))
            command = ["launch", "digits", "--space", str(space), "--name", NAME, "--trials", str(self.plan.trials)]
            command += ["--warm-start", "none", "--teacher", "convnet:width=8,depth=2"]
            command += ["--artefacts", str(self._disk or self._folder / "artefacts")]
        with log.open("ab") as output:
            self._driver = subprocess.Popen(
                self._cluster.command(sys.executable, "-m", "metasearch", *command, "--address", self._cluster.address),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )

    def _look(self) -> None:
        """Resume the search if its driver has ended before its time, as a supervisor would."""
        code = None if self._driver is None else self._driver.poll()
        if code is None:
            return
        self._driver = None
        self.books.exits[code] += 1
        if code != 0:
            self._start()

    def _end(self) -> None:
        if self._driver is not None:
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._look()
            time.sleep(0.2)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.plan.timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {self.plan.timeout_s:.0f} s; the driver: {self._driver_log()[-2000:]}")
            self._look()
            time.sleep(0.5)

    def _driver_log(self) -> str:
        return (self._folder / "driver.log").read_text(errors="replace")

    # The faults

    def _kill_worker(self) -> None:
        pids = [
            pid for node in self._workers for pid in self._cluster.pids(node) if first_argument(pid).startswith("ray::")
        ]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(pids), signal.SIGKILL)

    def _kill_node(self) -> None:
        node = self._rng.choice(self._workers)
        self._cluster.kill(node)
        self._workers.remove(node)
        self._workers.append(self._cluster.start_node())

    def _kill_driver(self) -> None:
        assert self._driver is not None
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        self._start()

    def _restart_database(self) -> None:
        self._server.restart(mode=self._rng.choice(["fast", "immediate"]))

    def _fill_disk(self) -> None:
        assert self._disk is not None
        filler = self._disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 4096)
        self._pause(self.plan.full_s)
        filler.unlink()

    def _cut_off_node(self) -> None:
        node = self._rng.choice(self._workers)
        self._cluster.suspend(node)
        self._pause(self.plan.cut_s)
        self._cluster.resume(node)

    # The books

    def _studies(self) -> list[str]:
        return PATIENT.retried(lambda again: get_all_study_names(self._storage))

    def _trials(self) -> list[FrozenTrial]:
        def read(again: bool) -> list[FrozenTrial]:
            return load_study(self._storage, NAME).get_trials(deepcopy=False) if NAME in self._studies() else []

        return PATIENT.retried(read)

    def _finished(self) -> int:
        return sum(map(is_finished, self._trials()))

    def _check(self) -> None:
        trials, books, plan = self._trials(), self.books, self.plan
        books.states = Counter(trial.state.name for trial in trials)
        books.failures = Counter(trial.user_attrs[FAILURE]["reason"] for trial in trials if FAILURE in trial.user_attrs)
        books.lost = sum(trial.user_attrs.get(LOSSES, 0) for trial in trials)
        odd = {code for code in books.exits if code not in EXITS}
        if odd:
            books.wrong.append(f"a driver ended with exit code {min(odd)}: {self._driver_log()[-500:]}")
        finished = [trial for trial in trials if is_finished(trial)]
        if len(finished) != plan.trials:
            books.wrong.append(f"{len(finished)} finished trials instead of {plan.trials}")
        if any(not trial.state.is_finished() for trial in trials):
            books.wrong.append("trials left running")
        if [trial.number for trial in trials] != list(range(len(trials))):
            books.wrong.append("numbers missing or twice")
        complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
        if len({str(sorted(trial.params.items())) for trial in complete}) != len(complete):
            books.wrong.append("the same configuration twice")
        description = description_of(load_study(self._storage, NAME))
        for number, result in front_of(self._storage, NAME).items():
            books.front += 1
            folder = trial_folder(joined(description.artefacts, NAME), number)
            missing = [name for name, digest in result.artefacts.items() if not _is_whole(joined(folder, name), digest)]
            missing = missing if result.artefacts else ["all"]
            books.wrong += [f"artefact {name} of trial {number} is missing or damaged" for name in missing]
        self._compute_again(self._rng.sample(complete, min(plan.again, len(complete))))

    def _compute_again(self, trials: list[FrozenTrial]) -> None:
        description = description_of(load_study(self._storage, NAME))
        with patch.dict(os.environ, METASEARCH_HOME=self._environment["METASEARCH_HOME"]):
            task = load_task(TaskSource(**description.task))
            teacher = teacher_for(task, TeacherSource.of(description.teacher), seed=description.seed, device="cpu")
        one_image = 1.001 / len(task.validation)
        for trial in trials:
            kept = TrialResult.from_json(trial.user_attrs[RESULT])
            again = run_pipeline(task, kept.config, teacher=teacher, seed=kept.seed)
            self.books.compared += 1
            for metric, allowed in (("model_bytes", 0.0), ("macs", 0.0), ("val_accuracy", one_image)):
                before, now = kept.metrics[metric], again.metrics[metric]
                if abs(now - before) > allowed:
                    self.books.wrong.append(f"trial {trial.number}: {metric} {before}, now {now}")


def _is_whole(file: str, digest: str) -> bool:
    try:
        return fetch(file, digest) is not None
    except StorageError:
        return False
