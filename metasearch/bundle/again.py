"""A trial's pipeline run again: for files that are gone, and for the student without its compression."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from metasearch.configuration import Configuration
from metasearch.initial import TEACHER_SLICE
from metasearch.pipeline import run_pipeline
from metasearch.records import Config, TrialResult
from metasearch.search.artefacts import fetch_all, kept_files
from metasearch.search.benchmarks import latency_of
from metasearch.search.store import StudyDescription
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import TeacherSource, teacher_for


def run_again(
    description: StudyDescription, task: Task, config: Config, *, seed: int, save_to: Path | None = None
) -> TrialResult:
    """Return what a configuration gives under a study's teacher, starts and source task, as in a trial of it.

    Where torch, the device and the CPU are those of the trial, it is the trial's result to the bit. The device is the
    study's, the CPU where that is missing here. Raises as `teacher_for` and `run_pipeline` do.
    """
    c, device = Configuration.of(config), description.device if torch.cuda.is_available() else "cpu"
    with _one_thread():  # as in a search's worker: more would add the same products in another order
        teacher = teacher_for(  # as every trial has it: what learns from labels alone is compared with it, too
            task,
            TeacherSource.of(description.teacher),
            seed=description.seed,
            device=device,
            views=c.augment,
            features=[c.loss],
            network=c.init == TEACHER_SLICE,
        )
        return run_pipeline(
            task,
            config,
            teacher=teacher,
            seed=seed,
            device=device,
            save_to=save_to,
            initial=fetch_all(kept_files(description.initial)),
            source=None if description.source is None else load_task(TaskSource(**description.source)),
            latency_model=None if (latency := latency_of(description)) is None else latency.model,
        )


def uncompressed(config: Config) -> Config:
    """Return the configuration of the same student at its first width, neither pruned nor sparse nor quantized."""
    dropped = ("student.width", "pruning_ratio", "sparsity", "quantize")
    kept = {path: value for path, value in config.items() if not path.startswith(dropped)}
    return kept | {"student.width": round(Configuration.of(config).width(0.0)), "quantize": "none"}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
