"""What is measured of a network: accuracy, calibration, agreement, parameters, MACs and latency.

Symbols: B examples, K classes; logits (B, K), any float dtype; labels (B,), int64, in [0, K).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of examples whose largest logit is the label's, in [0, 1]."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def balanced_accuracy(logits: Tensor, labels: Tensor, classes: int) -> float:
    """Return the mean over the classes present in `labels` of each one's recall, in [0, 1].

    Brodersen et al. (2010), section III; classes without an example have no recall and are left out.
    """
    correct = (logits.argmax(dim=1) == labels).double()
    total = torch.bincount(labels, minlength=classes)
    recall = torch.bincount(labels, weights=correct, minlength=classes) / total
    return float(recall[total > 0].mean())


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of Guo et al. (2017), section 2, in [0, 1].

    sum over bins m of |B_m| / B * |accuracy(B_m) - confidence(B_m)|, where B_m holds the examples whose largest
    probability lies in ((m - 1) / bins, m / bins].
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bin_of = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = (predicted == labels).double() - confidence
    return float(torch.bincount(bin_of, weights=gap, minlength=bins).abs().sum() / len(labels))


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Return the share of examples to which two networks give the same class, in [0, 1]."""
    return float((logits_a.argmax(dim=1) == logits_b.argmax(dim=1)).double().mean())


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters (statistics of BatchNorm are none)."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of convolutions and matrix products for one input; the model is left as it was.

    input_shape: of one normalised input, (C, H, W) or (F,). Half of what torch's FlopCounterMode counts.
    """
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return int(counter.get_total_flops()) // 2


def predict(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Return the logits (B, K) of all inputs, on the CPU, computed in batches without gradients.

    network: anything that maps inputs to logits; a module is put in eval mode for the time being. prepare: applied to
    each batch first, such as a task's normalisation. device: where each batch is sent; None leaves it where it is.
    """
    with eval_mode(network), torch.inference_mode():
        logits = []
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            on_device = batch if device is None else batch.to(device)
            logits.append(network(on_device if prepare is None else prepare(on_device)).cpu())
        return torch.cat(logits)


@contextmanager
def eval_mode(network: object) -> Iterator[None]:
    """Put every layer of a module in eval mode, and give each its own mode back; leave other objects alone."""
    training = [layer for layer in network.modules() if layer.training] if isinstance(network, nn.Module) else []
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


def latency_ms(
    onnx_path: str | os.PathLike[str],
    example: np.ndarray,
    *,
    warmup: int = 20,
    repeats: int = 200,
) -> tuple[float, float]:
    """Return the median and the interquartile range of one run's time, in milliseconds of the thread's CPU time.

    onnxruntime with one intra-op thread, run in the caller's: time in which other processes held the core does not
    count. example: the inputs at rest of one run, (1, C, H, W) uint8 or (1, F) float32.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(os.fspath(onnx_path), options, providers=["CPUExecutionProvider"])
    feed = {"input": example}
    seconds = []
    for _ in range(warmup + repeats):
        start = time.thread_time()
        session.run(None, feed)
        seconds.append(time.thread_time() - start)
    low, median, high = np.percentile(seconds[warmup:], [25, 50, 75]) * 1000
    return float(median), float(high - low)
