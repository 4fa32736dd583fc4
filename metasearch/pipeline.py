"""The pipeline of one trial: teacher logits -> distill -> prune -> fine-tune -> quantize -> measure.

A plain function of task, configuration, teacher and seed; the same four give the same result on the same device. What
is ranked is the network that would be deployed: BatchNorm folded, int8 where the configuration says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.configuration import Configuration
from metasearch.distill import distillation_loss
from metasearch.errors import InputError, TrialFailure
from metasearch.export import write_onnx
from metasearch.measure import (
    accuracy,
    agreement,
    balanced_accuracy,
    count_macs,
    count_parameters,
    expected_calibration_error,
    predict,
)
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.lowered import LoweredNetwork
from metasearch.models.module_network import ModuleNetwork, deployable, require_int8
from metasearch.models.weights import save_weights
from metasearch.prune import check_removed, narrow, prune_to_ratio, recalibrate_batchnorm, total_channels
from metasearch.quantize import QuantizedNetwork, quantize
from metasearch.records import Config, EpochReport, StageResult, TrialResult
from metasearch.tasks import Task
from metasearch.teachers import VIEWS, Teacher
from metasearch.training import Schedule, TrainingData, train, validation_accuracy

CALIBRATION_INPUTS = 512
NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""How torch's allocator on the CPU, the CUDA driver and cuBLAS or cuDNN say it."""
WEIGHTS_FILE, ONNX_FILE = "student.safetensors", "model.onnx"

Steps = Generator[EpochReport, None, TrialResult]


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
) -> TrialResult:
    """Train, compress and measure one student; return what would be deployed, measured.

    config: flat, by dotted path (`learning_rate.peak`, `student.width`); what is missing takes its default. teacher:
    needed where alpha > 0. report: called after every epoch; whatever it raises ends the run. save_to: a folder that
    gets the trained weights and the deployed network's ONNX file. read_test: whether to measure the test split, too.
    Raises InputError for a configuration that breaks a rule, TrialFailure where it fails by its own doing.
    """
    steps = pipeline_steps(
        task, config, teacher=teacher, seed=seed, device=device, save_to=save_to, read_test=read_test
    )
    while True:
        try:
            epoch = next(steps)
        except StopIteration as finished:
            result: TrialResult = finished.value
            return result
        if report is not None:
            report(epoch)


