"""Files of teachers in the cache, named by their content.

Task fingerprint, normalisation, augmentation, spelling, the digest of every file behind it, seed, recipe and torch
version make a file's name, so that a changed task, checkpoint or program never meets an old teacher. A file appears
whole or not at all; one that was damaged since is made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metasearch.errors import StorageError
from metasearch.folders import cache_folder
from metasearch.models.weights import write_tensors
from metasearch.tasks import Task
from metasearch.tasks.sources import import_function
from metasearch.teachers import recipe
from metasearch.teachers.networks import is_function
from metasearch.teachers.onnx_file import files_of
from metasearch.teachers.source import OWN, TeacherMember

Saved = tuple[dict[str, Tensor], dict[str, int | None]]
"""What one cache file holds: tensors by name, and counts."""


def cache_path(task: Task, member: TeacherMember, *, seed: int, part: str = "") -> Path:
    """Return where what a member knows of a task is kept.

    task: with the member's normalisation. seed: of its training. part: what the file holds, "" for its logits.
    Raises NotFoundError where a function is not there.
    """
    parts = [
        task.fingerprint,
        str(task.normalisation),
        str(task.augmentation),
        Path(member.text).suffix if member.is_file else member.text,
        member.weights == OWN,
        [_digest(path) for path in _files(member)],
        seed if member.is_trained_here else 0,
        recipe.RECIPE,
        torch.__version__,
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return cache_folder() / "teachers" / f"{key}{part and '-'}{part}.safetensors"


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
        source = inspect.getsourcefile(import_function(member.text, place=member.place))
        files += [] if source is None else [Path(source)]
    return files


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
