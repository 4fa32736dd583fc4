"""What a worker process needs to run trials of the pipeline: the task and the teacher, opened once."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from metasearch.latency.model import LatencyModel
from metasearch.pipeline import Shared, pipeline_steps
from metasearch.records import EpochReport, TrialResult
from metasearch.search.artefacts import KeptFile, fetch_all, publish
from metasearch.search.hanging import machines_turn
from metasearch.search.versions import check_versions
from metasearch.search.worker import TrialRequest
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import Teacher


@dataclass(frozen=True)
class PipelineWorker:
    """Opens the task and the teacher in a worker process; sent there once, the logits (as arrays) without a copy.

    joint: of the source task of a joint training. initial: weights files by the initialisation, fetched on every node.
    gpu_memory: the share of its GPU's memory that the process may take, None for all. versions: of the driver's
    packages, which this process must have too; empty on the driver's own machine. latency_model: see `run_pipeline`.
    """

    source: TaskSource
    teacher: Teacher
    logits: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    device: str
    threads: int
    initial: Mapping[str, KeptFile] = field(default_factory=dict)
    joint: TaskSource | None = None
    gpu_memory: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    latency_model: LatencyModel | None = None

    @classmethod
    def of(
        cls,
        source: TaskSource,
        teacher: Teacher,
        *,
        device: str,
        threads: int,
        initial: Mapping[str, KeptFile] | None = None,
        joint: TaskSource | None = None,
        gpu_memory: float | None = None,
        versions: Mapping[str, str] | None = None,
        latency_model: LatencyModel | None = None,
    ) -> PipelineWorker:
        """Return the worker of a task and its teacher, whose tensors travel as arrays."""
        logits, features = (
            {name: tensor.numpy() for name, tensor in tensors.items()} for tensors in (teacher.logits, teacher.features)
        )
        bare = replace(teacher, logits={}, features={})
        return cls(
            source=source,
            teacher=bare,
            logits=logits,
            features=features,
            device=device,
            threads=threads,
            initial=initial or {},
            joint=joint,
            gpu_memory=gpu_memory,
            versions=dict(versions or {}),
            latency_model=latency_model,
        )

    def __call__(self) -> Shared:
        """Return what every trial shares.

        Raises MetasearchError for another version than the driver's, or a file that is not there or another one.
        """
        check_versions(self.versions)
        if self.gpu_memory is not None and self.device == "cuda":
            # Ray divides a device by counting only; without this one trial could take the memory of its neighbours
            torch.cuda.set_per_process_memory_fraction(self.gpu_memory)
        torch.set_num_threads(self.threads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            logits, features = (
                {name: torch.from_numpy(array) for name, array in arrays.items()}
                for arrays in (self.logits, self.features)
            )
        teacher = replace(self.teacher, logits=logits, features=features)
        joint = None if self.joint is None else load_task(self.joint)
        task, initial = load_task(self.source), fetch_all(self.initial)
        return Shared(task, teacher, self.device, initial, joint, self.latency_model)


def run_request(request: TrialRequest, shared: Shared) -> Generator[EpochReport, None, TrialResult]:
    """Run one trial's pipeline in a worker; what it makes is published whole, at its end."""
    with tempfile.TemporaryDirectory(prefix="metasearch-trial-") as made:
        result = yield from pipeline_steps(
            shared,
            request.config,
            seed=request.seed,
            save_to=None if request.folder is None else Path(made),
            read_test=request.read_test,
        )
        if request.folder is None:
            return result
        with machines_turn():  # a shared folder that is full or away for some seconds is no fault of the trial's
            return replace(result, artefacts=publish(Path(made), request.folder))
