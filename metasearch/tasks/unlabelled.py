"""Inputs without labels, from what the labelled task leaves out, a folder of images, or another task.

    rest, rest:N    the training examples that max_train left out, or N of them
    mixed, mixed:N  ten mixtures a training example, or N in all: convex combinations of two, for the teacher to name
    images:DIR      a folder of image files, at any depth
    TASK            the train split of another task, its labels dropped

Mixtures make the student agree with its teacher between the examples, too (Beyer et al. 2022, "A good teacher is
patient and consistent"; the mixing is that of Zhang et al. 2018 with a share uniform in [0, 1]).

None of them lies in validation or test: inputs whose bytes are equal to one there are left out and counted.
Symbols: M inputs (M, ...), at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metasearch.errors import InputError
from metasearch.tasks.duplicates import digests
from metasearch.tasks.image_files import read_images
from metasearch.tasks.image_folder import list_unlabelled
from metasearch.tasks.prepared import Transform, chunks
from metasearch.tasks.raw import Array, RawData
from metasearch.tasks.sources import existing
from metasearch.tasks.splits import Positions, left_out_of_train
from metasearch.tasks.task import Task
from metasearch.tasks.task_source import IMAGES_PREFIX, MIXED, REST, TaskSource, absolute_unlabelled, is_made, made_of

STREAM = 4
"""Of the streams of random numbers that a seed gives, the first behind those of `choose_splits`."""

MIXTURES = 10
"""Mixtures that are made of each training example, where no number is given."""

Load = Callable[[str], Task]
"""Returns the task that a TASK text names, prepared with the options of the labelled one."""


@dataclass(frozen=True)
class Candidates:
    """What may serve without labels: positions in inputs, what brings them to rest, and at most how many are wanted."""

    inputs: Array
    positions: Positions
    transform: Transform
    limit: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def at_rest(self) -> Iterable[Array]:
        """Yield the candidates at rest, chunk by chunk, (n, ...)."""
        return (self.transform(self.inputs[self.positions[part]]) for part in chunks(self.inputs, len(self.positions)))


def identify(text: str, data_root: Path, load: Load) -> tuple[str, tuple[Path, ...]]:
    """Return what tells these inputs from others in a cache: a text, and files whose size and time count too."""
    if text.startswith(IMAGES_PREFIX):
        text = absolute_unlabelled(text, data_root)
        return text, list_unlabelled(Path(text.removeprefix(IMAGES_PREFIX))).files
    return (text if is_made(text) else f"task {load(text).fingerprint}"), ()


def find_candidates(
    source: TaskSource, raw: RawData, train: Array, *, transform: Transform, scratch: Path, load: Load
) -> Candidates:
    """Return the inputs that `source.unlabelled` names. raw: of the labelled task; transform: its inputs to rest.

    train: its training inputs at rest. scratch: an empty folder, for arrays that are mapped. Raises InputError and
    NotFoundError.
    """
    text = source.unlabelled or REST
    if is_made(text):
        kind, count = made_of(text)
        if kind == MIXED:
            mixing = Mixing.draw(count or MIXTURES * len(train), examples=len(train), seed=source.seed)
            mixed = mixtures(train, mixing, file=scratch / "mixed.npy")
            return Candidates(mixed, np.arange(len(mixed)), lambda values: values)
        positions = left_out_of_train(source.text, raw, max_train=source.max_train, seed=source.seed)
        return Candidates(raw.train.inputs, positions, transform, count)
    notes: Mapping[str, Any] = {}
    if text.startswith(IMAGES_PREFIX):
        shape = raw.train.inputs.shape[1:]
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError("unlabelled", "image files do not suit inputs of another kind", f"task={shape}")
        found = read_images(
            list_unlabelled(existing(text.removeprefix(IMAGES_PREFIX), source.root())),
            image_size=source.image_size,
            skip_corrupt=source.skip_corrupt,
            scratch=scratch,
            channels=shape[0],
        )
        inputs, notes = found.train.inputs, found.notes
    else:
        inputs = load(text).train.inputs.numpy()
    return Candidates(inputs, np.arange(len(inputs)), lambda values: values, notes=notes)


@dataclass(frozen=True)
class Mixing:
    """Which two different examples are mixed, (count,) positions each, and the share of the first, uniform in [0, 1].

    Every example is the first of two as often as every other, once more or less.
    """

    first: Positions
    second: Positions
    shares: Array

    @classmethod
    def draw(cls, count: int, *, examples: int, seed: int) -> Mixing:
        """Return the mixing of so many examples, at least 2, that a seed determines."""
        rng = np.random.default_rng(seed).spawn(STREAM + 2)[STREAM + 1]
        rounds = [rng.permutation(examples) for _ in range(-(-count // examples))]
        first = np.concatenate(rounds)[:count]
        second = (first + rng.integers(1, examples, count)) % examples
        return cls(first, second, rng.random(count).astype(np.float32))

    def of(self, values: Array, part: slice) -> Array:
        """Return share * a + (1 - share) * b, float32, for a part of the mixtures of values (N, ...)."""
        shares = self.shares[part].reshape(-1, *[1] * (values.ndim - 1))
        a, b = (values[which[part]].astype(np.float32) for which in (self.first, self.second))
        return np.asarray(shares * a + (1 - shares) * b)


def mixtures(inputs: Array, mixing: Mixing, *, file: Path) -> Array:
    """Return the mixtures (count, ...) of inputs at rest, of their type (bytes are rounded), in a mapped file."""
    count = len(mixing.shares)
    mixed = np.lib.format.open_memmap(file, mode="w+", dtype=inputs.dtype, shape=(count, *inputs.shape[1:]))
    for part in chunks(inputs, count):
        values = mixing.of(inputs, part)
        mixed[part] = np.rint(values) if inputs.dtype == np.uint8 else values
    return mixed


def keep_unseen(
    candidates: Candidates, *, shape: tuple[int, ...], held_out: Iterable[Array], seed: int
) -> tuple[Candidates, dict[str, Any]]:
    """Return the candidates that lie in no held-out split, as many as are wanted, shuffled; and a record of it.

    shape: of the task's inputs; held_out: validation and test inputs at rest. Raises InputError where shapes differ, or
    where fewer are left than wanted, or none.
    """
    unseen = np.ones(len(candidates.positions), np.bool_)
    known = {digest for inputs in held_out for digest in digests(inputs)}
    start = 0
    for chunk in candidates.at_rest():
        if chunk.shape[1:] != shape:
            rule = "must have the shape of the task's inputs (--image-size makes images alike)"
            raise InputError("unlabelled", rule, f"task={shape}, unlabelled={chunk.shape[1:]}")
        unseen[start : start + len(chunk)] = [digest not in known for digest in digests(chunk)]
        start += len(chunk)
    positions = candidates.positions[unseen]
    wanted = candidates.limit or 1
    if len(positions) < wanted:
        rule = f"there must be at least {wanted} beside train, validation and test"
        raise InputError("unlabelled", rule, len(positions))
    rng = np.random.default_rng(seed).spawn(STREAM + 1)[STREAM]
    positions = rng.permutation(positions)[: candidates.limit]
    record = {"examples": len(positions), "of": len(unseen), "equal_to_held_out": int((~unseen).sum())}
    kept = Candidates(candidates.inputs, positions, candidates.transform, notes=candidates.notes)
    return kept, {**record, **candidates.notes}
