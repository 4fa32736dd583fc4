"""The registered data sets, by the name that a TASK may be; those with a format of their own are read here.

Compressed files are read as they lie.
"""

from __future__ import annotations

import bz2
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from metasearch.errors import InputError
from metasearch.tasks.located import fetch_parts, locate_files
from metasearch.tasks.mnist_family import DIGITS, EMNIST, FASHION_MNIST, KMNIST, MNIST
from metasearch.tasks.omniglot import OMNIGLOT
from metasearch.tasks.photographs import CIFAR10, CIFAR100, SVHN
from metasearch.tasks.raw import RawData, RawSplit, Request, Source

USPS_FILES = ("usps.bz2", "usps.t.bz2")


def _nothing(request: Request) -> tuple[Path, ...]:
    return ()


def _read_digits(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    """scikit-learn's copy of the test part of the UCI optical digits; values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    return RawData(RawSplit(images, np.asarray(bunch.target, np.int64)), None, None, DIGITS)


def _read_usps(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    """Lines "label 1:value ... 256:value", labels 1..10, values in [-1, 1]; bytes as torchvision makes them."""
    train, test = (_usps_split(path) for path in files)
    return RawData(train, None, test, DIGITS)


def _usps_split(path: Path) -> RawSplit:
    try:
        text = bz2.decompress(path.read_bytes()).decode("ascii")
        table = np.array(text.replace(":", " ").split(), np.float32).reshape(-1, 1 + 2 * 256)
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"is not the USPS data in libsvm format ({error})") from error
    pixels = ((table[:, 2::2] + 1) / 2 * 255).astype(np.uint8)
    return RawSplit(pixels.reshape(-1, 1, 16, 16), table[:, 0].astype(np.int64) - 1)


REGISTERED: Mapping[str, Source] = {
    "digits": Source("1,797 grey 8x8 digits that come with scikit-learn", _nothing, _read_digits, shift=0),
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
    "kmnist": KMNIST,
    "emnist": EMNIST,
    "usps": Source(
        "9,298 grey 16x16 digits from envelopes",
        partial(
            locate_files,
            folders=("USPS",),
            names=USPS_FILES,
            fetch=partial(fetch_parts, dataset="USPS", folder="USPS"),
        ),
        _read_usps,
    ),
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": SVHN,
    "omniglot": OMNIGLOT,
}
"""Names that a TASK may be, beside the prefixes."""
