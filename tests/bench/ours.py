"""The job through metasearch, as `launch` runs it: logits once, reused workers, the pipeline as the trial.

Started by `throughput.run` as `python -m tests.bench.ours JOB_FOLDER RESULT_FILE`.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import optuna
import torch

from metasearch.measure import predict
from metasearch.models import NetworkSpec, build_network
from metasearch.records import Config, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.pipeline_worker import PipelineWorker, run_request
from metasearch.search.runner import Resources, drive
from metasearch.search.stopping import StopFlag
from metasearch.search.store import open_storage
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import Teacher
from metasearch.training import laid_out, validation_accuracy
from tests.bench.job import SEED, TEACHER, Job, load_teacher
from tests.bench.sides import SLOTS, Measured, start_ray

OBJECTIVES = ("val_accuracy", "macs")


def main() -> None:
    """Run all configurations of the job that the command line names; write seconds, accuracies and shares."""
    folder, result_file = Path(sys.argv[1]), Path(sys.argv[2])
    job = Job.load(folder)
    source = TaskSource(**job.source)
    start_ray()
    started = time.time()
    task = load_task(source)
    teacher = _teacher(folder, task)
    prepare = PipelineWorker.of(source, teacher, device="cpu", threads=1)
    study = optuna.create_study(
        storage=open_storage(f"sqlite:///{folder / 'studies.db'}", create=True), directions=["maximize", "minimize"]
    )
    ledger = Ledger(
        study,
        lambda trial: Proposal(job.configs[trial.number], seed=SEED),
        target=len(job.configs),
        seed=SEED,
        objectives=OBJECTIVES,
    )
    driven = time.time()
    drive(ledger, run_request, prepare, resources=Resources(workers=SLOTS, threads=1), stop=StopFlag())
    ended = time.time()
    if ledger.states["COMPLETE"] != len(job.configs):
        raise RuntimeError(f"{len(job.configs)} trials wanted, got {dict(ledger.states)} and {dict(ledger.failures)}")
    results = [TrialResult.from_json(trial.user_attrs["result"]) for trial in study.trials]
    measured = {
        "seconds": ended - started,
        "val_accuracies": [result.metrics["val_accuracy"] for result in results],
        "slot_seconds": _slot_seconds(study, results, task, started=started, driven=driven, ended=ended),
    }
    result_file.write_text(json.dumps(measured), encoding="utf-8")


def _teacher(folder: Path, task: Task) -> Teacher:
    """Return the trained teacher with its logits, computed here and now on all three splits as `teacher_for` does."""
    model = laid_out(load_teacher(folder, task))
    validation, test, train = (
        predict(model, split.inputs, prepare=task.normalisation) for split in (task.validation, task.test, task.train)
    )
    return Teacher(str(TEACHER), SEED, {"train": train[None], "validation": validation, "test": test}, {})


def _slot_seconds(
    study: optuna.Study, results: list[TrialResult], task: Task, *, started: float, driven: float, ended: float
) -> Measured:
    """Return where the seconds of the slots went, SLOTS times the wall clock in all."""
    runs: dict[int, list[tuple[float, float]]] = {}
    for run in sorted((trial.user_attrs["run"] for trial in study.trials), key=lambda run: float(run["started"])):
        runs.setdefault(run["pid"], []).append((run["started"], run["ended"]))
    in_trials = sum(end - start for spans in runs.values() for start, end in spans)
    in_epochs = sum(epoch.seconds for result in results for epoch in result.curve)
    validation = sum(_validation_seconds(result.config, task) * len(result.curve) for result in results)
    return {
        "the teacher's logits, train, validation and test": SLOTS * (driven - started),
        "until each worker's first trial": sum(spans[0][0] - driven for spans in runs.values()),
        "training steps": in_epochs - validation,
        "validation after each epoch (estimated)": validation,
        "the rest of the trials: folding, measuring, reporting": in_trials - in_epochs,
        "between trials": sum(b[0] - a[1] for spans in runs.values() for a, b in pairwise(spans)),
        "after each worker's last trial": sum(ended - spans[-1][1] for spans in runs.values()),
        "slots without a worker": (SLOTS - len(runs)) * (ended - driven),
    }


def _validation_seconds(config: Config, task: Task) -> float:
    """Return the seconds of one pass over the validation split, measured with one thread."""
    torch.set_num_threads(1)
    spec = NetworkSpec(config["student.family"], width=config["student.width"], depth=config["student.depth"])
    model = laid_out(build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=SEED))
    started = time.perf_counter()
    validation_accuracy(model, task, device=torch.device("cpu"))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
