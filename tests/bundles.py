"""Bundles of small networks that the real pipeline trained, and studies to export them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from metasearch.bundle.choosing import Chosen
from metasearch.bundle.writing import write_bundle
from metasearch.pipeline import run_pipeline
from metasearch.records import Config, TrialResult
from metasearch.search.artefacts import publish, trial_folder
from metasearch.search.names import RESULT, RUN
from metasearch.search.store import create_study
from metasearch.tasks import Task, TaskSource, load_task
from tests.fakes import describe, new_storage
from tests.synthetic import synthetic_task

SMALL: Config = {
    "student.family": "convnet",
    "student.width": 4,
    "student.depth": 2,
    "batch_size": 30,
    "epochs": 2,
    "fine_tune_epochs": 1,
    "alpha": 0.0,
    "quantize": "int8",
    "quantization_epochs": 0,
}
"""Trained without a teacher, in a moment."""

DIGITS = TaskSource("digits", max_train=200)


def made_trial(
    folder: Path, config: Mapping[str, Any], *, task: Task | None = None, seed: int = 0, **changes: Any
) -> tuple[Chosen, dict[str, Path], Task]:
    """Run the pipeline for SMALL with `config`; return the trial, its files and its task, by default a synthetic one.

    changes: fields of the study's description.
    """
    task = task or synthetic_task()
    result = run_pipeline(task, SMALL | dict(config), seed=seed, save_to=folder / "made")
    files = {file.name: file for file in (folder / "made").iterdir()}
    description = describe(folder, fingerprint=task.fingerprint, **changes)
    return Chosen("made", 3, "as asked", description, result), files, task


def make_bundle(folder: Path, config: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """Write the bundle of a trial with SMALL and `config` into folder/bundle; return its path. options: of made_trial."""
    chosen, files, task = made_trial(folder, config or {}, **options)
    write_bundle(chosen, files, task, folder / "bundle")
    return folder / "bundle"


def study_of(
    folder: Path, configs: Sequence[Mapping[str, Any]], *, source: TaskSource = DIGITS, name: str = "small"
) -> tuple[RDBStorage, list[TrialResult]]:
    """Make a study whose trials ran SMALL with each of the configurations; return its storage and their results."""
    storage = new_storage(f"sqlite:///{folder / 'studies.db'}")
    task = load_task(source)
    description = describe(folder, task=asdict(source), fingerprint=task.fingerprint, teacher="mlp:width=4,depth=1")
    study = create_study(storage, name, replace(description, trials=len(configs)))
    results = []
    for number, config in enumerate(configs):
        made = folder / f"made-{number}"
        result = run_pipeline(task, SMALL | dict(config), seed=number, save_to=made)
        kept = trial_folder(f"{description.artefacts}/{name}", number)
        results.append(replace(result, artefacts=publish(made, kept)))
        values = [result.metrics[objective] for objective in description.objectives]
        run = {"node": "here", "pid": 1, "started": 0.0, "ended": 1.0, "seed": number}
        attributes = {RUN: run, RESULT: results[-1].to_json()}
        study.add_trial(create_trial(state=TrialState.COMPLETE, values=values, user_attrs=attributes))
    return storage, results
