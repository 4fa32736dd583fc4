"""Bundles of every family, float and int8, pruned, sparse and tuned in int8: whether each is the network of its trial.

Trained for a few epochs without a teacher: what is compared is the file with the network, not how good either is.
Compared on validation and test data together, 2,000 inputs of Fashion-MNIST and all of those of the digits.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from metasearch import stages
from metasearch.bundle.contents import MODEL, PROGRAM
from metasearch.bundle.parity import Parity, measured_parity, onnx_logits
from metasearch.bundle.program import open_program
from metasearch.bundle.runtime import open_bundle
from metasearch.bundle.writing import trained_network, write_bundle
from metasearch.measure import predict
from metasearch.tasks import Task, TaskSource, load_task
from tests.bench.job import data_root
from tests.bench.sides import Verdict, conditions, print_table
from tests.bundles import made_trial

IMAGES = 2000
SPARSE = {"sparsity": 0.8, "student.width": 24}
USERS = {"student.family": "tests.user_networks:smooth", "quantize": "none", "student.width": 6}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "convnet": {"quantize": "none"},
    "convnet int8 pruned": {"pruning_ratio": 0.5},
    "convnet int8 sparse": SPARSE,
    "convnet int8 tuned": {"quantization_epochs": 2},
    "resnet pruned": {"student.family": "resnet", "quantize": "none", "pruning_ratio": 0.4},
    "resnet int8": {"student.family": "resnet"},
    "mobilenet sparse": {"student.family": "mobilenet", "quantize": "none"} | SPARSE,
    "mobilenet int8 pruned": {"student.family": "mobilenet", "student.width": 16, "pruning_ratio": 0.3},
    "mlp": {"student.family": "mlp", "quantize": "none"},
    "mlp int8 pruned": {"student.family": "mlp", "pruning_ratio": 0.5},
    "a user's own, pruned": USERS | {"pruning_ratio": 0.3},
}
TUNED = "convnet int8 tuned"
BUDGET = {
    "student.width": 8,
    "student.depth": 3,
    "batch_size": 64,
    "epochs": 3,
    "fine_tune_epochs": 1,
    "learning_rate.kind": "one_cycle",
    "learning_rate.peak": 0.01,
}


def run(*, quick: bool) -> Verdict:
    """Write the bundles, compare them and print a table for each task."""
    root, before = data_root(), conditions()
    sources = [TaskSource("digits")]
    if root is not None:
        sources.append(TaskSource("fashion_mnist", data_root=str(root), max_train=2000))
    names = list(CONFIGURATIONS)[: 2 if quick else None]
    broken: list[str] = []
    for source in sources:
        task = load_task(source)
        rows = []
        for name in names:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                row, held = _row(name, task, Path(folder))
            rows.append(row)
            broken += [] if held else [f"{name} on {task.name}"]
        header = (
            "network", "accuracy", "bytes", "opset", "inputs", "largest difference", "class of the trial's", "of float's",
            ".pt2's difference", "export s",
        )  # fmt: skip
        print_table(f"Bundles on {task.name}", header, rows, [before, "classes and differences: of model.onnx; seed 0"])
    count = len(names) * len(sources)
    text = f"parity holds for {count - len(broken)} of {count} bundles" + (f", not for {broken}" if broken else "")
    return Verdict("bundles", None if quick else not broken, text)


def _row(name: str, task: Task, folder: Path) -> tuple[tuple[str, ...], bool]:
    """Return a line of the table, and whether parity holds on all inputs that are compared."""
    lost = -1.0 if name == TUNED else stages.QUANTIZATION_LOSS  # as if int8 had cost that much
    with mock.patch.object(stages, "QUANTIZATION_LOSS", lost):
        chosen, files, _ = made_trial(folder, BUDGET | CONFIGURATIONS[name], task=task)
    if name == TUNED and not chosen.result.details.get("quantization_aware"):
        name += " (was no better)"
    started = time.perf_counter()
    bundle = open_bundle(write_bundle(chosen, files, task, folder / "bundle").folder).bundle
    seconds = time.perf_counter() - started
    inputs = torch.cat([task.validation.inputs, task.test.inputs])[:IMAGES]
    labels = torch.cat([task.validation.labels, task.test.labels])[:IMAGES]
    network, in_float = trained_network(chosen, files, task)
    reference, float_logits = predict(network, inputs), predict(in_float, inputs)

    def parity(logits: torch.Tensor) -> Parity:
        return measured_parity(logits, reference, labels, int8=bundle.int8, in_float=float_logits)

    deployed = parity(onnx_logits(bundle.path(MODEL), inputs))
    program = parity(predict(open_program(bundle.path(PROGRAM)), inputs))
    row = (
        name,
        f"{deployed.val_accuracy:.4f}",
        f"{bundle.metrics['model_bytes']:,.0f}",
        str(bundle.opset),
        f"{deployed.images:,}",
        f"{deployed.largest_difference:.1e}",
        f"{deployed.top1_agreement:.2%}",
        f"{deployed.float_agreement:.2%}" if bundle.int8 else "",
        f"{program.largest_difference:.1e}",
        f"{seconds:.1f}",
    )
    return row, all(found.breach(int8=bundle.int8) is None for found in (deployed, program))
