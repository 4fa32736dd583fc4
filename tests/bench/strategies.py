"""What an earlier search's structure or strategy is worth on a new task: searches with each fixed, and with neither.

The earlier study is of scikit-learn's digits, the new task USPS with few images, both of 8x8 pixels. What is fixed is
what the earlier study's most accurate trial had. The samplers know nothing of the earlier study, so that the fixing is
all that differs. Hypervolume: of validation error and the logarithm of bytes, in the box between them and LIMITS.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

from optuna.storages import RDBStorage

from metasearch.search.earlier import Decided, front_of
from metasearch.search.launch import run_study
from metasearch.search.pareto import hypervolume
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources, ray_running
from metasearch.search.space import parse_space
from metasearch.search.store import open_storage
from metasearch.tasks import TaskSource
from tests.bench.job import data_root
from tests.bench.sides import Verdict, conditions, print_table

EARLIER, EARLIER_TRIALS, TRIALS, SEEDS = "earlier", 24, 12, 3
TEACHER = "convnet:width=12,depth=4"
LIMITS, LEAST_BYTES = (0.5, 30_000.0), 300.0
FIXED = {
    "nothing": Decided(),
    "structure": Decided(structure=EARLIER),
    "structure narrowed": Decided(structure_range=EARLIER),
    "strategy": Decided(strategy=EARLIER),
}
SPACE = """
objectives: [val_accuracy, model_bytes]
policies:
  learning_rate:
    kind: {choices: [constant, cosine, one_cycle]}
    value: {low: 0.0003, high: 0.1, log: true}
    start: {low: 0.0003, high: 0.1, log: true}
    peak: {low: 0.0003, high: 0.1, log: true}
  temperature: {low: 1, high: 8}
  student.width: {low: 2, high: 16, step: 2}
  pruning_ratio: {kind: cubic, final: {low: 0.0, high: 0.6, step: 0.1}}
parameters:
  student.family: convnet
  student.depth: {low: 2, high: 4}
  batch_size: {choices: [16, 32, 64]}
  optimizer: {choices: [sgd, adamw]}
  weight_decay: {low: 1.0e-6, high: 1.0e-1, log: true}
  alpha: {low: 0.0, high: 1.0}
  epochs: 8
  fine_tune_epochs: 2
  quantize: int8
"""


def run(*, quick: bool) -> Verdict:
    """Run the earlier search and every one on the new task; print their hypervolumes."""
    root = data_root()
    if root is None:
        return Verdict("strategies", None, "skipped: no METASEARCH_DATA")
    old = TaskSource("digits", max_train=500)
    new = TaskSource("usps", data_root=str(root), image_size=8, max_train=300)
    earlier, trials, seeds = (4, 3, 1) if quick else (EARLIER_TRIALS, TRIALS, SEEDS)
    began = time.time()
    found: dict[str, list[float]] = {name: [] for name in FIXED}
    with tempfile.TemporaryDirectory() as scratch, ray_running(Resources(workers=1)):
        storage = open_storage(f"sqlite:///{Path(scratch) / 'studies.db'}", create=True)
        _search(storage, scratch, EARLIER, old, Decided(), trials=earlier, seed=0)
        for seed in range(seeds):
            for name, decided in FIXED.items():
                study = f"{name}-{seed}".replace(" ", "-")
                _search(storage, scratch, study, new, decided, trials=trials, seed=seed)
                found[name].append(_volume(storage, study))
                print(f"{name}, seed {seed}: {found[name][-1]:.3f}", flush=True)
    rows = [
        (
            name,
            f"{mean(volumes):.3f}",
            f"{stdev(volumes):.3f}" if len(volumes) > 1 else "",
            *(f"{v:.3f}" for v in volumes),
        )
        for name, volumes in found.items()
    ]
    notes = [
        conditions(),
        f"{trials} trials each after {earlier} on digits; USPS, 300 images of 8x8; teacher {TEACHER}; "
        f"{time.time() - began:.0f} s in all",
    ]
    header = ("fixed", "hypervolume", "deviation", *(f"seed {seed}" for seed in range(seeds)))
    print_table("Structure and strategy of an earlier search", header, rows, notes)
    text = ", ".join(f"{name} {mean(volumes):.3f}" for name, volumes in found.items())
    return Verdict("strategies", None, f"hypervolume by what is fixed: {text} (no target is stated)")


def _search(
    storage: RDBStorage, scratch: str, name: str, source: TaskSource, decided: Decided, *, trials: int, seed: int
) -> None:
    options = Options(
        source,
        parse_space(SPACE, place="strategies"),
        trials,
        name,
        seed=seed,
        teacher=TEACHER,
        device="cpu",
        artefacts=str(Path(scratch) / "artefacts"),
        warm_start="none",
        decided=decided,
    )
    prepare_study(storage, options, tell=print)
    run_study(storage, name, resources=Resources(workers=1), final=False)


def _volume(storage: RDBStorage, name: str) -> float:
    """Return the share of the box that the study's front dominates."""
    worst_error, most_bytes = LIMITS
    points = [
        (
            (1 - result.metrics["val_accuracy"]) / worst_error,
            math.log(result.metrics["model_bytes"] / LEAST_BYTES) / math.log(most_bytes / LEAST_BYTES),
        )
        for result in front_of(storage, name).values()
    ]
    return hypervolume(points, (1.0, 1.0))
