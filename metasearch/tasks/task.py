"""A task: three labelled splits at rest, and what is needed to feed them to a network.

Symbols: N examples; images (C, H, W), uint8 at rest; vectors (F,), float32 at rest; K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metasearch.errors import InputError

UNLABELLED = -1
"""The label of an example that has none: the cross-entropy leaves it out, the teacher's part of a loss does not."""


@dataclass(frozen=True)
class Split:
    """Inputs (N, C, H, W) uint8 or (N, F) float32, and labels (N,) int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Normalisation:
    """The affine map from inputs at rest to the network's input: x * scale + shift, per channel (or feature).

    scale, shift: C numbers for images, F for vectors. For images x is the byte, so that the constant 1 / 255 is
    part of the scale; the deployed network repeats this map in the same two operations, to the bit.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (B, ...) float32 on the device of `inputs`."""
        scale, shift = self.tensors(inputs.ndim - 1, device=inputs.device)
        return inputs.to(torch.float32) * scale + shift

    def tensors(self, dimensions: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return scale and shift, float32, shaped (C, 1, 1) for 3 input dimensions and (F,) for 1."""
        shape = (-1,) + (1,) * (dimensions - 1)
        scale, shift = (torch.tensor(t, dtype=torch.float32, device=device) for t in (self.scale, self.shift))
        return scale.reshape(shape), shift.reshape(shape)


@dataclass(frozen=True)
class Augmentation:
    """Random changes that keep the class: a shift by up to `shift` pixels each way (edges filled with zeros before
    normalisation, a random crop of the padded image) and, where `flip`, a mirror image half of the time."""

    shift: int = 0
    flip: bool = False

    def __bool__(self) -> bool:
        return self.shift > 0 or self.flip


@dataclass(frozen=True)
class Task:
    """A data set ready to be learnt: three splits, classes, shape, normalisation and a fingerprint.

    fingerprint: hex digest over every byte of the splits, the unlabelled inputs and the class names. provenance: where
    it came from and what was done to it (source, subset, resize, which splits were made and with which seed);
    JSON-ready. unlabelled: (M, ...), more inputs like those of train, of which none lies in validation or test.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    normalisation: Normalisation
    augmentation: Augmentation
    fingerprint: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(f"task {self.name}", "needs at least two classes", self.classes)
        for name in ("train", "validation", "test"):
            split: Split = getattr(self, name)
            if len(split) == 0:
                raise InputError(f"task {self.name}", f"the {name} split must not be empty")
            if len(split.inputs) != len(split.labels):
                raise InputError(
                    f"task {self.name}",
                    f"the {name} split must have one label an input",
                    f"inputs={len(split.inputs)}, labels={len(split.labels)}",
                )
            if split.inputs.shape[1:] != self.train.inputs.shape[1:]:
                raise InputError(
                    f"task {self.name}",
                    f"train and {name} must have one shape",
                    f"train={tuple(self.train.inputs.shape[1:])}, {name}={tuple(split.inputs.shape[1:])}",
                )
        extra, like = self.unlabelled, self.train.inputs
        if extra is not None and (len(extra) == 0 or extra.shape[1:] != like.shape[1:] or extra.dtype != like.dtype):
            raise InputError(
                f"task {self.name}",
                "unlabelled inputs must be there, of the shape and type of train's",
                f"train={tuple(like.shape)} {like.dtype}, unlabelled={tuple(extra.shape)} {extra.dtype}",
            )

    @property
    def classes(self) -> int:
        """The number of classes K."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) or (F,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images rather than vectors."""
        return len(self.input_shape) == 3

    @property
    def input_bytes(self) -> int:
        """Bytes of one input at rest."""
        return math.prod(self.input_shape) * self.train.inputs.element_size()

    @property
    def taught(self) -> Split:
        """What a student learns from a teacher: the train split, then the unlabelled inputs."""
        if self.unlabelled is None:
            return self.train
        labels = torch.full((len(self.unlabelled),), UNLABELLED)
        return Split(torch.cat([self.train.inputs, self.unlabelled]), torch.cat([self.train.labels, labels]))
