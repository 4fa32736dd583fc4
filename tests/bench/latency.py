"""What measured latencies brought back are worth: a search for them against one for MACs, by what the networks take.

For each seed: a study of accuracy and MACs; its front is measured on this machine, one thread; a latency model is
fitted to that, and a new study of accuracy and predicted latency, with the old one as its prior, has as many trials. At
the end the fronts of both, and of the old study with as many trials more, are measured together, in interleaved rounds.
Small networks on one thread are a device that ranks otherwise than MACs do: int8 is slower than float until a
convolution is wide, a depthwise convolution costs as much as a dense one, and channels that fill a vector cost nothing.
Hypervolume: of validation error and the logarithm of the measured milliseconds, in the box between BEST and WORST.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from optuna.storages import RDBStorage
from scipy.stats import spearmanr

from metasearch.bundle.bench import bench
from metasearch.bundle.subjects import BUNDLE, Subject
from metasearch.pipeline import ONNX_FILE
from metasearch.records import TrialResult
from metasearch.search.artefacts import joined, trial_folder
from metasearch.search.benchmarks import bring_back, known_latency
from metasearch.search.budget import More
from metasearch.search.earlier import front_of
from metasearch.search.launch import run_study
from metasearch.search.pareto import hypervolume
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources, ray_running
from metasearch.search.space import parse_space
from metasearch.search.store import load_study, open_storage
from metasearch.tasks import TaskSource
from tests.bench.sides import Verdict, conditions, print_table

TRIALS, SEEDS, WANTED = 24, 5, 4
SOURCE = TaskSource("digits", image_size=16, max_train=600)
TEACHER = "convnet:width=12,depth=4"
SHAPE = (1, 16, 16)
BEST, WORST = (0.0, 0.005), (0.3, 0.1)
"""Validation error and milliseconds between which a front is judged, the same for all."""
SECONDS = 1.0
SPACE = """
objectives: [val_accuracy, macs]
policies:
  learning_rate: {kind: one_cycle, peak: {low: 0.005, high: 0.05, log: true}}
  temperature: 4.0
  student.width: {low: 3, high: 24}
  pruning_ratio: {kind: {choices: [constant, cubic]}, value: 0.0, final: {low: 0.2, high: 0.6, step: 0.1}}
parameters:
  student.family: {choices: [convnet, mobilenet, resnet]}
  student.depth: {low: 2, high: 5}
  batch_size: 64
  optimizer: adamw
  alpha: 0.7
  epochs: 4
  fine_tune_epochs: 2
  quantize: {choices: [none, int8]}
