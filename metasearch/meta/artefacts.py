"""What meta-training leaves in a file: a student's weights as `models.weights` writes them, and the meta-parameters.

    the network's tensors     the initialisation for the task that the file names: `load_weights` reads it
    meta:NAME                 the meta-parameters, from which it is made for any other task, or trained on
    metadata `meta`           JSON: method, student, settings, family, its domains, fingerprint, held-out gain

Files made once per family and student lie in the cache under the digest of all that they depend on. Like every weights
file they are safetensors, which hold numbers and nothing that could run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.errors import InputError, StorageError
from metasearch.folders import cache_folder
from metasearch.initial import SourceNetwork
from metasearch.meta.functional import FunctionalNetwork
from metasearch.meta.method import Inner, Method, Support, classification_loss
from metasearch.meta.methods import METHODS
from metasearch.models import NetworkSpec, build_network
from metasearch.models.weights import BESIDE, META, read_tensors, save_weights
from metasearch.tasks import Task
from metasearch.tasks.domains import DomainSplit

VERSION = 2
"""Part of every digest: changes with what meta-training computes."""
STUDENT_SHOTS = 20
"""The most examples of a class from which a student is initialised; BatchNorm's statistics gain little from more."""


@dataclass(frozen=True, eq=False)
class Artefact:
    """A meta-learned initialisation, read from a file. record: what its metadata say."""

    path: Path
    method: Method
    meta: dict[str, Tensor]
    spec: NetworkSpec
    input_shape: tuple[int, ...]
    record: Mapping[str, Any]

    def student_for(self, task: Task, *, seed: int = 0) -> nn.Module:
        """Return a student of the task's classes with the weights that the method proposes for it, on the CPU.

        seed: of the training examples that it looks at. Raises InputError for a task of another input shape.
        """
        if task.input_shape != self.input_shape:
            rule = f"was meta-trained for inputs of shape {self.input_shape}; task {task.name} has others"
            raise InputError(str(self.path), rule, f"shape={task.input_shape}")
        support = support_from(task, shots=STUDENT_SHOTS, seed=seed)
        student = build_network(self.spec, input_shape=task.input_shape, classes=task.classes, seed=seed)
        student.load_state_dict(self.method.initialisation(self.meta, support))
        return student


def support_from(task: Task, *, shots: int, seed: int) -> Support:
    """Return at most so many training examples of each class, drawn by the seed, normalised.

    Raises InputError where a class has none.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.train), generator=generator)
    of_class = [order[task.train.labels[order] == label][:shots] for label in range(task.classes)]
    if missing := [name for name, rows in zip(task.class_names, of_class, strict=True) if len(rows) == 0]:
        raise InputError(f"task {task.name}", "must have a training example of every class", missing[0])
    rows = torch.cat(of_class)
    return Support(task.normalisation(task.train.inputs[rows]), task.train.labels[rows], task.classes)


def bound_method(
    name: str,
    spec: NetworkSpec,
    *,
    input_shape: tuple[int, ...],
    ways: int,
    inner: Inner,
    alpha: float = 0.0,
    temperature: float = 4.0,
    seed: int = 0,
) -> Method:
    """Return a method of METHODS bound to the student's network, with a head of `ways` classes."""
    network = build_network(spec, input_shape=input_shape, classes=ways, seed=seed)
    loss = classification_loss(temperature=temperature, alpha=alpha)
    return METHODS[name](FunctionalNetwork.of(network), inner, loss)


def family_digest(domains: DomainSplit) -> str:
    """Return the digest of every domain's data and of the part that it plays."""
    parts = {part: sorted(d.fingerprint for d in getattr(domains, part)) for part in ("train", "validation", "test")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_digest(path: str) -> str:
    """Return the digest of a file that training goes on from."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def require_counts(request: object, names: Sequence[str]) -> None:
    """Raise InputError, naming the flag, for a count of a request that is below 1."""
    for name in names:
        if getattr(request, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}", "must be at least 1", getattr(request, name))


def artefact_path(method: str, described: Mapping[str, Any]) -> Path:
    """Return where in the cache the artefact lies that depends on these things, JSON-ready, and on nothing else."""
    digest = hashlib.sha256(json.dumps([VERSION, method, described], sort_keys=True).encode()).hexdigest()
    return cache_folder() / "meta" / f"{method}-{digest[:32]}.safetensors"


def write_artefact(
    path: Path, method: Method, meta: Mapping[str, Tensor], *, spec: NetworkSpec, task: Task, record: Mapping[str, Any]
) -> None:
    """Write an artefact, its network initialised for `task`. record: method, ways, inner loop and more, JSON-ready.

    Raises StorageError where it cannot be written.
    """
    support = support_from(task, shots=STUDENT_SHOTS, seed=0)
    student = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
    student.load_state_dict(method.initialisation(dict(meta), support))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(student, path, spec=spec, task=task, beside=meta, meta={**record, "task": task.name})
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})") from error


def read_artefact(path: Path, *, methods: Sequence[str] = tuple(METHODS)) -> Artefact:
    """Return what `write_artefact` wrote.

    Raises as `read_tensors` does; InputError if it is not one of meta-train's, of another method, or its
    meta-parameters are of other shapes.
    """
    record, described, meta = _read(path)
    name = record.get("method")
    if name not in methods:
        raise InputError(str(path), f"must be of method {' or '.join(methods)}", name)
    spec = NetworkSpec.parse(described["spec"], place=str(path))
    shape = tuple(described["input_shape"])
    method = bound_method(
        str(name),
        spec,
        input_shape=shape,
        ways=record["ways"],
        inner=Inner(record["inner_steps"], record["inner_lr"]),
    )
    for key, expected in method.initial().items():
        got = tuple(meta[key].shape) if key in meta else None
        if got != tuple(expected.shape):
            raise InputError(str(path), f"{key}: must have shape {tuple(expected.shape)}", f"shape={got}")
    return Artefact(path, method, {key: meta[key] for key in method.initial()}, spec, shape, record)


def proposed_for(task: Task, source: SourceNetwork, path: Path) -> SourceNetwork:
    """Return the source of a student's weights as its method proposes it for the task at hand.

    source: what `initial.load_source` read in the same file, proposed for another task; it is returned as it is where
    the file holds no meta-parameters.
    """
    if not any(name.startswith(BESIDE) for name in read_tensors(path)[1]):
        return source
    return replace(source, model=read_artefact(path).student_for(task))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Return the record of a file, the description of its network, and the meta-parameters."""
    noted, tensors = read_tensors(path)
    record, described = noted.get(META), noted.get("network")
    if not isinstance(record, dict):
        raise InputError(str(path), "must be a file of meta-train: it says nothing of a method")
    meta = {name.removeprefix(BESIDE): tensor for name, tensor in tensors.items() if name.startswith(BESIDE)}
    return record, described if isinstance(described, dict) else {}, meta
