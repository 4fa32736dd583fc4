"""The pipeline of one trial: teacher's knowledge -> distill -> prune -> fine-tune -> quantize -> measure.

A plain function of task, configuration, teacher and seed; the same four give the same result on the same device. What
is ranked is the network that would be deployed: BatchNorm folded, int8 where the configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from metasearch.configuration import Configuration
from metasearch.errors import InputError, TrialFailure
from metasearch.export import write_onnx
from metasearch.latency.model import LatencyModel
from metasearch.latency.network import works_of
from metasearch.models.weights import save_weights, write_tensors
from metasearch.records import Config, EpochReport, TrialResult
from metasearch.run import Run
from metasearch.stages import compress_and_fine_tune, deploy, distill, measure
from metasearch.tasks import Task
from metasearch.teachers import Teacher

NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""How torch's allocator on the CPU, the CUDA driver and cuBLAS or cuDNN say it."""
WEIGHTS_FILE, ONNX_FILE = "student.safetensors", "model.onnx"
TUNED_FILE = "tuned.safetensors"
"""The float tensors that were quantized, where quantization-aware fine-tuning has made others than the student's."""

NO_FILES: Mapping[str, Path] = MappingProxyType({})

Steps = Generator[EpochReport, None, TrialResult]


@dataclass(frozen=True)
class Shared:
    """What all runs of a worker share; the fields are those of `run_pipeline`."""

    task: Task
    teacher: Teacher | None = None
    device: torch.device | str = "cpu"
    initial: Mapping[str, Path] = field(default_factory=dict)
    source: Task | None = None
    latency_model: LatencyModel | None = None


def run_pipeline(
    task: Task,
    config: Config,
    *,
    teacher: Teacher | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[EpochReport], None] | None = None,
    save_to: Path | None = None,
    read_test: bool = False,
    initial: Mapping[str, Path] = NO_FILES,
    source: Task | None = None,
    latency_model: LatencyModel | None = None,
) -> TrialResult:
    """Train, compress and measure one student; return what would be deployed, measured.

    config: flat, by dotted path (`learning_rate.peak`, `student.width`); what is missing takes its default. teacher:
    needed where alpha > 0. report: called after every epoch; whatever it raises ends the run. save_to: a folder that
    gets the trained weights and the deployed network's ONNX file. read_test: whether to measure the test split, too.
    initial: weights files by the name of the `student.init` that starts from them, and a policy network's under
    `policy`. source: the task of a joint training, needed where source_weight > 0. latency_model: predicts the metric
    `latency_ms`; None leaves it out. details["works"] holds what it is predicted from.
    Raises InputError for a configuration that breaks a rule, TrialFailure where it fails by its own doing.
    """
    shared = Shared(task, teacher, device, initial, source, latency_model)
    steps = pipeline_steps(shared, config, seed=seed, save_to=save_to, read_test=read_test)
    while True:
        try:
            epoch = next(steps)
        except StopIteration as finished:
            result: TrialResult = finished.value
            return result
        if report is not None:
            report(epoch)


def pipeline_steps(
    shared: Shared, config: Config, *, seed: int = 0, save_to: Path | None = None, read_test: bool = False
) -> Steps:
    """Yield a report after every epoch and return the result: `run_pipeline` in steps, for a caller who interleaves."""
    task, teacher = shared.task, shared.teacher
    configuration = Configuration.of(config)
    if teacher is None and configuration.alpha > 0:
        raise InputError("alpha", "must be 0 where there is no teacher", configuration.alpha)
    with _own_failures():
        run = Run(
            task=task,
            configuration=configuration,
            teacher=teacher,
            seed=seed,
            device=torch.device(shared.device),
            initial=shared.initial,
            source=shared.source,
        )
        yield from distill(run)
        if configuration.compresses:
            yield from compress_and_fine_tune(run)
        deployed = yield from deploy(run)
        metrics = measure(run, deployed, read_test=read_test)
        works = works_of(deployed)
    run.details["works"] = [work.plain() for work in works]
    if shared.latency_model is not None:
        metrics["latency_ms"] = shared.latency_model.predict(works)
    if save_to is not None:
        save_to.mkdir(parents=True, exist_ok=True)
        save_weights(run.model, save_to / WEIGHTS_FILE, spec=run.spec, task=task)
        if run.tuned is not None:
            write_tensors(run.tuned.float_tensors(), save_to / TUNED_FILE, metadata={})
        write_onnx(deployed, save_to / ONNX_FILE, class_names=task.class_names)
    return TrialResult(
        config=dict(config),
        seed=seed,
        metrics=metrics,
        stages=tuple(run.stages),
        curve=tuple(run.curve),
        details=run.details,
    )


@contextmanager
def _own_failures() -> Iterator[None]:
    """Turn running out of memory, which a smaller configuration would not, into a TrialFailure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrialFailure("out_of_memory", str(error).split("\n")[0]) from error
    except MemoryError as error:
        raise TrialFailure("out_of_memory", str(error) or "host memory") from error
    except RuntimeError as error:  # torch raises nothing more specific for these
        if not any(text in str(error) for text in NO_MEMORY):
            raise
        raise TrialFailure("out_of_memory", str(error).split("\n")[0]) from error