"""


@dataclass(frozen=True)
class Front:
    """The networks of a front, kept apart from the study, which may go on: the file and the accuracy of each."""

    subjects: dict[int, Subject]
    results: Mapping[int, TrialResult]

    def points(self, ms: Mapping[str, float]) -> list[tuple[float, float]]:
        """Return error and latency of each network, in shares of the box. ms: by the digest of a file."""
        error, latency = WORST
        return [
            (
                (1 - self.results[number].metrics["val_accuracy"]) / error,
                math.log(ms[subject.digest] / BEST[1]) / math.log(latency / BEST[1]),
            )
            for number, subject in self.subjects.items()
        ]


def run(*, quick: bool) -> Verdict:
    """Run the searches of every seed; print their fronts' hypervolumes."""
    trials, seeds = (8, 1) if quick else (TRIALS, SEEDS)
    before, began, rows, better, notes = conditions(), time.time(), [], [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch, ray_running(Resources(workers=1)):
            row, volumes, note = _one_seed(Path(scratch), seed, trials)
        rows.append(row)
        notes.append(note)
        better.append(volumes["new"] > volumes["old"])
        print("  ".join(row), note, flush=True)
    print_table(
        "A search for measured latency against one for MACs",
        ("seed", "old, by MACs", "new, by latency", "old, twice the trials", "equal numbers: old, new"),
        rows,
        [
            before,
            f"digits at 16x16, {trials} trials a study, one thread, thread CPU time; {time.time() - began:.0f} s",
            "hypervolume of (validation error, log ms), in brackets the networks measured; more is better",
            *notes,
        ],
    )
    text = f"the new front's hypervolume is larger in {sum(better)} of {seeds} seeds (at least {WANTED} of {SEEDS})"
    return Verdict("latency", None if quick else sum(better) >= WANTED, text)


def _one_seed(scratch: Path, seed: int, trials: int) -> tuple[tuple[str, ...], dict[str, float], str]:
    storage = open_storage(f"sqlite:///{scratch / 'studies.db'}", create=True)
    _search(storage, scratch, Options(SOURCE, parse_space(SPACE, place="latency"), trials, "old", seed=seed))
    fronts = {"old": _front(storage, scratch, "old", "old")}
    report = bench(list(fronts["old"].subjects.values()), threads=[1], seconds=SECONDS, images=1)
    bring_back(load_study(storage, "old"), report["device"]["name"], report["networks"])
    known = known_latency(storage, "old")
    options = Options(
        SOURCE,
        parse_space(SPACE, place="latency"),
        trials,
        "new",
        objectives=("val_accuracy", "latency_ms"),
        seed=seed + 100,
        warm_start="old",
        latency_from="old",
    )
    _search(storage, scratch, options)
    fronts["new"] = _front(storage, scratch, "new", "new")
    run_study(storage, "old", resources=Resources(workers=1), final=False, more=More(trials=2 * trials))
    fronts["twice"] = _front(storage, scratch, "old", "twice")
    subjects = {each.digest: each for front in fronts.values() for each in front.subjects.values()}
    report = bench(list(subjects.values()), threads=[1], seconds=2 * SECONDS, images=1)
    ms = {network["digest"]: network["threads"]["1"]["cpu_ms"] for network in report["networks"]}
    points = {name: front.points(ms) for name, front in fronts.items()}
    volumes = {name: hypervolume(found, (1.0, 1.0)) for name, found in points.items()}
    count = min(len(points["old"]), len(points["new"]))
    equal = [f"{hypervolume(_thinned(points[name], count), (1.0, 1.0)):.3f}" for name in ("old", "new")]
    row = (
        str(seed),
        *(f"{volumes[name]:.3f} ({len(points[name])})" for name in ("old", "new", "twice")),
        f"{', '.join(equal)} ({count})",
    )
    return row, volumes, f"seed {seed}: {_ranking(fronts, ms)}; {known}"


def _search(storage: RDBStorage, scratch: Path, options: Options) -> None:
    changed = vars(options) | {"teacher": TEACHER, "device": "cpu", "artefacts": str(scratch / "artefacts")}
    if options.name == "old":
        changed["warm_start"] = "none"
    prepare_study(storage, Options(**changed), tell=print)
    run_study(storage, options.name or "", resources=Resources(workers=1), final=False)


def _front(storage: RDBStorage, scratch: Path, name: str, keep_as: str) -> Front:
    """Return the front of a study, its files copied: a study that goes on removes those off its new front."""
    results = front_of(storage, name)
    subjects = {}
    for number in results:
        path = scratch / keep_as / f"{number}.onnx"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(Path(trial_folder(joined(str(scratch / "artefacts"), name), number)) / ONNX_FILE, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        subjects[number] = Subject(f"{name}-trial-{number}", BUNDLE, path, digest, SHAPE, name, number)
    return Front(subjects, results)


def _thinned(points: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Return so many of a front's points, evenly along it."""
    ordered = sorted(points)
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def _ranking(fronts: Mapping[str, Front], ms: Mapping[str, float]) -> str:
    """Return how MACs, and how the predictions of the new front, rank the networks that were measured at the end."""
    all_of_them = [(front.results[n].metrics, s) for front in fronts.values() for n, s in front.subjects.items()]
    by_macs = spearmanr([m["macs"] for m, _ in all_of_them], [ms[s.digest] for _, s in all_of_them]).statistic
    new = [
        (front.results[n].metrics["latency_ms"], ms[s.digest])
        for front in [fronts["new"]]
        for n, s in front.subjects.items()
    ]
    predicted, measured = np.array(new).T
    off = mean(abs(predicted / measured - 1))
    return (
        f"MACs rank the {len(all_of_them)} networks of all fronts by {by_macs:.2f}, the model those of the new one by "
        f"{spearmanr(predicted, measured).statistic:.2f}, off by {off:.0%}"
    )
