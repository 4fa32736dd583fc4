"""The stages of a pipeline run, in their order: distil, compress and fine-tune, deploy, measure."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.measure import (
    accuracy,
    agreement,
    balanced_accuracy,
    count_macs,
    count_parameters,
    eval_mode,
    expected_calibration_error,
    predict,
)
from metasearch.models.module_network import require_int8
from metasearch.prune import SIZES, check_removed, narrow, prune_to_ratio, recalibrate_batchnorm, total_channels
from metasearch.quantization_aware import FakeQuantized
from metasearch.quantize import quantize
from metasearch.records import EpochReport, StageResult
from metasearch.run import Deployed, Run
from metasearch.sparse import apply_masks, magnitude_masks, removed_share
from metasearch.tasks import Task

CALIBRATION_INPUTS = 512
GRADIENT_INPUTS, GRADIENT_BATCH = 1024, 64
"""Training inputs, and how many of them at once, from which the importance of first order is estimated."""
QUANTIZATION_LOSS, QUANTIZATION_SCALE = 0.01, 0.1
"""Validation accuracy that int8 must cost for quantization-aware fine-tuning, and the factor on its learning rate."""


def distill(run: Run) -> Iterator[EpochReport]:
    """Train the student, jointly with a source task where that has a weight.

    Without pruning the epochs of the fine-tuning, which is on the target alone, are added, so that budgets are equal.
    """
    width = run.spec.width
    last = max(run.distill_epochs - 1, 1)

    def narrowed(model: nn.Module, epoch: int) -> nn.Module:
        nonlocal width
        wanted = round(run.configuration.width(epoch / last))
        if wanted >= width:
            return model
        shape = run.task.input_shape
        model, width = narrow(model, width=wanted, present_width=width, input_shape=shape), wanted
        recalibrate_batchnorm(model, run.task)
        return model

    yield from run.train("distill", run.distill_epochs, narrowed, joint=True)
    run.details["width"] = width


def compress_and_fine_tune(run: Run) -> Iterator[EpochReport]:
    """Remove channels and single weights by schedule while training on under the same loss."""
    c = run.configuration
    shape = run.task.input_shape
    channels = total_channels(run.model, shape)
    original = SIZES[c.pruning_target](run.model, shape)
    epochs = c.fine_tune_epochs
    masks: dict[str, Tensor] = {}
    sparsity = 0.0

    def compressed(model: nn.Module, epoch: int) -> nn.Module:
        nonlocal sparsity
        progress = (epoch + 1) / max(epochs, 1)
        model = _pruned(run, model, progress, original) if c.prunes else model
        if c.sparsifies:
            sparsity = max(sparsity, c.sparsity(progress))  # zeros rank lowest: what is masked stays so
            masks.clear()
            masks.update(_masked(run, model, sparsity))
        return model

    if epochs == 0:
        run.model = compressed(run.model, 0)
    else:
        hold = (lambda model: apply_masks(model, masks)) if c.sparsifies else None
        features = c.loss != "hint"  # as in Romero et al. (2015): the hint first, then the logits alone
        yield from run.train(
            "fine_tune", epochs, compressed, scale=c.fine_tune_scale, after_step=hold, features=features
        )
    if c.prunes:
        left = total_channels(run.model, shape)
        check_removed(channels, left, ratio=c.pruning_ratio.bounds()[1])
        run.details["channels_removed"] = 1 - left / channels
    if c.sparsifies:
        if not masks:
            raise TrialFailure("no_effect", f"sparsity {c.sparsity.bounds()[1]:g} was never applied")
        run.details["sparsity"] = removed_share(masks)


def _pruned(run: Run, model: nn.Module, progress: float, original: int) -> nn.Module:
    """Return the network without the channels that the schedule takes by now, `model` itself where that is none."""
    c = run.configuration
    started = time.perf_counter()
    ratio = c.pruning_ratio(progress)
    smaller = prune_to_ratio(
        model,
        ratio=ratio,
        original=original,
        input_shape=run.task.input_shape,
        target=c.pruning_target,
        importance=c.pruning_importance,
        gradients=lambda model: _gradients(run, model),
    )
    if smaller is not model:
        recalibrate_batchnorm(smaller, run.task)
        metrics = run.network_metrics(smaller) | {"pruning_ratio": ratio}
        run.stages.append(StageResult("prune", time.perf_counter() - started, metrics))
    return smaller


def _masked(run: Run, model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Set to zero, in place, the weights that the schedule has taken by now; return the masks of all that stay."""
    c = run.configuration
    started = time.perf_counter()
    asked = [{"sparsity": sparsity}] if sparsity > 0 else []
    asked += [{"threshold": c.sparsity_threshold}] if c.sparsity_threshold > 0 else []
    masks: dict[str, Tensor] = {}
    for request in asked:
        found = magnitude_masks(model, **request)
        masks = {name: mask & masks.get(name, mask) for name, mask in found.items()}
    apply_masks(model, masks)
    if masks:
        recalibrate_batchnorm(model, run.task)
        metrics = run.network_metrics(model) | {"sparsity": removed_share(masks)}
        run.stages.append(StageResult("sparsify", time.perf_counter() - started, metrics))
    return masks


