"""Whether pruning pays: a pruned wide student against a narrow one distilled directly, at equal MACs and training.

On each task, at half and at a quarter of the wide student's MACs: pruned by each measure of importance, and the
convnet of the same depth whose width comes nearest to the MACs that the pruned one has (l2; the others are within a
few percent). All have the same epochs in all; the learning rate of each row is chosen on validation, by its first seed.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
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


Outcome = tuple[float, float, float]
"""Validation accuracy, test accuracy, MACs."""


def run(*, quick: bool) -> Verdict:
    """Measure and print one table a task; nothing is judged, the space's defaults follow from it."""
    root = data_root()
    sources = [TaskSource("digits")]
    if root is not None and not quick:
        names = ("usps", "fashion_mnist")
        sources += [TaskSource(name, data_root=str(root), max_train=2_000, image_size=16) for name in names]
    wins = []
    with multiprocessing.get_context("spawn").Pool(SLOTS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for source in sources:
            rows: list[tuple[str, ...]] = []
            teacher_for(load_task(source))  # trained once, here, for all workers
            for fewer in FEWER[:1] if quick else FEWER:
                width = _narrow_width(source, fewer)
                chosen = _chosen(pool, source, fewer, width, seeds=1 if quick else SEEDS)
                rows += [_row(fewer, _name(importance, width), *found) for importance, found in chosen.items()]
                tests = {importance: mean(test for _, test, _ in found[1]) for importance, found in chosen.items()}
                wins.append(max(tests[importance] for importance in IMPORTANCES) > tests[""])
            header = ("fewer MACs", "student", "rate", "MACs", "test accuracy", "deviation over seeds")
            print_table(
                f"Pruned, or narrow from the start, on {source.text}", header, rows, [conditions(), f"wide: {WIDE}"]
            )
    text = f"the best of the measures beats the narrow student in {sum(wins)} of {len(wins)} cases"
    return Verdict("pruning", None, text)


def _narrow_width(source: TaskSource, fewer: int) -> int:
    """Return the width whose MACs come nearest to those that pruning leaves."""
    task = load_task(source)
    example = run_pipeline(task, _config(Run(source, fewer, "l2", 16, 0.01, 0)) | _short(), teacher=None)
    width = width_of_macs(WIDE, example.metrics["macs"], task)
    assert width is not None
    return width


def _chosen(
    pool: Pool, source: TaskSource, fewer: int, width: int, *, seeds: int
) -> dict[str, tuple[float, list[Outcome]]]:
    """Return, by importance, the learning rate that the first seed chooses on validation, and all seeds' outcomes."""
    kinds = (*IMPORTANCES, "")
    first = [Run(source, fewer, importance, width, rate, 0) for importance in kinds for rate in RATES]
    found = dict(zip(first, pool.map(_fit, first, chunksize=1), strict=True))
    best = [
        max((run for run in first if run.importance == importance), key=lambda r: found[r][0]) for importance in kinds
    ]
    others = [replace(run, seed=seed) for run in best for seed in range(1, seeds)]
    found |= dict(zip(others, pool.map(_fit, others, chunksize=1), strict=True))
    return {run.importance: (run.rate, [found[replace(run, seed=seed)] for seed in range(seeds)]) for run in best}


def _name(importance: str, width: int) -> str:
    return f"pruned by {importance}" if importance else f"narrow, width {width}"


def _row(fewer: int, name: str, rate: float, outcomes: list[Outcome]) -> tuple[str, ...]:
    tests = [test for _, test, _ in outcomes]
    macs = mean(macs for _, _, macs in outcomes)
    spread = stdev(tests) if len(tests) > 1 else 0.0
    return (f"{fewer}x", name, f"{rate:g}", f"{macs / 1e3:.0f} k", f"{mean(tests):.4f}", f"{spread:.4f}")


def _fit(one: Run) -> Outcome:
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
