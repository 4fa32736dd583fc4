"""Whether pruning pays: a pruned wide student against a narrow one distilled directly, at equal MACs and training.

On each task, at half and at a quarter of the wide student's MACs: pruned by each measure of importance, and the
convnet of the same depth whose width comes nearest to the MACs that the pruned one has (l2; the others are within a
few percent). All have the same epochs in all, the learning rate of each row is chosen on validation.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from statistics import mean, stdev

import torch

from metasearch.pipeline import run_pipeline
from metasearch.prune import IMPORTANCES
from metasearch.records import Config
from metasearch.search.controls import width_of_macs
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import teacher_for
from tests.bench.job import data_root
from tests.bench.sides import SLOTS, Verdict, conditions, print_table

WIDE: Config = {
    "student.family": "convnet",
    "student.width": 16,
    "student.depth": 4,
    "epochs": 10,
    "fine_tune_epochs": 6,
    "fine_tune_scale": 0.5,
    "quantize": "none",
    "pruning_target": "macs",
    "pruning_ratio.kind": "cubic",
    "pruning_ratio.end": 0.5,
}
RATES = (0.01, 0.03)
FEWER = (2, 4)
SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One training. importance: "" for the narrow student."""

    source: TaskSource
    fewer: int
    importance: str
    width: int
    rate: float
    seed: int


def run(*, quick: bool) -> Verdict:
    """Measure and print one table; nothing is judged, the space's defaults follow from it."""
    root = data_root()
    sources = [TaskSource("digits")]
    if root is not None and not quick:
        names = ("usps", "fashion_mnist")
        sources += [TaskSource(name, data_root=str(root), max_train=2_000, image_size=16) for name in names]
    rows, lines = [], []
    for source in sources:
        task = load_task(source)
        teacher_for(task)  # trained once, here, for all workers
        for fewer in FEWER[:1] if quick else FEWER:
            example = run_pipeline(task, _config(Run(source, fewer, "l2", 16, 0.01, 0)) | _short(), teacher=None)
            width = width_of_macs(WIDE, example.metrics["macs"], task)
            assert width is not None
            seeds = 1 if quick else SEEDS
            runs = [
                Run(source, fewer, importance, width, rate, seed)
                for importance in (*IMPORTANCES, "")
                for rate in RATES
                for seed in range(seeds)
            ]
            results = dict(zip(runs, _all(runs), strict=True))
            for importance in (*IMPORTANCES, ""):
                row, tests = _row(importance, width, results)
                rows.append((source.text, f"{fewer}x", *row))
                lines.append((source.text, fewer, importance, mean(tests)))
    header = ("task", "fewer MACs", "student", "rate", "MACs", "test accuracy", "deviation over seeds")
    print_table("Pruned, or narrow from the start", header, rows, [conditions(), f"wide student: {WIDE}"])
    wins = sum(
        max(value for s, f, importance, value in lines if (s, f) == case and importance)
        > next(value for s, f, importance, value in lines if (s, f) == case and not importance)
        for case in {(s, f) for s, f, _, _ in lines}
    )
    cases = len({(s, f) for s, f, _, _ in lines})
    return Verdict("pruning", None, f"the best of the measures beats the narrow student in {wins} of {cases} cases")


def _row(
    importance: str, width: int, results: dict[Run, tuple[float, float, float]]
) -> tuple[tuple[str, ...], list[float]]:
    own = {run: result for run, result in results.items() if run.importance == importance}
    by_rate = {rate: [result for run, result in own.items() if run.rate == rate] for rate in RATES}
    rate = max(by_rate, key=lambda r: mean(val for val, _, _ in by_rate[r]))
    tests = [test for _, test, _ in by_rate[rate]]
    name = f"pruned by {importance}" if importance else f"narrow, width {width}"
    spread = stdev(tests) if len(tests) > 1 else 0.0
    macs = mean(macs for _, _, macs in by_rate[rate])
    return (name, f"{rate:g}", f"{macs / 1e3:.0f} k", f"{mean(tests):.4f}", f"{spread:.4f}"), tests


def _all(runs: list[Run]) -> list[tuple[float, float, float]]:
    with multiprocessing.get_context("spawn").Pool(SLOTS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.map(_fit, runs, chunksize=1)


def _fit(one: Run) -> tuple[float, float, float]:
    task = load_task(one.source)
    config = _config(one)
    result = run_pipeline(task, config, teacher=teacher_for(task), seed=one.seed, read_test=True)
    return result.metrics["val_accuracy"], result.metrics["test_accuracy"], result.metrics["macs"]


def _config(one: Run) -> Config:
    if not one.importance:
        plain = {path: value for path, value in WIDE.items() if not path.startswith("pruning")}
        return plain | {"student.width": one.width, "learning_rate.kind": "one_cycle", "learning_rate.peak": one.rate}
    return WIDE | {
        "pruning_ratio.final": 1 - 1 / one.fewer,
        "pruning_importance": one.importance,
        "learning_rate.kind": "one_cycle",
        "learning_rate.peak": one.rate,
    }


def _short() -> Config:
    """Return what makes a run as short as its size can still be told: one epoch of each stage, without a teacher."""
    return {"epochs": 1, "fine_tune_epochs": 1, "alpha": 0.0, "pruning_ratio.end": 1.0}