def _gradients(run: Run, model: nn.Module) -> Iterator[None]:
    """Leave the gradients of the loss of logits in the parameters, one mini-batch after the other."""
    data, objective = run.training_data, run.objective(features=False)
    batch_at = data.epoch(0)
    stride = max(1, len(data.labels) // GRADIENT_INPUTS)
    chosen = torch.arange(0, len(data.labels), stride, device=data.labels.device)
    c = run.configuration
    temperature = run.policy("temperature", c.temperature, epochs=run.distill_epochs)(1.0)
    for indices in torch.split(chosen, GRADIENT_BATCH):
        model.zero_grad(set_to_none=True)
        with eval_mode(model):
            inputs, teaching = batch_at(indices)
            loss = objective(model, inputs, teaching, data.labels[indices], temperature=temperature)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        yield


def deploy(run: Run) -> Generator[EpochReport, None, Deployed]:
    """Fold and, where asked for, quantize the network; what comes out is what runs on the device.

    A student that loses more than QUANTIZATION_LOSS by int8 is fine-tuned in simulated int8, with BatchNorm folded,
    and the better of the two on validation data is deployed. `run.model` stays the float network from before it, whose
    weights are saved; the ONNX file holds what is deployed. details["quantization_aware"] says which it is: if the
    tuned one, its float weights are in `run.tuned`.
    """
    started = time.perf_counter()
    network, c = run.deployable(), run.configuration
    if c.quantize == "none":
        run.validate(network)
        return network
    lowered = require_int8(network)
    calibration = calibration_inputs(run.task)
    quantized = quantize(lowered, calibration)
    before = run.validate(quantized)
    metrics = {
        "val_accuracy": before,
        "model_bytes": quantized.stored_bytes,
        "float_bytes": lowered.stored_bytes,
    }
    lost = run.stages[-1].metrics["val_accuracy"] - before
    run.stages.append(StageResult("quantize", time.perf_counter() - started, metrics))
    if lost <= QUANTIZATION_LOSS or c.quantization_epochs == 0:
        return quantized
    tuned = FakeQuantized(lowered, quantized.activations)
    run.model, float_model = tuned.to(run.device), run.model
    yield from run.train("quantization_aware", c.quantization_epochs, None, scale=QUANTIZATION_SCALE, features=False)
    run.model = float_model
    better = quantize(tuned.lowered(), calibration)
    run.details["quantization_aware"] = run.validate(better) >= before
    if run.details["quantization_aware"]:
        run.tuned = tuned.lowered()
        return better
    run.validate(quantized)
    return quantized


def calibration_inputs(task: Task) -> Tensor:
    """Return the training inputs that the ranges of int8 are fitted to: one in so many, CALIBRATION_INPUTS or more."""
    return task.train.inputs[:: max(1, len(task.train) // CALIBRATION_INPUTS)]


def measure(run: Run, deployed: Deployed, *, read_test: bool) -> dict[str, float]:
    """Return the metrics of the deployed network, whose validation logits the run holds.

    Raises TrialFailure("diverged") if one of them is not finite.
    """
    validation, logits = run.task.validation, run.validation_logits
    if not bool(logits.isfinite().all()):  # the last step may have blown up after the last finite loss
        raise TrialFailure("diverged", "a logit of the trained network is not finite")
    metrics: dict[str, float] = {
        "val_accuracy": accuracy(logits, validation.labels),
        "val_balanced_accuracy": balanced_accuracy(logits, validation.labels, run.task.classes),
        "val_ece": expected_calibration_error(logits, validation.labels),
        "parameters": count_parameters(run.model),
        "macs": count_macs(run.model, run.task.input_shape),
        "model_bytes": deployed.stored_bytes,
        "train_seconds": sum(epoch.seconds for epoch in run.curve),
    }
    if run.teacher is not None:
        metrics["teacher_agreement"] = agreement(logits, run.teacher.logits["validation"])
    if read_test:
        test_logits = predict(deployed, run.task.test.inputs, device=run.device)
        metrics["test_accuracy"] = accuracy(test_logits, run.task.test.labels)
    return metrics
