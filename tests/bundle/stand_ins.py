"""Bundles of small untrained networks, written by hand: everything but what a search would add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metasearch.bundle import predict
from metasearch.bundle.contents import CARD, MODEL, PROGRAM, SCRIPT, WEIGHTS, Bundle, write_document
from metasearch.bundle.program import write_program
from metasearch.bundle.schema import preprocessing_of
from metasearch.export import OPSET, write_onnx
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import lower
from metasearch.models.weights import save_weights
from metasearch.quantize import quantize
from metasearch.tasks import Task
from tests.synthetic import synthetic_task


def write_stand_in(
    folder: Path, *, shape: tuple[int, ...] = (1, 8, 8), family: str = "convnet", int8: bool = False, **changed: Any
) -> Bundle:
    """Write a bundle of the synthetic task's shape and classes into a new folder. changed: fields of bundle.json."""
    task = synthetic_task(shape=shape)
    spec = NetworkSpec.parse(f"{family}:width=8,depth=1", place="stand-in")
    model = build_network(spec, input_shape=shape, classes=task.classes, seed=0).eval()
    lowered = lower(model, normalisation=task.normalisation, input_shape=shape)
    deployed = quantize(lowered, task.train.inputs) if int8 else lowered
    folder.mkdir(parents=True)
    write_onnx(deployed, folder / MODEL, class_names=task.class_names)
    save_weights(model, folder / WEIGHTS, spec=spec, task=task)
    write_program(deployed, folder / PROGRAM)
    (folder / CARD).write_text("# A stand-in\n", encoding="utf-8")
    (folder / SCRIPT).write_bytes(Path(predict.__file__).read_bytes())
    return write_document(folder, **(described(task, int8=int8) | changed))


def described(task: Task, *, int8: bool) -> dict[str, Any]:
    """Return the fields of a bundle.json, with numbers that nothing has measured."""
    return {
        "name": "stand-in-trial-7",
        "class_names": list(task.class_names),
        "input_shape": list(task.input_shape),
        "int8": int8,
        "opset": OPSET,
        "normalisation": {"scale": list(task.normalisation.scale), "shift": list(task.normalisation.shift)},
        "preprocessing": preprocessing_of(task.input_shape),
        "config": {"student.width": 8, "quantize": "int8" if int8 else "none"},
        "seed": 3,
        "metrics": {"val_accuracy": 0.5, "model_bytes": 1234},
        "final": {"test_accuracy": 0.5, "test_std": None, "test_seeds": 1},
        "references": {},
        "stages": [{"stage": "distill", "metrics": {"val_accuracy": 0.5}}],
        "provenance": {
            "study": "stand-in",
            "trial": 7,
            "task": "digits",
            "task_options": {"max_train": 200, "seed": 0},
            "fingerprint": task.fingerprint,
            "space_digest": "0" * 64,
            "teacher": None,
            "commit": "",
            "versions": {"torch": torch.__version__},
            "created": "2026-01-01T00:00:00+00:00",
            "licence": None,
        },
        "parity": {
            "images": 60,
            "top1_agreement": 1.0,
            "largest_difference": 0.0,
            "tolerance": 1e-4,
            "val_accuracy": 0.5,
        }
        | ({"float_agreement": 1.0} if int8 else {}),
    }
