"""MNIST and the data sets made in its likeness: grey 28x28 images and labels in pairs of idx files."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metasearch.errors import InputError
from metasearch.tasks.idx import read_idx
from metasearch.tasks.located import TRAIN_AND_TEST, fetch_parts, locate_files
from metasearch.tasks.raw import RawData, Request, Source, raw_from_arrays

DIGITS = tuple(string.digits)
GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
BALANCED = (*string.digits, *string.ascii_uppercase, *"abdefghnqrt")
"""The 47 classes of EMNIST's balanced split: lower-case letters that look like their capitals are merged with them
(Cohen et al. 2017, section II)."""

MNIST_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
EMNIST_FILES = tuple(f"emnist-balanced-{name.replace('t10k', 'test')}" for name in MNIST_FILES)


def mnist_like(
    dataset: str,
    *,
    about: str,
    class_names: tuple[str, ...],
    names: tuple[str, ...] = MNIST_FILES,
    parts: Sequence[Mapping[str, Any]] = TRAIN_AND_TEST,
    flip: bool = False,
    transposed: bool = False,
) -> Source:
    """Return the source of a data set of this family. dataset: torchvision's class; transposed: as EMNIST's files are.

    names: of train images, train labels, test images and test labels, in data_root/dataset/raw.
    """
    fetch = partial(fetch_parts, dataset=dataset, parts=parts)
    return Source(
        about,
        partial(locate_files, folders=(f"{dataset}/raw",), names=names, fetch=fetch),
        partial(_read_pairs, class_names=class_names, transposed=transposed),
        flip=flip,
    )


def _read_pairs(
    request: Request, files: tuple[Path, ...], scratch: Path, *, class_names: tuple[str, ...], transposed: bool
) -> RawData:
    """Read train and test; EMNIST's images lie with rows and columns exchanged, and are turned upright."""
    parts = []
    for images_file, labels_file in (files[:2], files[2:]):
        images = read_idx(images_file)
        if transposed and images.ndim == 3:
            images = images.swapaxes(1, 2)
        parts.append((str(images_file), images, read_idx(labels_file)))
    raw = raw_from_arrays(parts)
    if int(raw.class_names[-1]) >= len(class_names):
        raise InputError(str(files[1]), f"labels must be below {len(class_names)}", raw.class_names[-1])
    return RawData(raw.train, None, raw.test, tuple(class_names[int(label)] for label in raw.class_names))


MNIST = mnist_like("MNIST", about="70,000 grey 28x28 handwritten digits", class_names=DIGITS)
FASHION_MNIST = mnist_like("FashionMNIST", about="70,000 grey 28x28 garments", class_names=GARMENTS, flip=True)
KMNIST = mnist_like("KMNIST", about="70,000 grey 28x28 cursive hiragana", class_names=HIRAGANA)
EMNIST = mnist_like(
    "EMNIST",
    about="131,600 grey 28x28 handwritten digits and letters, 47 classes (the balanced split)",
    class_names=BALANCED,
    names=EMNIST_FILES,
    parts=tuple({"split": "balanced", **part} for part in TRAIN_AND_TEST),
    transposed=True,
)