def pipeline_steps(
    task: Task,
    config: Config,
    *,
    teacher: Teacher | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    save_to: Path | None = None,
    read_test: bool = False,
) -> Steps:
    """Yield a report after every epoch and return the result: `run_pipeline` in steps, for a caller who interleaves."""
    configuration = Configuration.of(config)
    if teacher is None and configuration.alpha > 0:
        raise InputError("alpha", "must be 0 where there is no teacher", configuration.alpha)
    with _own_failures():
        run = _Run(task, configuration, teacher, seed, torch.device(device))
        yield from run.distill()
        if configuration.prunes:
            yield from run.prune_and_fine_tune()
        deployed = run.deploy()
        metrics, details = run.measure(deployed, read_test=read_test)
    if save_to is not None:
        save_to.mkdir(parents=True, exist_ok=True)
        save_weights(run.model, save_to / WEIGHTS_FILE, spec=run.spec, task=task)
        write_onnx(deployed, save_to / ONNX_FILE, class_names=task.class_names)
    return TrialResult(
        config=dict(config),
        seed=seed,
        metrics=metrics,
        stages=tuple(run.stages),
        curve=tuple(run.curve),
        details=details,
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


@dataclass
class _Run:
    """The state of one pipeline run: the network as it stands, and what was recorded on the way."""

    task: Task
    configuration: Configuration
    teacher: Teacher | None
    seed: int
    device: torch.device
    stages: list[StageResult] = field(default_factory=list)
    curve: list[EpochReport] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c = self.configuration
        self.spec = NetworkSpec(c.family, width=round(c.width(0.0)), depth=c.depth)
        self.model = build_network(
            self.spec, input_shape=self.task.input_shape, classes=self.task.classes, seed=self.seed
        ).to(self.device)
        if c.quantize != "none" and c.family not in FAMILIES:
            require_int8(self._deployable())  # before a network of the user's is trained that int8 cannot take
        self.generator = torch.Generator().manual_seed(self.seed)
        self.distill_epochs = c.epochs if c.prunes else c.epochs + c.fine_tune_epochs

    def distill(self) -> Iterator[EpochReport]:
        """Train the student; without pruning the epochs of the fine-tuning are added, so that budgets are equal."""
        width = self.spec.width
        last = max(self.distill_epochs - 1, 1)

        def narrowed(model: nn.Module, epoch: int) -> nn.Module:
            nonlocal width
            wanted = round(self.configuration.width(epoch / last))
            if wanted >= width:
                return model
            shape = self.task.input_shape
            model, width = narrow(model, width=wanted, present_width=width, input_shape=shape), wanted
            recalibrate_batchnorm(model, self.task)
            return model

        yield from self._train("distill", self.configuration.learning_rate, self.distill_epochs, narrowed)
        self.details["width"] = width

    def prune_and_fine_tune(self) -> Iterator[EpochReport]:
        """Remove channels by schedule while training on under the same loss."""
        c = self.configuration
        before = total_channels(self.model, self.task.input_shape)
        epochs = c.fine_tune_epochs

        def pruned(model: nn.Module, epoch: int) -> nn.Module:
            started = time.perf_counter()
            ratio = c.pruning_ratio((epoch + 1) / max(epochs, 1))
            smaller = prune_to_ratio(model, ratio=ratio, original=before, input_shape=self.task.input_shape)
            if smaller is not model:
                recalibrate_batchnorm(smaller, self.task)
                metrics = self._network_metrics(smaller) | {"pruning_ratio": ratio}
                self.stages.append(StageResult("prune", time.perf_counter() - started, metrics))
            return smaller

        if epochs == 0:
            self.model = pruned(self.model, 0)
        else:
            scale = c.fine_tune_scale
            yield from self._train("fine_tune", lambda p: scale * c.learning_rate(p), epochs, pruned)
        after = total_channels(self.model, self.task.input_shape)
        check_removed(before, after, ratio=c.pruning_ratio.bounds()[1])
        self.details["channels_removed"] = 1 - after / before

    def deploy(self) -> LoweredNetwork | QuantizedNetwork | ModuleNetwork:
        """Fold and, where asked for, quantize the network; what comes out is what runs on the device."""
        started = time.perf_counter()
        network = self._deployable()
        if self.configuration.quantize == "none":
            return network
        lowered = require_int8(network)
        stride = max(1, len(self.task.train) // CALIBRATION_INPUTS)
        quantized = quantize(lowered, self.task.train.inputs[::stride])
        metrics = {"model_bytes": quantized.stored_bytes, "float_bytes": lowered.stored_bytes}
        self.stages.append(StageResult("quantize", time.perf_counter() - started, metrics))
        return quantized

    def measure(
        self, deployed: LoweredNetwork | QuantizedNetwork | ModuleNetwork, *, read_test: bool
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics of the deployed network, and the details of the run."""
        validation = self.task.validation
        logits = predict(deployed, validation.inputs, device=self.device)
        if not bool(logits.isfinite().all()):  # the last step may have blown up after the last finite loss
            raise TrialFailure("diverged", "a logit of the trained network is not finite")
        metrics: dict[str, float] = {
            "val_accuracy": accuracy(logits, validation.labels),
            "val_balanced_accuracy": balanced_accuracy(logits, validation.labels, self.task.classes),
            "val_ece": expected_calibration_error(logits, validation.labels),
            "parameters": count_parameters(self.model),
            "macs": count_macs(self.model, self.task.input_shape),
            "model_bytes": deployed.stored_bytes,
            "train_seconds": sum(epoch.seconds for epoch in self.curve),
        }
        if self.teacher is not None:
            metrics["teacher_agreement"] = agreement(logits, self.teacher.logits["validation"])
        if read_test:
            test_logits = predict(deployed, self.task.test.inputs, device=self.device)
            metrics["test_accuracy"] = accuracy(test_logits, self.task.test.labels)
        return metrics, self.details

    def _train(
        self,
        stage: str,
        learning_rate: Callable[[float], float],
        epochs: int,
        reshape: Callable[[nn.Module, int], nn.Module],
    ) -> Iterator[EpochReport]:
        c = self.configuration
        schedule = Schedule(
            learning_rate=learning_rate,
            temperature=c.temperature,
            epochs=epochs,
            batch_size=c.batch_size,
            optimizer=c.optimizer,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )

        def loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
            return distillation_loss(
                student, teacher, labels, temperature=temperature, alpha=c.alpha, label_smoothing=c.label_smoothing
            )

        started = time.perf_counter()
        done = len(self.curve)
        for model, epoch in train(
            self.model,
            self._training_data(),
            loss=loss,
            schedule=schedule,
            generator=self.generator,
            stage=stage,
            reshape=reshape,
        ):
            self.model = model
            self.curve.append(replace(epoch, epoch=done + epoch.epoch, epochs=c.epochs + c.fine_tune_epochs))
            yield self.curve[-1]
        self.stages.append(StageResult(stage, time.perf_counter() - started, self._network_metrics(self.model)))

    def _deployable(self) -> LoweredNetwork | ModuleNetwork:
        return deployable(self.model, normalisation=self.task.normalisation, input_shape=self.task.input_shape)

    def _training_data(self) -> TrainingData:
        task, augmented = self.task, self.configuration.augment and bool(self.task.augmentation)
        if self.teacher is None:
            return TrainingData.without_teacher(
                task, device=self.device, views=VIEWS if augmented else 0, seed=self.seed
            )
        logits = self.teacher.logits["views" if augmented else "train"]
        if len(logits) == 0:
            raise InputError("augment", "needs the teacher's logits on augmented views: teacher_for(..., views=True)")
        inputs, labels = task.train.inputs.to(self.device), task.train.labels.to(self.device)
        return TrainingData(task, inputs, labels, logits.to(self.device), augmented, self.teacher.seed)

    def _network_metrics(self, model: nn.Module) -> dict[str, float]:
        return {
            "val_accuracy": validation_accuracy(model, self.task, device=self.device),
            "parameters": count_parameters(model),
            "macs": count_macs(model, self.task.input_shape),
        }
