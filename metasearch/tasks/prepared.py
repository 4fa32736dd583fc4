"""Prepared tasks in the cache: .npy files that every process maps, and a task.json that describes them.

    cache_folder()/tasks/<key>/{train,validation,test}_{inputs,labels}.npy, task.json, and perhaps unlabelled_inputs.npy

A folder appears whole, by renaming, or not at all; two processes that prepare one task at once both succeed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metasearch.tasks.raw import Array
from metasearch.tasks.splits import SPLITS, Chosen
from metasearch.tasks.task import Normalisation, Split

FORMAT_VERSION = 1
CHUNK_BYTES = 32 * 2**20

UNLABELLED_FILE = "unlabelled_inputs.npy"

Transform = Callable[[Array], Array]
Moments = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds: all of a task but its name and augmentation."""

    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    normalisation: Normalisation
    fingerprint: str
    provenance: Mapping[str, Any]
    unlabelled: Tensor | None = None


def cache_key(text: str, options: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return the hex digest of a source's text, its options and the path, size and mtime of every file."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, text, options], sort_keys=True).encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def write_splits(folder: Path, chosen: Chosen, *, transform: Transform) -> dict[str, Split]:
    """Write the chosen positions of each split, transformed chunk by chunk, into `folder`; return them, memory-mapped.

    chosen: split name -> raw split and positions into it, in the order to be kept. transform: (n, ...) -> (n, ...).
    """
    for name, (raw, positions) in chosen.items():
        parts = (transform(raw.inputs[positions[part]]) for part in chunks(raw.inputs, len(positions)))
        _write_npy(folder / f"{name}_inputs.npy", parts, len(positions))
        np.save(folder / f"{name}_labels.npy", raw.labels[positions])
    return {name: _read_split(folder, name) for name in SPLITS}


def write_unlabelled(folder: Path, parts: Iterable[Array], count: int) -> Tensor:
    """Write `count` inputs at rest, which come in parts (n, ...), into `folder`; return them, memory-mapped."""
    _write_npy(folder / UNLABELLED_FILE, parts, count)
    return _read_array(folder / UNLABELLED_FILE)


def write_description(
    folder: Path,
    splits: Mapping[str, Split],
    *,
    unlabelled: Tensor | None,
    class_names: tuple[str, ...],
    provenance: Mapping[str, Any],
) -> None:
    """Write what is said of the arrays in `folder`, and of their making; the folder is whole with it."""
    normalisation = fit_normalisation(splits["train"])
    description = {
        "class_names": class_names,
        "scale": normalisation.scale,
        "shift": normalisation.shift,
        "fingerprint": fingerprint(splits, class_names, unlabelled),
        "provenance": provenance,
    }
    (folder / "task.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def read_prepared(folder: Path) -> Prepared | None:
    """Return what `write_description` made whole in `folder`, memory-mapped; None if it is not there or damaged."""
    try:
        description = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        return Prepared(
            splits={name: _read_split(folder, name) for name in SPLITS},
            class_names=tuple(description["class_names"]),
            normalisation=Normalisation(tuple(description["scale"]), tuple(description["shift"])),
            fingerprint=description["fingerprint"],
            provenance=description["provenance"],
            unlabelled=_read_array(folder / UNLABELLED_FILE) if "unlabelled" in description["provenance"] else None,
        )
    except (OSError, ValueError, KeyError):  # absent, cut short or edited: it is prepared again
        return None


def publish(temporary: Path, folder: Path) -> None:
    """Rename a finished temporary folder to `folder`; where another process was first, its work is kept."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if read_prepared(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)


def fingerprint(splits: Mapping[str, Split], class_names: tuple[str, ...], unlabelled: Tensor | None = None) -> str:
    """Return the sha256 hex digest over the shapes, types and bytes of all splits, and the class names.

    unlabelled: (M, ...); covered where given.
    """
    digest = hashlib.sha256(json.dumps(class_names).encode())
    tensors = [(name, tensor) for name in SPLITS for tensor in (splits[name].inputs, splits[name].labels)]
    for name, tensor in [*tensors, *([] if unlabelled is None else [("unlabelled", unlabelled)])]:
        values = tensor.numpy()
        digest.update(f"{name} {values.shape} {values.dtype.str}".encode())
        for part in chunks(values, len(values)):
            digest.update(np.ascontiguousarray(values[part]).data)
    return digest.hexdigest()


def fit_normalisation(train: Split) -> Normalisation:
    """Return the map to zero mean and unit variance over the train split, per channel of bytes or feature.

    scale = 1 / std, shift = -mean / std, in float64. A constant feature gets scale 1; a channel's std is taken as at
    least one grey level. Exact for bytes: moments come from the channel's histogram.
    """
    inputs = train.inputs.numpy()
    if inputs.ndim == 2:
        mean, std = inputs.mean(axis=0, dtype=np.float64), inputs.std(axis=0, dtype=np.float64)
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    else:
        mean, std = channel_moments(inputs)
        std = np.maximum(std, 1.0)
    return Normalisation(tuple((1 / std).tolist()), tuple((-mean / std).tolist()))


def channel_moments(images: Array) -> tuple[Moments, Moments]:
    """Return mean and standard deviation of each channel's bytes, (C,) each, exactly. images: (N, C, H, W) uint8."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for part in chunks(images, len(images)):
        chunk = images[part]
        counts += np.stack([np.bincount(chunk[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
    weights, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
    mean = weights @ levels
    return mean, np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))


def chunks(values: Array, count: int) -> Iterator[slice]:
    """Yield slices over `count` rows like those of `values`, of at most about CHUNK_BYTES each."""
    row_bytes = max(1, values[:1].nbytes)
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _write_npy(path: Path, chunks: Iterable[Array], count: int) -> None:
    """Write chunks of one array of `count` rows; through a file, where a full disk is an OSError, not a SIGBUS."""
    with path.open("wb") as file:
        for index, chunk in enumerate(chunks):
            if index == 0:
                descr = np.lib.format.dtype_to_descr(chunk.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": (count, *chunk.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(chunk).data)


def _read_split(folder: Path, name: str) -> Split:
    return Split(*(_read_array(folder / f"{name}_{part}.npy") for part in ("inputs", "labels")))


def _read_array(path: Path) -> Tensor:
    # copy-on-write: nothing reaches the file, and torch gets an array that it may treat as its own
    return torch.from_numpy(np.load(path, mmap_mode="c"))
