"""The file that a trial leaves behind is the network that it measured: checked in a fresh process by onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from metasearch.export import onnx_tensor_bytes
from metasearch.models import NetworkSpec
from metasearch.models.module_network import deployable, require_int8
from metasearch.models.weights import load_weights
from metasearch.pipeline import ONNX_FILE, WEIGHTS_FILE, run_pipeline
from metasearch.quantize import quantize
from metasearch.records import Config
from metasearch.stages import CALIBRATION_INPUTS
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import teacher_for

QUICK: Config = {
    "epochs": 3,
    "fine_tune_epochs": 1,
    "batch_size": 64,
    "learning_rate.kind": "one_cycle",
    "learning_rate.peak": 0.01,
}
CONFIGURATIONS: list[Config] = [
    {"student.width": 4, "student.depth": 2, "learning_rate.peak": 0.02},
    {"student.width": 12, "student.depth": 5, "learning_rate.peak": 0.01, "pruning_ratio": 0.5},
    {"student.width": 8, "student.depth": 3, "learning_rate.peak": 0.05, "optimizer": "sgd", "quantize": "none"},
    {"student.width": 6, "student.family": "mlp", "student.depth": 2, "learning_rate.peak": 0.01},
    {"student.width": 8, "student.family": "mlp", "learning_rate.peak": 0.01, "pruning_ratio": 0.4},
    {
        "student.width.kind": "linear",
        "student.width.start": 12,
        "student.width.end": 6,
        "learning_rate.peak": 0.01,
        "pruning_ratio.kind": "cubic",
        "pruning_ratio.final": 0.2,
    },
    {"student.width": 4, "student.family": "resnet", "student.depth": 2, "learning_rate.peak": 0.02},
    {"student.width": 6, "student.family": "resnet", "student.depth": 3, "pruning_ratio": 0.5},
    {"student.width": 4, "student.family": "resnet", "student.depth": 1, "pruning_ratio": 0.3, "quantize": "none"},
    {"student.width": 8, "student.family": "mobilenet", "student.depth": 3, "learning_rate.peak": 0.02},
    {"student.width": 12, "student.family": "mobilenet", "student.depth": 4, "pruning_ratio": 0.5},
    {"student.width": 8, "student.family": "mobilenet", "student.depth": 2, "quantize": "none"},
    {
        "student.width": 4,
        "student.family": "tests.user_networks:smooth",
        "student.depth": 1,
        "pruning_ratio": 0.4,
        "quantize": "none",
    },
]
IN_A_FRESH_PROCESS = """
import sys
import numpy as np
import onnxruntime
inputs, *files = sys.argv[1:]
for file in files:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    np.save(file + ".npy", session.run(["logits"], {"input": np.load(inputs)})[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("source", "image_size"), [("usps", None), ("npz", 20)])  # 16x16 grey; RGB
def test_the_onnx_file_is_the_network_that_the_trial_measured(
    source: str, image_size: int | None, shared_data: Path, tmp_path: Path
) -> None:
    bangla = shared_data / "CMATERdb" / "bangla-numerals"
    text = source if source == "usps" else f"npz:{bangla / 'training-images.npz'},{bangla / 'testing-images.npz'}"
    task = load_task(TaskSource(text, data_root=str(shared_data), max_train=1500, image_size=image_size))
    teacher = teacher_for(task, NetworkSpec("convnet", width=8, depth=3))
    folders = [tmp_path / str(index) for index in range(len(CONFIGURATIONS))]
    results = [
        run_pipeline(task, QUICK | changes, teacher=teacher, seed=index, save_to=folder)
        for index, (changes, folder) in enumerate(zip(CONFIGURATIONS, folders, strict=True))
    ]
    files = [folder / ONNX_FILE for folder in folders]
    fresh = _run_fresh(files, task.validation.inputs.numpy(), tmp_path)
    labels = task.validation.labels.numpy()
    for changes, result, onnx_file, logits in zip(CONFIGURATIONS, results, files, fresh, strict=True):
        assert onnx_tensor_bytes(onnx_file) == pytest.approx(result.metrics["model_bytes"], rel=0.01)
        accuracy = float((logits.argmax(1) == labels).mean())
        assert accuracy == pytest.approx(result.metrics["val_accuracy"], abs=0.003)
        recomputed = _deployed_logits(
            onnx_file.parent / WEIGHTS_FILE, task, quantized=changes.get("quantize") != "none"
        )
        assert (logits.argmax(1) == recomputed.argmax(1)).mean() >= 0.995
        content = onnx_file.read_bytes()
        assert all(part not in content for part in (str(tmp_path).encode(), str(Path.home()).encode() + b"/"))


def _run_fresh(onnx_files: Sequence[Path], inputs: np.ndarray, folder: Path) -> list[np.ndarray]:
    np.save(folder / "inputs.npy", inputs)
    arguments = [str(folder / "inputs.npy"), *map(str, onnx_files)]
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments], check=True, env=dict(os.environ))
    return [np.load(f"{onnx_file}.npy") for onnx_file in onnx_files]


def _deployed_logits(weights: Path, task: Task, *, quantized: bool) -> np.ndarray:
    """Build the trial's deployed network again from its weights, as the pipeline does."""
    network = deployable(
        load_weights(weights, family="tests.user_networks:smooth"),
        normalisation=task.normalisation,
        input_shape=task.input_shape,
    )
    with torch.inference_mode():
        if not quantized:
            return network(task.validation.inputs).numpy()
        calibration = task.train.inputs[:: max(1, len(task.train) // CALIBRATION_INPUTS)]
        return quantize(require_int8(network), calibration)(task.validation.inputs).numpy()
