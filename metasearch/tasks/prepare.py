"""From a TASK text and options to a prepared task: splits, resizing, subset, normalisation, fingerprint, cache.

Everything is prepared once, then memory-mapped. Symbols: N examples, C channels, S the image size asked for.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.folders import cache_folder
from metasearch.tasks.families import is_domain, load_member, parse_member
from metasearch.tasks.prepared import (
    Prepared,
    Transform,
    cache_key,
    fingerprint,
    publish,
    read_prepared,
    write_description,
    write_splits,
    write_unlabelled,
)
from metasearch.tasks.raw import Array, RawData, RawSplit, Request, Source
from metasearch.tasks.sources import PYTHON_PREFIX, absolute_argument, call_task_function, find_source
from metasearch.tasks.splits import SPLITS, Chosen, Positions, choose_splits
from metasearch.tasks.task import Augmentation, Split, Task
from metasearch.tasks.task_source import TaskSource
from metasearch.tasks.unlabelled import Candidates, find_candidates, identify, keep_unseen

USUAL_SHIFT = 1 / 16


def load_task(source: TaskSource | str, *, prepare: bool = True) -> Task:
    """Return the task that a source describes, from the cache where it was prepared before.

    prepare: whether one that is not in the cache is prepared now; if not, it is a NotFoundError.

    Missing splits are made, stratified by class: 1/6 of everything as test, then 1/6 of train, at most 10,000, as
    validation. With max_train, train is cut to it and validation to max(max_train // 2, 500), both balanced over the
    classes; test stays whole. Train and validation are shuffled, so that any leading part of them is a fair sample.
    Raises InputError and NotFoundError for sources that break a rule or are not there, StorageError where the cache
    cannot be written.
    """
    source = TaskSource(source) if isinstance(source, str) else source
    if source.text.startswith(PYTHON_PREFIX):
        if not prepare:
            raise NotFoundError(f"{source.text}: a function makes this task anew; it is not in the cache")
        return _with_options(source, call_task_function(source.text.removeprefix(PYTHON_PREFIX)))
    if is_domain(source.text):
        (domain,) = load_member(parse_member(source.text), source, prepare=prepare)
        return _with_options(source, domain.task())
    kind, argument = find_source(source.text)
    request = Request(argument, source.root(), source.image_size, source.download, source.skip_corrupt)
    try:
        files = kind.locate(request)
        options = {name: getattr(source, name) for name in ("max_train", "image_size", "seed", "skip_corrupt")}
        more: tuple[Path, ...] = ()
        if source.unlabelled is not None:
            options["unlabelled"], more = identify(source.unlabelled, source.root(), _loader(source, prepare=prepare))
        key = cache_key(absolute_argument(source.text, source.root()), options, (*files, *more))
    except PermissionError as error:
        raise InputError(source.text, f"cannot be read ({error})") from error
    folder = cache_folder() / "tasks" / key
    prepared = read_prepared(folder)
    if prepared is None:
        if not prepare:
            raise NotFoundError(f"{source.text}: is not prepared on this machine")
        prepared = _prepare(folder, source, kind, request, files)
    shape = tuple(prepared.splits["train"].inputs.shape[1:])
    return Task(
        name=source.text,
        train=prepared.splits["train"],
        validation=prepared.splits["validation"],
        test=prepared.splits["test"],
        class_names=prepared.class_names,
        normalisation=prepared.normalisation,
        augmentation=augmentation_for(shape, shift=kind.shift, flip=kind.flip, augment=source.augment),
        fingerprint=prepared.fingerprint,
        provenance={"source": source.text, **prepared.provenance},
        unlabelled=prepared.unlabelled,
    )


def augmentation_for(shape: tuple[int, ...], *, shift: float, flip: bool, augment: str | None) -> Augmentation:
    """Return the augmentation of inputs of a shape: the source's own, or the one that `augment` names.

    shift: the source's own, as a fraction of the shorter side. Raises InputError for vectors that are to be shifted.
    """
    if len(shape) != 3:
        if augment not in (None, "none"):
            raise InputError("augment", "vectors can neither be shifted nor flipped", augment)
        return Augmentation()
    if augment == "none" or (augment is None and shift == 0):
        return Augmentation()
    pixels = max(1, round(min(shape[1:]) * (shift or USUAL_SHIFT)))
    return Augmentation(pixels, flip if augment is None else augment == "shift+flip")


def resize(images: Array, size: int) -> Array:
    """Return (n, C, size, size) uint8 from (n, C, H, W) uint8: antialiased bilinear, rounded; as is if of that size."""
    if images.shape[2:] == (size, size):
        return images
    resized = interpolate(torch.from_numpy(images).float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).numpy()


def _prepare(folder: Path, source: TaskSource, kind: Source, request: Request, files: tuple[Path, ...]) -> Prepared:
    """Read, choose and write into a temporary sibling, then give it its name; return what lies there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder.parent))
        try:
            scratch = temporary / "scratch"
            scratch.mkdir()
            raw = kind.read(request, files, scratch)
            chosen, provenance = _chosen(raw, source)
            splits = write_splits(temporary, chosen, transform=_transform(source))
            unlabelled = None
            if source.unlabelled is not None:
                kept, provenance["unlabelled"] = _unlabelled(source, raw, splits, scratch)
                unlabelled = write_unlabelled(temporary, kept.at_rest(), len(kept.positions))
            write_description(
                temporary, splits, unlabelled=unlabelled, class_names=raw.class_names, provenance=provenance
            )
            shutil.rmtree(scratch)
            publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        hint = "METASEARCH_HOME names another place"
        raise StorageError(f"{folder.parent}: the prepared task cannot be written ({error}); {hint}") from error
    prepared = read_prepared(folder)
    if prepared is None:
        raise StorageError(f"{folder}: the prepared task cannot be read back")
    return prepared


