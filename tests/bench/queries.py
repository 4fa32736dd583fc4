"""How fast questions to a study of 20,000 trials are answered, and what asking costs a search that is running.

The search is its store alone: a trial is asked for, told and followed by a pause in which workers would train. Windows
with and without readers take turns, so that a machine that grows busier does so on both sides. CPU seconds are given
beside the wall clock, which busy neighbours lengthen.

Readers are started by `run` as `python -m tests.bench.queries URL STUDY SECONDS RESULT_FILE`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from metasearch.errors import StorageError
from metasearch.records import TrialResult
from metasearch.report.database import open_database
from metasearch.report.queries import best, trials_table
from metasearch.report.where import parse_where
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.samplers import make_sampler
from metasearch.search.space import load_space
from metasearch.search.store import create_study, load_study, open_storage
from tests.bench.large_study import TRIALS, make_study
from tests.bench.sides import Verdict, conditions, print_table
from tests.fakes import describe
from tests.repository import REPOSITORY

QUICK_TRIALS = 500
REPEATS = 5
BEST_S, HELP_S, FRAME_S = 1.0, 0.4, 2.5
"""Targets in seconds: `best --where --json` and `--help` with start-up, and the frame of all trials."""
QUERY = "model_bytes <= 50kB and student.width < 20 and not student.family = 'mlp'"
READERS, DISTURBED = 4, 0.10
"""Readers at one query a second each, and the share by which they may slow a search down."""
WINDOW_S, QUICK_WINDOW_S, WINDOWS, PAUSE_S = 10.0, 1.0, 6, 0.05

Seconds = tuple[float, float]
"""By the wall clock, and of CPU."""


def run(*, quick: bool) -> Verdict:
    """Measure all of it and print two tables."""
    before = conditions()
    trials, repeats = (QUICK_TRIALS, 1) if quick else (TRIALS, REPEATS)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        url = f"sqlite:///{folder}/large.db"
        made = _timed(lambda: make_study(url, trials=trials))
        commands = {
            "best --where --json": (["best", "large", "--where", QUERY, "--json"], BEST_S),
            "--help": (["--help"], HELP_S),
            "best --help": (["best", "--help"], HELP_S),
        }
        found: dict[str, tuple[Seconds, float | None]] = {"make the study": (made, None)}
        for name, (arguments, target) in commands.items():
            found[name] = median_seconds([command_seconds(arguments, url) for _ in range(repeats)]), target
        frames = [_timed(lambda: trials_table(open_database(url), "large").frame()) for _ in range(repeats)]
        found["frame of all trials"] = median_seconds(frames), FRAME_S
        study = load_study(open_storage(url), "large")
        found["Optuna's get_trials"] = _timed(lambda: study.get_trials(deepcopy=False)), None
        still, read = _disturbance(folder, QUICK_WINDOW_S if quick else WINDOW_S)
    rows = [
        (name, f"{wall:.2f}", f"{cpu:.2f}", "" if target is None else f"{target:.1f}")
        for name, ((wall, cpu), target) in found.items()
    ]
    notes = [before, f"{trials} trials; medians of {repeats}; {QUERY}"]
    print_table("Questions to a large study, seconds", ("", "wall", "CPU", "target"), rows, notes)
    names = {"trials": "trials a minute", "p99_ms": "99th percentile of a trial's writes, ms", "locked": "lock errors"}
    shown = [(names[key], f"{still[key]:.1f}", f"{read[key]:.1f}") for key in names]
    notes = [f"{READERS} readers, {read['queries']:.0f} queries, {WINDOWS} windows each, in turns; SQLite"]
    print_table("A search that is read", ("", "alone", "with readers"), shown, notes)
    fast = all(target is None or wall <= target for (wall, _), target in found.values())
    calm = (
        read["trials"] >= (1 - DISTURBED) * still["trials"]
        and read["p99_ms"] <= (1 + DISTURBED) * still["p99_ms"]
        and not read["locked"]
    )
    text = (
        f"best {found['best --where --json'][0][0]:.2f} s, frame {found['frame of all trials'][0][0]:.2f} s; readers "
    )
    text += f"{read['trials'] / still['trials'] - 1:+.0%} trials, {read['p99_ms'] / still['p99_ms'] - 1:+.0%} p99"
    return Verdict("queries", None if quick else fast and calm, text)


def _timed(call: Callable[[], Any]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def command_seconds(arguments: list[str], url: str) -> Seconds:
    """Run the program; raise subprocess.CalledProcessError if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "metasearch", *arguments],
        check=True,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"METASEARCH_STORAGE": url},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def median_seconds(times: list[Seconds]) -> Seconds:
    """Return the medians of both."""
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def _disturbance(folder: str, window_s: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return trials a minute, latency, queries and lock errors of a search alone, and of one that is read."""
    url = f"sqlite:///{folder}/busy.db"
    description = describe(Path(folder), trials=1_000_000)
    study = create_study(open_storage(url, create=True), "busy", description)
    study.sampler = make_sampler("random", seed=0, trials_so_far=0)  # whose proposals cost the same at any length
    rng = np.random.default_rng(0)
    space = load_space("quick")
    ledger = Ledger(
        study,
        lambda trial: Proposal(space.suggest(trial)),
        target=description.trials,
        seed=0,
        objectives=tuple(description.objectives),
    )
    ends: dict[bool, dict[str, float]] = {}
    latencies: dict[bool, list[float]] = {False: [], True: []}
    _search(ledger, rng, 1.0)  # imports and caches
    for window in range(2 * WINDOWS):
        reading = window % 4 in (1, 2)  # in such turns a steady drift falls on both sides alike
        readers = _readers(url, window_s, Path(folder) / "readers.json") if reading else None
        latencies[reading] += _search(ledger, rng, window_s)
        if readers is not None:
            readers.wait()
            counted = json.loads((Path(folder) / "readers.json").read_text(encoding="utf-8"))
            total = ends.setdefault(True, {"queries": 0, "locked": 0})
            for key in total:
                total[key] += counted[key]
    sides = []
    for reading in (False, True):
        measured = {
            "trials": len(latencies[reading]) / (WINDOWS * window_s / 60),
            "p99_ms": 1000 * float(np.percentile(latencies[reading], 99)),
        }
        sides.append(measured | ends.get(reading, {"queries": 0, "locked": 0}))
    return sides[0], sides[1]


def _search(ledger: Ledger, rng: np.random.Generator, seconds: float) -> list[float]:
    """Run trials of no work for so long; return what the writes of each took, in seconds."""
    latencies = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        number, proposal, seed = ledger.ask()
        metrics = {"val_accuracy": float(rng.random()), "model_bytes": float(rng.integers(1000, 90_000))}
        ledger.tell_result(number, TrialResult(dict(proposal.config), seed, metrics), {"node": "here", "seed": seed})
        latencies.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)
    return latencies


def _readers(url: str, seconds: float, result: Path) -> subprocess.Popen[bytes]:
    """Start the readers; return once they have begun."""
    command = [sys.executable, "-m", "tests.bench.queries", url, "busy", str(seconds), str(result)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main() -> None:
    """Ask for the best trials, once a second from each of some threads, until the time is over."""
    url, study, seconds, result = sys.argv[1:]
    counted = {"queries": 0, "locked": 0}
    condition = parse_where("model_bytes <= 50kB")
    lock = threading.Lock()
    print("ready", flush=True)
    end = time.monotonic() + float(seconds)

    def ask() -> None:
        while (started := time.monotonic()) < end:
            locked = 0
            try:
                best(open_database(url), study, where=condition)
            except StorageError:
                locked = 1
            with lock:
                counted["queries"] += 1
                counted["locked"] += locked
            time.sleep(max(0.0, min(started + 1.0, end) - time.monotonic()))

    threads = [threading.Thread(target=ask) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(result).write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    main()
