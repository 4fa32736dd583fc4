"""Teachers: a wide network of ours trained once per task, kept with its logits on every split.

Symbols: N examples, C classes, V augmented views. The cache is by content: task fingerprint, normalisation,
augmentation, spec, seed, recipe and torch version make the file's name, so that a changed task or program never meets
an old teacher. A file appears whole or not at all; one that was damaged since is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from metasearch.distill import distillation_loss
from metasearch.errors import StorageError
from metasearch.folders import cache_folder
from metasearch.measure import accuracy, count_macs, count_parameters, expected_calibration_error, predict
from metasearch.models import NetworkSpec, build_network
from metasearch.models.weights import write_tensors
from metasearch.policies import Policy
from metasearch.records import EpochReport
from metasearch.tasks import Split, Task
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.training import Schedule, TrainingData, train

RECIPE = 1
"""Raised whenever the training below changes, so that cached teachers of the old recipe are not taken for new ones."""

VIEWS = 4
"""Augmented views of the train split whose teacher logits are kept for students trained with augmentation."""

Saved = tuple[dict[str, Tensor], dict[str, float]]
"""What one cache file holds: tensors by name, and metrics."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's knowledge of one task: logits, and how good it is.

    logits: `train` (1, N, C); `views` (V, N, C) on the augmented views, empty where none were asked for; `validation`
    and `test` (N, C). metrics: val_accuracy, test_accuracy, val_ece, parameters, macs. seed: of its training and of the
    views.
    """

    spec: str
    seed: int
    logits: Mapping[str, Tensor]
    metrics: Mapping[str, float]


def default_teacher(task: Task) -> NetworkSpec:
    """Return the spec of the teacher trained where none is named: wide enough to be worth learning from."""
    return NetworkSpec("convnet", width=24, depth=6) if task.is_image else NetworkSpec("mlp", width=64, depth=3)


def teacher_for(
    task: Task,
    spec: NetworkSpec | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    views: bool = False,
    progress: Callable[[EpochReport], None] | None = None,
) -> Teacher:
    """Return the task's teacher, trained now or read from the cache.

    views: whether logits on augmented views are needed. progress: called after every training epoch.
    """
    spec = spec or default_teacher(task)
    device = torch.device(device)
    path = cache_folder() / "teachers" / f"{_key(task, spec, seed)}.safetensors"
    tensors, metrics = _read(path) or _train_and_save(task, spec, path, seed=seed, device=device, progress=progress)
    logits = {name: tensors[f"logits.{name}"] for name in ("train", "validation", "test")}
    logits |= {"train": logits["train"][None], "views": torch.empty(0)}
    if views and task.augmentation:
        views_path = path.with_name(f"{path.stem}-views{VIEWS}.safetensors")
        kept = _read(views_path)
        if kept is None:
            model = _network(task, spec, tensors).to(device)
            stacked = torch.stack([_view_logits(model, task, view, seed=seed, device=device) for view in range(VIEWS)])
            kept = _save({"views": stacked}, views_path, {})
        logits |= kept[0]
    return Teacher(spec=str(spec), seed=seed, logits=logits, metrics=metrics)


def train_teacher(
    task: Task,
    spec: NetworkSpec,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[EpochReport], None] | None = None,
) -> nn.Module:
    """Return a network trained with labels alone, by AdamW under a one-cycle rate, with the task's augmentation.

    Long enough for 150,000 examples seen, within 10 to 30 epochs; no label smoothing, which makes a teacher's logits
    worth less to a student (Mueller et al. 2019, section 5).
    """
    epochs = min(max(round(150_000 / len(task.train)), 10), 30)
    schedule = Schedule(
        learning_rate=Policy("one_cycle", {"peak": 0.004}),
        temperature=Policy("constant", {"value": 1.0}),
        epochs=epochs,
        batch_size=min(128, max(16, len(task.train) // 20)),
        weight_decay=0.02,
    )
    model = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=seed).to(device)
    data = TrainingData.without_teacher(task, device=device, views=epochs if task.augmentation else 0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, report in train(model, data, loss=_cross_entropy, schedule=schedule, generator=generator, stage="teacher"):
        if progress is not None:
            progress(report)
    return model.eval()


def _cross_entropy(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return distillation_loss(student_logits, teacher_logits, labels, temperature=temperature, alpha=0.0)


def _key(task: Task, spec: NetworkSpec, seed: int) -> str:
    task_parts = [task.fingerprint, str(task.normalisation), str(task.augmentation)]
    parts = [*task_parts, str(spec), seed, RECIPE, torch.__version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _train_and_save(
    task: Task,
    spec: NetworkSpec,
    path: Path,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[EpochReport], None] | None,
) -> Saved:
    model = train_teacher(task, spec, seed=seed, device=device, progress=progress)
    tensors = {f"weights.{name}": value for name, value in model.state_dict().items()}
    for name in ("train", "validation", "test"):
        tensors[f"logits.{name}"] = _logits(model, task, getattr(task, name), device=device)
    validation, test = tensors["logits.validation"], tensors["logits.test"]
    metrics = {
        "val_accuracy": accuracy(validation, task.validation.labels),
        "test_accuracy": accuracy(test, task.test.labels),
        "val_ece": expected_calibration_error(validation, task.validation.labels),
        "parameters": count_parameters(model),
        "macs": count_macs(model, task.input_shape),
    }
    return _save(tensors, path, metrics)


def _logits(model: nn.Module, task: Task, split: Split, *, device: torch.device) -> Tensor:
    return predict(model, split.inputs, prepare=task.normalisation, device=device)


def _view_logits(model: nn.Module, task: Task, view: int, *, seed: int, device: torch.device) -> Tensor:
    choices = view_choices(task.augmentation, count=len(task.train), view=view, seed=seed)
    logits = [
        _logits(model, task, Split(apply_choices(task.train.inputs[part], choices[part]), part), device=device)
        for part in torch.split(torch.arange(len(task.train)), 4096)
    ]
    return torch.cat(logits)


def _network(task: Task, spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> nn.Module:
    model = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
    prefix = "weights."
    model.load_state_dict({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})
    return model.eval()


def _save(tensors: dict[str, Tensor], path: Path, metrics: dict[str, float]) -> Saved:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, path, metadata={"metrics": json.dumps(metrics)})
    except OSError as error:
        hint = "METASEARCH_HOME names another place"
        raise StorageError(f"{path.parent}: the teacher cannot be written ({error}); {hint}") from error
    return {name: tensor.cpu() for name, tensor in tensors.items()}, metrics


def _read(path: Path) -> Saved | None:
    """Return what `_save` wrote; None where it is not there, or damaged and to be made again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads(file.metadata()["metrics"])
    except SafetensorError:
        return None
