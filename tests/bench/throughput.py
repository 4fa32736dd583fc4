"""Twelve fixed configurations, start to finish: our runner and pipeline beside a script from the tutorials.

Both distil the same students from the same trained teacher on the same images, with the same initial weights, epochs,
batch sizes, optimizers and rate schedule, two at once with one torch thread each. The seconds run from ray.init's
return to the search's. The teacher's training and the extraction of the files lie outside; the teacher's logits inside:
ours computes them once, for all three splits, the tutorial in every batch of training.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean, stdev

from metasearch.measure import count_macs
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks import Task
from tests.bench.job import SEED, TEACHER, Job, data_root, prepare_job
from tests.bench.sides import SLOTS, Measured, Verdict, common_rows, conditions, print_table, run_side

IMAGES, EPOCHS, CONFIGURATIONS = 10_000, 4, 12
QUICK_IMAGES, QUICK_EPOCHS, QUICK_CONFIGURATIONS = 2_000, 1, 2
TARGET = 2.5
"""The tutorial must take at least so many times our seconds."""
ACCURACY_NOISE = 0.01
"""By how much the mean validation accuracies may differ: the two draw their batches in different orders."""


def run(*, quick: bool) -> Verdict:
    """Measure both sides and print the tables."""
    root = data_root()
    if root is None:
        text = "skipped: no FashionMNIST/raw in METASEARCH_DATA, nor in shared/data beside the repository"
        print(f"\nthroughput {text}")
        return Verdict("throughput", None, text)
    images, epochs = (QUICK_IMAGES, QUICK_EPOCHS) if quick else (IMAGES, EPOCHS)
    count = QUICK_CONFIGURATIONS if quick else CONFIGURATIONS
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        job, task = prepare_job(Path(scratch), root=root, images=images, epochs=epochs, count=count, trained=not quick)
        before = conditions()
        ours = run_side("tests.bench.ours", scratch)
        # One configuration in all slots at once, for one epoch, so that no idle core helps the loader's processes.
        pilots = {
            workers: _tutorial(scratch, loader_workers=workers, epochs=1, indices=[0] * SLOTS) for workers in (0, 2)
        }
        loader_workers = min(pilots, key=lambda workers: float(pilots[workers]["seconds"]))
        tutorial = _tutorial(scratch, loader_workers=loader_workers, epochs=epochs, indices=list(range(count)))
    loader = ", ".join(f"num_workers {workers} {pilot['seconds']:.1f} s" for workers, pilot in pilots.items())
    verdict = _show(
        ours, tutorial, [before, *_description(job, task), f"the tutorial's DataLoader was tried: {loader}"]
    )
    return Verdict(verdict.name, None, verdict.text) if quick else verdict


def _tutorial(folder: str, *, loader_workers: int, epochs: int, indices: list[int]) -> Measured:
    return run_side("tests.bench.tutorial", folder, str(loader_workers), str(epochs), ",".join(map(str, indices)))


def _description(job: Job, task: Task) -> list[str]:
    teacher_macs, *macs = (
        count_macs(build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=SEED), task.input_shape)
        for spec in [
            TEACHER,
            *(NetworkSpec("convnet", width=c["student.width"], depth=c["student.depth"]) for c in job.configs),
        ]
    )
    return [
        f"{len(macs)} configurations of {job.configs[0]['epochs']} epochs on {len(task.train):,} Fashion-MNIST images, "
        f"{len(task.validation):,} for validation; {SLOTS} at once, 1 torch thread each; seed {SEED} for all",
        f"students of {min(macs) / 1e6:.2f} to {max(macs) / 1e6:.2f} M MACs, {mean(macs) / 1e6:.2f} M in the mean; "
        f"the teacher {teacher_macs / 1e6:.1f} M, {teacher_macs / mean(macs):.1f} times as many",
    ]


def _show(ours: Measured, tutorial: Measured, notes: list[str]) -> Verdict:
    differences = [a - b for a, b in zip(ours["val_accuracies"], tutorial["val_accuracies"], strict=True)]
    ratio, difference = tutorial["seconds"] / ours["seconds"], mean(differences)
    rows = [
        ("seconds for all", *(f"{side['seconds']:.1f}" for side in (ours, tutorial))),
        ("seconds a trial", *(f"{side['seconds'] / len(differences):.2f}" for side in (ours, tutorial))),
        ("mean validation accuracy", *(f"{mean(side['val_accuracies']):.4f}" for side in (ours, tutorial))),
        *common_rows(ours, tutorial),
    ]
    spread = f"accuracy, ours less tutorial's: standard deviation over configurations {stdev(differences):.4f}"
    print_table("Throughput of fixed configurations", ("", "ours", "tutorial"), rows, [*notes, spread])
    slots = ours["slot_seconds"]
    total = sum(slots.values())
    shares = [(name, f"{seconds:.1f}", f"{seconds / total:.1%}") for name, seconds in slots.items()]
    print_table(f"Where our time goes, summed over the {SLOTS} slots", ("", "seconds", "share"), shares, [])
    met = ratio >= TARGET and abs(difference) <= ACCURACY_NOISE
    text = (
        f"{ratio:.2f} times faster than the tutorial (target: at least {TARGET}), "
        f"mean accuracy {difference:+.4f} from the tutorial's (target: within {ACCURACY_NOISE})"
    )
    return Verdict("throughput", met, text)