def _transform(source: TaskSource) -> Transform:
    size = source.image_size
    return (lambda images: images) if size is None else (lambda images: resize(images, size))


def _loader(source: TaskSource, *, prepare: bool = True) -> Callable[[str], Task]:
    """Return what loads another task whole, with the options of this one."""
    whole = replace(source, max_train=None, augment=None, unlabelled=None)
    return lambda text: load_task(replace(whole, text=text), prepare=prepare)


def _unlabelled(
    source: TaskSource, raw: RawData, splits: Mapping[str, Split], scratch: Path
) -> tuple[Candidates, dict[str, Any]]:
    """Return the unlabelled inputs that a source names, and the record of how they came about."""
    folder = scratch / "unlabelled"
    folder.mkdir()
    train = splits["train"].inputs.numpy()
    found = find_candidates(source, raw, train, transform=_transform(source), scratch=folder, load=_loader(source))
    kept, record = _keep_unseen(found, splits, source.seed)
    return kept, {"source": source.unlabelled, **record}


def _keep_unseen(candidates: Candidates, splits: Mapping[str, Split], seed: int) -> tuple[Candidates, dict[str, Any]]:
    held_out = [splits[name].inputs.numpy() for name in ("validation", "test")]
    return keep_unseen(candidates, shape=tuple(splits["train"].inputs.shape[1:]), held_out=held_out, seed=seed)


def _chosen(raw: RawData, source: TaskSource) -> tuple[Chosen, dict[str, Any]]:
    """Return which examples make up each split, and the record of how that came about; checks the options first."""
    classes, shape = len(raw.class_names), raw.train.inputs.shape[1:]
    if source.max_train is not None and source.max_train < classes:
        rule = f"must be at least one example for each of the {classes} classes"
        raise InputError("max_train", rule, source.max_train)
    if source.image_size is not None and len(shape) != 3:
        raise InputError("image_size", "vectors have no image size", source.image_size)
    for name, split in (("validation", raw.validation), ("test", raw.test)):
        other = shape if split is None else split.inputs.shape[1:]
        comparable = len(other) == len(shape) and other[0] == shape[0] and source.image_size is not None
        if other != shape and not comparable:
            raise InputError(source.text, f"train and {name} must have one shape", f"train={shape}, {name}={other}")
    chosen, sizes = choose_splits(source.text, raw, max_train=source.max_train, seed=source.seed)
    provenance = {
        "splits": sizes,
        "options": {name: getattr(source, name) for name in ("max_train", "image_size", "seed")},
        "notes": dict(raw.notes),
    }
    return chosen, provenance


def _with_options(source: TaskSource, task: Task) -> Task:
    """Return a task that is already made, with the options applied; its normalisation stays, its fingerprint is new."""
    raws = {name: _raw_split(source.text, getattr(task, name), task) for name in SPLITS}
    raw = RawData(raws["train"], raws["validation"], raws["test"], task.class_names)
    if source.max_train is None and source.image_size is None:
        splits: Mapping[str, Split] = {name: getattr(task, name) for name in SPLITS}
    else:
        chosen, _ = _chosen(raw, source)
        splits = {name: _gather(*chosen[name], source.image_size) for name in SPLITS}
    unlabelled, record = _given_unlabelled(source, task, raw, splits)
    shape = tuple(splits["train"].inputs.shape[1:])
    augmentation = task.augmentation
    if source.augment is not None:
        augmentation = augmentation_for(shape, shift=USUAL_SHIFT, flip=False, augment=source.augment)
    return replace(
        task,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        augmentation=augmentation,
        fingerprint=fingerprint(splits, task.class_names, unlabelled),
        provenance={"source": source.text, **task.provenance, **record},
        unlabelled=unlabelled,
    )


def _given_unlabelled(
    source: TaskSource, task: Task, raw: RawData, splits: Mapping[str, Split]
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return the unlabelled inputs that the source names, else the function's own, and the record of them."""
    if source.unlabelled is None and task.unlabelled is None:
        return None, {}
    with tempfile.TemporaryDirectory() as scratch:
        if source.unlabelled is None and task.unlabelled is not None:
            own = Candidates(task.unlabelled.numpy(), np.arange(len(task.unlabelled)), _transform(source))
            kept, record = _keep_unseen(own, splits, source.seed)
        else:
            kept, record = _unlabelled(source, raw, splits, Path(scratch))
        return torch.from_numpy(np.concatenate(list(kept.at_rest()))), {"unlabelled": record}


def _raw_split(text: str, split: Split, task: Task) -> RawSplit:
    wanted = torch.uint8 if task.is_image else torch.float32
    if split.inputs.dtype != wanted or split.labels.dtype != torch.int64:
        rule = "images must be uint8, vectors float32, and labels int64"
        raise InputError(text, rule, f"inputs={split.inputs.dtype}, labels={split.labels.dtype}")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= task.classes:
        raise InputError(text, f"labels must lie in 0..{task.classes - 1}", f"min={low}, max={high}")
    return RawSplit(split.inputs.numpy(), split.labels.numpy())


def _gather(raw: RawSplit, positions: Positions, size: int | None) -> Split:
    inputs = raw.inputs[positions] if size is None else resize(raw.inputs[positions], size)
    return Split(torch.from_numpy(inputs), torch.from_numpy(raw.labels[positions]))
