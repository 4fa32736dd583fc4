"""The job that both sides of the throughput benchmark do: twelve students of one teacher, on the same images.

A job's folder holds what both read: `job.json`, `teacher.pt` (its weights), `FashionMNIST/raw/` (the four files,
extracted, as torchvision wants them), `train.npy` and `validation.npy` (which of torchvision's 60,000 are used).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST

from metasearch.folders import cache_folder
from metasearch.models import NetworkSpec, build_network
from metasearch.records import Config
from metasearch.tasks import Split, Task, TaskSource, load_task
from metasearch.teachers import train_teacher
from tests.repository import SHARED

TEACHER = NetworkSpec("convnet", width=24, depth=6)
SEED = 0

# depth, width, batch size, optimizer, peak learning rate, temperature, alpha; 0.3 to 3 M MACs, 1.6 M in the mean
STUDENTS: list[tuple[int, int, int, str, float, float, float]] = [
    (2, 8, 64, "adamw", 0.010, 4.0, 0.9),
    (3, 20, 128, "adamw", 0.005, 2.0, 0.7),
    (2, 16, 64, "sgd", 0.100, 3.0, 0.5),
    (4, 12, 128, "adamw", 0.010, 6.0, 0.9),
    (3, 8, 64, "adamw", 0.010, 4.0, 0.7),
    (5, 10, 64, "sgd", 0.050, 4.0, 0.9),
    (3, 12, 128, "sgd", 0.100, 2.0, 0.9),
    (2, 24, 64, "adamw", 0.005, 4.0, 0.5),
    (4, 8, 64, "adamw", 0.005, 3.0, 0.8),
    (3, 18, 64, "sgd", 0.050, 5.0, 0.9),
    (5, 9, 128, "adamw", 0.010, 4.0, 0.6),
    (3, 16, 64, "adamw", 0.005, 4.0, 0.9),
]


@dataclass(frozen=True)
class Job:
    """What is to be run. source: fields of a TaskSource. mean, std: of the images' pixels in [0, 1]."""

    source: dict[str, Any]
    configs: list[Config]
    mean: float
    std: float

    def save(self, folder: Path) -> None:
        """Write the job into its folder."""
        (folder / "job.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read a folder's job."""
        return cls(**json.loads((folder / "job.json").read_text(encoding="utf-8")))


def configurations(*, epochs: int, count: int) -> list[Config]:
    """Return the first `count` configurations: distillation alone, nothing pruned, nothing quantized."""
    return [
        {
            "student.family": "convnet",
            "student.depth": depth,
            "student.width": width,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "learning_rate.kind": "one_cycle",
            "learning_rate.peak": peak,
            "temperature": temperature,
            "alpha": alpha,
            "epochs": epochs,
            "fine_tune_epochs": 0,
            "pruning_ratio": 0.0,
            "quantize": "none",
        }
        for depth, width, batch_size, optimizer, peak, temperature, alpha in STUDENTS[:count]
    ]


def data_root() -> Path | None:
    """Return where Fashion-MNIST lies (METASEARCH_DATA, else shared/data beside the repository), None for nowhere."""
    root = Path(os.environ.get("METASEARCH_DATA") or SHARED / "data")
    return root if (root / "FashionMNIST" / "raw").is_dir() else None


def prepare_job(folder: Path, *, root: Path, images: int, epochs: int, count: int, trained: bool) -> tuple[Job, Task]:
    """Write a job of `count` configurations on `images` train images into its folder; return it and its task.

    trained: whether the teacher is trained, which takes minutes the first time, or as it was initialised.
    """
    source = TaskSource("fashion_mnist", data_root=str(root), max_train=images, seed=SEED).absolute()
    task = load_task(source)
    torch.save(_teacher_weights(task, trained=trained), folder / "teacher.pt")
    _extract(root / "FashionMNIST" / "raw", folder / "FashionMNIST" / "raw")
    dataset = FashionMNIST(str(folder), train=True)
    for name, split in (("train", task.train), ("validation", task.validation)):
        np.save(folder / f"{name}.npy", _positions(split, dataset))
    scale, shift = task.normalisation.scale[0], task.normalisation.shift[0]
    job = Job(
        vars(source), configurations(epochs=epochs, count=count), mean=-shift / scale / 255, std=1 / (255 * scale)
    )
    job.save(folder)
    return job, task


def load_teacher(folder: Path, task: Task) -> nn.Module:
    """Return the job's teacher in eval mode."""
    model = build_network(TEACHER, input_shape=task.input_shape, classes=task.classes, seed=SEED)
    model.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
    return model.eval()


def _teacher_weights(task: Task, *, trained: bool) -> dict[str, Tensor]:
    """Return the weights of our default teacher, trained once by our recipe: they stay in the cache."""
    if not trained:
        return build_network(TEACHER, input_shape=task.input_shape, classes=task.classes, seed=SEED).state_dict()
    path = cache_folder() / "bench" / f"{task.fingerprint[:16]}-{TEACHER.width}-{TEACHER.depth}.pt"
    if not path.exists():
        print(f"training the teacher {TEACHER} once, into {path} ...", flush=True)
        model = train_teacher(task, TEACHER, seed=SEED, device=torch.device("cpu"))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(model.state_dict(), temporary)
        os.replace(temporary, path)
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights


def _extract(packed: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in packed.iterdir():
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as source, (folder / path.name.removesuffix(".gz")).open("wb") as target:
            shutil.copyfileobj(source, target)


def _positions(split: Split, dataset: FashionMNIST) -> np.ndarray:
    """Return where each image of ours stands in torchvision's data set, (N,) int64; each place is used once."""
    places: defaultdict[tuple[bytes, int], list[int]] = defaultdict(list)
    for place, (image, label) in enumerate(zip(dataset.data.numpy(), dataset.targets.tolist(), strict=True)):
        places[image.tobytes(), label].append(place)
    images = split.inputs.numpy()
    return np.array(
        [places[image.tobytes(), label].pop() for image, label in zip(images, split.labels.tolist(), strict=True)]
    )
