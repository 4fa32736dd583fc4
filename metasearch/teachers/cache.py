"""Files of teachers in the cache, named by their content.

Task fingerprint, normalisation, augmentation, spelling, the digest of every file behind it, its architecture, seed,
recipe and torch version make a file's name, so that a changed task, checkpoint or program never meets an old teacher. A
file appears whole or not at all; one that was damaged since is made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasearch.errors import StorageError
from metasearch.folders import cache_folder
from metasearch.functions import import_function
from metasearch.models.weights import write_tensors
from metasearch.tasks import Task
from metasearch.teachers import recipe
from metasearch.teachers.networks import build_teacher, is_function
from metasearch.teachers.onnx_file import files_of
from metasearch.teachers.source import OWN, TeacherMember

Saved = tuple[dict[str, Tensor], dict[str, int | None]]
"""What one cache file holds: tensors by name, and counts."""


def cache_key(task: Task, member: TeacherMember, *, seed: int) -> str:
    """Return what tells this member, trained for this task, from every other one.

    A network is built once for it, so that a change in any file that its architecture comes from is noticed. task: with
    the member's normalisation. seed: of its training.
    Raises NotFoundError where a function is not there, InputError where it cannot build a network for the task.
    """
    parts = [
        task.fingerprint,
        str(task.normalisation),
        str(task.augmentation),
        Path(member.text).suffix if member.is_file else member.text,
        member.weights == OWN,
        [_digest(path) for path in _files(member)],
        None if member.is_file else _architecture(task, member, seed=seed),
        seed if member.is_trained_here else 0,
        recipe.RECIPE,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cache_path(key: str, *, part: str = "", found_by: Sequence[str] = ()) -> Path:
    """Return where what a member knows of a task is kept.

    key: of `cache_key`. part: what the file holds, "" for its logits. found_by: the rules, names and such by which its
    features are found, where the file holds features.
    """
    name = hashlib.sha256(json.dumps([key, *found_by]).encode()).hexdigest()[:32]
    return cache_folder() / "teachers" / f"{name}{part and '-'}{part}.safetensors"


def write_cache(path: Path, tensors: dict[str, Tensor], counts: Mapping[str, int | None]) -> Saved:
    """Write one cache file and return what it holds. Raises StorageError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, path, metadata={"counts": json.dumps(dict(counts))})
    except OSError as error:
        hint = "METASEARCH_HOME names another place"
        raise StorageError(f"{path.parent}: the teacher cannot be written ({error}); {hint}") from error
    return {name: tensor.cpu() for name, tensor in tensors.items()}, dict(counts)


def read_cache(path: Path) -> Saved | None:
    """Return what `write_cache` wrote; None where it is not there, or damaged and to be made again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads(file.metadata()["counts"])
    except SafetensorError:
        return None


def _files(member: TeacherMember) -> list[Path]:
    """Return every file that decides what the member is: its own, its weights, the source of its function."""
    files = [Path(member.weights)] if member.weights not in (None, OWN) else []
    if member.is_file:
        path = Path(member.text)
        files += files_of(path) if path.suffix == ".onnx" else [path]
    elif is_function(member.text):
        files += _sources(import_function(member.text, place=member.place))
    return files


def _architecture(task: Task, member: TeacherMember, *, seed: int) -> list[object]:
    """Return what the built network is: its layers, its shapes, the sources of its classes, and weights of its own."""
    network = build_teacher(member.text, input_shape=task.input_shape, classes=task.classes, seed=seed)
    state = {name: value.detach() for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    classes = {type(layer) for layer in network.modules()}
    sources = {path for kind in classes if not kind.__module__.startswith("torch.") for path in _sources(kind)}
    return [
        re.sub(r" at 0x[0-9a-f]+", "", str(network)),  # an address is another one in every process
        [(name, list(value.shape), str(value.dtype)) for name, value in state.items()],
        sorted(map(_digest, sources)),
        _digest_of(state) if member.weights == OWN else "",
    ]


def _sources(named: Callable[..., object]) -> list[Path]:
    """Return the file that defines a function or a class, none for a builtin, a partial or one typed in."""
    try:
        source = inspect.getsourcefile(named)
    except (TypeError, OSError):
        return []
    return [Path(source)] if source is not None and Path(source).is_file() else []


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
