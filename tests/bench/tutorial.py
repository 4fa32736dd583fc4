"""Distillation under Ray Tune as the tutorials teach it: what a careful user writes without metasearch.

After "How to use Tune with PyTorch" (docs.ray.io) and PyTorch's "Knowledge Distillation Tutorial": torchvision's data
set and transforms in a DataLoader, the teacher's forward pass under no_grad in every batch, OneCycleLR, a function
trainable that reports every epoch. Only the student and teacher networks are metasearch's own.

Started by `throughput.run` as `python -m tests.bench.tutorial JOB_FOLDER LOADER_WORKERS EPOCHS INDEX,... RESULT_FILE`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from metasearch.models import NetworkSpec, build_network
from tests.bench.job import SEED, TEACHER, Job
from tests.bench.sides import SLOTS, start_ray

SHAPE, CLASSES = (1, 28, 28), 10


def data_loaders(
    folder: Path, job: Job, *, batch_size: int, workers: int
) -> tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]:
    """Return the loaders of the train and the validation images."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((job.mean,), (job.std,))])
    dataset = datasets.FashionMNIST(str(folder), train=True, transform=transform)
    train_set, validation_set = (
        Subset(dataset, np.load(folder / f"{n}.npy").tolist()) for n in ("train", "validation")
    )
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers)
    return train_loader, DataLoader(validation_set, batch_size=batch_size, num_workers=workers)


def make_optimizer(student: nn.Module, config: dict[str, Any]) -> optim.Optimizer:
    """Return the configuration's optimizer."""
    rate, decay, momentum = config["learning_rate.peak"], config["weight_decay"], config["momentum"]
    if config["optimizer"] == "sgd":
        return optim.SGD(student.parameters(), lr=rate, momentum=momentum, nesterov=True, weight_decay=decay)
    return optim.AdamW(student.parameters(), lr=rate, betas=(momentum, 0.999), weight_decay=decay)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, config: dict[str, Any]) -> Tensor:
    """Return the weighted sum of the soft targets' loss and the labels' cross-entropy."""
    temperature, alpha = config["temperature"], config["alpha"]
    soft_targets = functional.softmax(teacher_logits / temperature, dim=-1)
    soft_probabilities = functional.log_softmax(student_logits / temperature, dim=-1)
    soft_loss = functional.kl_div(soft_probabilities, soft_targets, reduction="batchmean") * temperature**2
    loss: Tensor = alpha * soft_loss + (1 - alpha) * functional.cross_entropy(student_logits, labels)
    return loss


def validation_accuracy(student: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Return the share of the validation images that the student gets right."""
    student.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += (student(images).argmax(dim=1) == labels).sum().item()
            total += len(labels)
    return correct / total


def train_student(config: dict[str, Any], folder: Path, loader_workers: int) -> None:
    """Distil one student; report its validation accuracy after every epoch."""
    config = config["configuration"]
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    train_loader, validation_loader = data_loaders(
        folder, Job.load(folder), batch_size=config["batch_size"], workers=loader_workers
    )
    teacher = build_network(TEACHER, input_shape=SHAPE, classes=CLASSES, seed=SEED)
    teacher.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
    teacher.eval()
    spec = NetworkSpec("convnet", width=config["student.width"], depth=config["student.depth"])
    student = build_network(spec, input_shape=SHAPE, classes=CLASSES, seed=SEED)
    optimizer = make_optimizer(student, config)
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config["learning_rate.peak"],
        epochs=config["epochs"],
        steps_per_epoch=len(train_loader),
        cycle_momentum=False,
    )
    for _ in range(config["epochs"]):
        student.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(images)
            loss = distillation_loss(student(images), teacher_logits, labels, config)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            scheduler.step()
        tune.report({"val_accuracy": validation_accuracy(student, validation_loader)})


def main() -> None:
    """Run the configurations of a job that the command line names; write the seconds and the accuracies."""
    folder, loader_workers, epochs, indices, result_file = sys.argv[1:]
    job = Job.load(Path(folder))
    configurations = [job.configs[int(index)] | {"epochs": int(epochs)} for index in indices.split(",")]
    start_ray()
    trainable = tune.with_parameters(train_student, folder=Path(folder), loader_workers=int(loader_workers))
    with tempfile.TemporaryDirectory(prefix="bench-") as results_folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"configuration": tune.grid_search(configurations)},
            tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", max_concurrent_trials=SLOTS),
            run_config=tune.RunConfig(storage_path=results_folder),
        )
        started = time.time()
        results = tuner.fit()
        seconds = time.time() - started
        if results.errors:
            raise results.errors[0]
        accuracies = [result.metrics["val_accuracy"] for result in results]
    measured = {"seconds": seconds, "val_accuracies": accuracies}
    Path(result_file).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
