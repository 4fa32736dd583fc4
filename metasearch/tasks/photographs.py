"""Small colour photographs, 32x32: CIFAR-10 and CIFAR-100 (pickled batches), SVHN (MATLAB files)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from metasearch.errors import InputError
from metasearch.tasks.located import fetch_parts, locate_files
from metasearch.tasks.mnist_family import DIGITS
from metasearch.tasks.raw import RawData, RawSplit, Request, Source

CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
CIFAR100_FILES = ("train", "test", "meta")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


def _cifar(dataset: str, *, about: str, folder: str, names: tuple[str, ...]) -> Source:
    return Source(
        about,
        partial(locate_files, folders=(folder,), names=names, fetch=partial(fetch_parts, dataset=dataset)),
        partial(_read_cifar, dataset=dataset),
        shift=1 / 8,
        flip=True,
    )


def _read_cifar(request: Request, files: tuple[Path, ...], scratch: Path, *, dataset: str) -> RawData:
    import torchvision.datasets

    load = getattr(torchvision.datasets, dataset)
    try:
        train, test = (load(str(request.data_root), train=train, download=False) for train in (True, False))
    except RuntimeError as error:  # torchvision compares each file's md5 before it unpickles
        raise InputError(str(files[0].parent), f"is not the {dataset.replace('R1', 'R-1')} data ({error})") from error
    splits = [RawSplit(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets, np.int64)) for part in (train, test)]
    return RawData(splits[0], None, splits[1], tuple(train.classes))


def _read_svhn(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    from torchvision.datasets import SVHN

    try:
        train, test = (
            SVHN(str(path.parent), split=split) for path, split in zip(files, ("train", "test"), strict=True)
        )
    except RuntimeError as error:  # the md5 is compared first: scipy crashes on some damaged .mat files
        raise InputError(str(files[0].parent), f"is not the SVHN data ({error})") from error
    splits = [RawSplit(part.data, np.asarray(part.labels, np.int64)) for part in (train, test)]
    return RawData(splits[0], None, splits[1], DIGITS)


CIFAR10 = _cifar("CIFAR10", about="60,000 colour 32x32 photographs", folder="cifar-10-batches-py", names=CIFAR10_FILES)
CIFAR100 = _cifar(
    "CIFAR100",
    about="60,000 colour 32x32 photographs, 100 classes",
    folder="cifar-100-python",
    names=CIFAR100_FILES,
)
SVHN = Source(
    "99,289 colour 32x32 digits of house numbers",
    partial(
        locate_files,
        folders=("SVHN", "svhn", ""),  # torchvision leaves the folder to its caller
        names=SVHN_FILES,
        fetch=partial(fetch_parts, dataset="SVHN", parts=({"split": "train"}, {"split": "test"}), folder="SVHN"),
    ),
    _read_svhn,
)
