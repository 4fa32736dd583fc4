"""What a worker process needs to run trials of the pipeline: the task and the teacher, opened once."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from metasearch.pipeline import pipeline_steps
from metasearch.records import EpochReport, TrialResult
from metasearch.search.worker import TrialRequest
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import Teacher


@dataclass(frozen=True)
class PipelineWorker:
    """Opens the task and the teacher in a worker process; sent there once, the logits (as arrays) without a copy."""

    source: TaskSource
    teacher: Teacher
    logits: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    device: str
    threads: int

    @classmethod
    def of(cls, source: TaskSource, teacher: Teacher, *, device: str, threads: int) -> PipelineWorker:
        """Return the worker of a task and its teacher, whose tensors travel as arrays."""
        logits, features = (
            {name: tensor.numpy() for name, tensor in tensors.items()} for tensors in (teacher.logits, teacher.features)
        )
        return cls(source, replace(teacher, logits={}, features={}), logits, features, device, threads)

    def __call__(self) -> tuple[Task, Teacher, str]:
        """Return what every trial shares."""
        torch.set_num_threads(self.threads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            logits, features = (
                {name: torch.from_numpy(array) for name, array in arrays.items()}
                for arrays in (self.logits, self.features)
            )
        return load_task(self.source), replace(self.teacher, logits=logits, features=features), self.device


def run_request(request: TrialRequest, shared: tuple[Task, Teacher, str]) -> Generator[EpochReport, None, TrialResult]:
    """Run one trial's pipeline in a worker."""
    task, teacher, device = shared
    return pipeline_steps(
        task,
        request.config,
        teacher=teacher,
        seed=request.seed,
        device=device,
        save_to=request.folder,
        read_test=request.read_test,
    )
