"""Raw data and their sources, and the rules that bring arrays of any layout into one.

Symbols: N examples; images (N, C, H, W), uint8; vectors (N, F), float32; K classes, labels 0..K-1, int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metasearch.errors import InputError

Array = npt.NDArray[Any]

CHANNELS = (1, 3, 4)
"""The sizes by which an axis is recognised as the channel axis."""


@dataclass(frozen=True)
class RawSplit:
    """inputs: (N, C, H, W) uint8 or (N, F) float32, in memory or memory-mapped. labels: (N,) int64."""

    inputs: Array
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawData:
    """What a source holds before any split is made. notes: what a reader should know of the reading; JSON-ready."""

    train: RawSplit
    validation: RawSplit | None
    test: RawSplit | None
    class_names: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What is asked of a source. argument: the text after the colon, or the registered name."""

    argument: str
    data_root: Path
    image_size: int | None = None
    download: bool = False
    skip_corrupt: bool = False


@dataclass(frozen=True)
class Source:
    """One way to spell a task, and the augmentation its images usually bear.

    locate: request -> the files that the data depend on. read: request, files, scratch folder -> raw data.
    shift: as a fraction of the image's side; flip: whether a mirror image keeps its class.
    """

    about: str
    locate: Callable[[Request], tuple[Path, ...]]
    read: Callable[[Request, tuple[Path, ...], Path], RawData]
    shift: float = 1 / 16
    flip: bool = False


def raw_from_arrays(parts: Sequence[tuple[str, Array, Array]]) -> RawData:
    """Return raw data from one or two (place, inputs, labels): train and, where given, test.

    inputs: see `to_channels_first` for images; (N, F) are vectors. Floating-point images are taken as [0, 1] and
    multiplied by 255 where no value of the train part exceeds 1, else as 0..255; both are rounded.
    labels: (N,) or (N, 1), integers or text; classes are those of the train part, sorted, named by their text.
    Raises InputError for other layouts and values, and for a test label that train has not.
    """
    train_place, train_inputs, train_labels = parts[0]
    byte_scale = 255.0 if _is_unit_range(train_inputs) else 1.0
    classes = np.unique(_flat_labels(train_place, train_labels, count=len(train_inputs)))
    splits = [
        RawSplit(
            _at_rest(place, inputs, byte_scale), encode_labels(place, _flat_labels(place, labels, len(inputs)), classes)
        )
        for place, inputs, labels in parts
    ]
    names = tuple(str(name) for name in classes.tolist())
    return RawData(splits[0], None, splits[1] if len(splits) > 1 else None, names)


def encode_labels(place: str, labels: Array, classes: Array) -> npt.NDArray[np.int64]:
    """Return (N,) int64 positions of `labels` in the sorted (K,) `classes`; raises InputError for another label."""
    if labels.dtype.kind != classes.dtype.kind and "U" in (labels.dtype.kind, classes.dtype.kind):
        raise InputError(place, "train and test labels must both be numbers or both be text", str(labels.dtype))
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise InputError(place, "the train split has no example of a label", unknown.tolist()[:5])
    return np.searchsorted(classes, labels).astype(np.int64)


def to_channels_first(place: str, images: Array) -> Array:
    """Return (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W); any dtype.

    The channel axis is the one of size 1, 3 or 4; where both the last and the second are, the last is taken.
    Raises InputError where neither is.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.shape[-1] in CHANNELS:
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    if images.shape[1] in CHANNELS:
        return images
    raise InputError(place, "images need a channel axis of size 1, 3 or 4, last or second", images.shape)


def _at_rest(place: str, inputs: Array, byte_scale: float) -> Array:
    if inputs.dtype.kind not in "buif":
        raise InputError(place, "inputs must be numbers", str(inputs.dtype))
    if inputs.ndim not in (2, 3, 4) or 0 in inputs.shape:
        raise InputError(place, "inputs must be N,F or N,H,W or N,H,W,C or N,C,H,W and not empty", inputs.shape)
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise InputError(place, "inputs must be finite; NaN or infinity found")
    if inputs.ndim == 2:
        return np.ascontiguousarray(inputs, dtype=np.float32)
    return _to_bytes(place, to_channels_first(place, inputs), byte_scale)


def _to_bytes(place: str, images: Array, byte_scale: float) -> Array:
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    scaled = images * byte_scale if images.dtype.kind == "f" else images
    low, high = scaled.min(), scaled.max()
    if low < 0 or high > 255:
        raise InputError(place, "pixels must lie in [0, 1] or in 0..255", f"min={images.min()}, max={images.max()}")
    return np.rint(scaled).astype(np.uint8)


def _is_unit_range(inputs: Array) -> bool:
    return inputs.dtype.kind == "f" and inputs.size > 0 and float(inputs.max()) <= 1.0


def _flat_labels(place: str, labels: Array, count: int) -> Array:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(place, "labels must be one number or text an example, shape N", labels.shape)
    if len(labels) != count:
        raise InputError(place, "there must be one label an input", f"inputs={count}, labels={len(labels)}")
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8")
    if labels.dtype.kind not in "iuU":
        raise InputError(place, "labels must be integers or text", str(labels.dtype))
    return labels
