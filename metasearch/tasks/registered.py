"""The registered data sets: where they lie below a data root, and how they are read from there.

The layout is torchvision's own. The data root is never written to, except by torchvision's download into it, where
that was asked for; compressed files are read as they lie.
"""

from __future__ import annotations

import bz2
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from metasearch.errors import InputError, NotFoundError
from metasearch.tasks.idx import read_idx
from metasearch.tasks.raw import RawData, RawSplit, Request, Source, raw_from_arrays

DIGITS = tuple("0123456789")
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
MNIST_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
USPS_FILES = ("usps.bz2", "usps.t.bz2")


def _nothing(request: Request) -> tuple[Path, ...]:
    return ()


def _read_digits(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    """scikit-learn's copy of the test part of the UCI optical digits; values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[:, None]
    return RawData(RawSplit(images, np.asarray(bunch.target, np.int64)), None, None, DIGITS)


def _locate_registered(
    request: Request, *, folder: str, names: tuple[str, ...], fetch: Callable[[Path], None]
) -> tuple[Path, ...]:
    """Return the files `names` (or NAME.gz) of data_root/folder; fetch them first if that was asked for."""
    place = request.data_root / folder
    if request.download and _missing(place, names):
        try:
            fetch(request.data_root)
        except (OSError, RuntimeError) as error:  # no network, a folder that cannot be written; a wrong checksum
            raise NotFoundError(f"{request.argument}: cannot be downloaded into {place} ({error})") from error
    if missing := _missing(place, names):
        raise NotFoundError(
            f"{request.argument}: {', '.join(missing)} not found in {place}; say where the data lie with "
            "--data-root (or METASEARCH_DATA), or have them downloaded with --download"
        )
    return tuple(_plain_or_gzipped(place / name) for name in names)


def _missing(place: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not _plain_or_gzipped(place / name).is_file()]


def _plain_or_gzipped(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")


def _read_mnist(request: Request, files: tuple[Path, ...], scratch: Path, *, class_names: tuple[str, ...]) -> RawData:
    parts = [(str(files[i]), read_idx(files[i]), read_idx(files[i + 1])) for i in (0, 2)]
    raw = raw_from_arrays(parts)
    if int(raw.class_names[-1]) >= len(class_names):
        raise InputError(str(files[1]), f"labels must be below {len(class_names)}", raw.class_names[-1])
    return RawData(raw.train, None, raw.test, tuple(class_names[int(label)] for label in raw.class_names))


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


def _read_cifar10(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(str(request.data_root), train=train, download=False) for train in (True, False))
    except RuntimeError as error:  # torchvision compares each file's md5 before it unpickles
        raise InputError(str(files[0].parent), f"is not the CIFAR-10 data ({error})") from error
    splits = [RawSplit(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets, np.int64)) for part in (train, test)]
    return RawData(splits[0], None, splits[1], tuple(train.classes))


def _fetch(root: Path, *, dataset: str, folder: str = "") -> None:
    import torchvision.datasets

    for train in (True, False):
        getattr(torchvision.datasets, dataset)(str(root / folder), train=train, download=True)


def _mnist_like(dataset: str, *, about: str, class_names: tuple[str, ...], flip: bool = False) -> Source:
    return Source(
        about,
        partial(_locate_registered, folder=f"{dataset}/raw", names=MNIST_FILES, fetch=partial(_fetch, dataset=dataset)),
        partial(_read_mnist, class_names=class_names),
        flip=flip,
    )


def _fetch_usps(root: Path) -> None:
    (root / "USPS").mkdir(parents=True, exist_ok=True)
    _fetch(root, dataset="USPS", folder="USPS")


REGISTERED: Mapping[str, Source] = {
    "digits": Source("1,797 grey 8x8 digits that come with scikit-learn", _nothing, _read_digits, shift=0),
    "mnist": _mnist_like("MNIST", about="70,000 grey 28x28 handwritten digits", class_names=DIGITS),
    "fashion_mnist": _mnist_like("FashionMNIST", about="70,000 grey 28x28 garments", class_names=GARMENTS, flip=True),
    "usps": Source(
        "9,298 grey 16x16 digits from envelopes",
        partial(_locate_registered, folder="USPS", names=USPS_FILES, fetch=_fetch_usps),
        _read_usps,
    ),
    "cifar10": Source(
        "60,000 colour 32x32 photographs",
        partial(
            _locate_registered,
            folder="cifar-10-batches-py",
            names=CIFAR10_FILES,
            fetch=partial(_fetch, dataset="CIFAR10"),
        ),
        _read_cifar10,
        shift=1 / 8,
        flip=True,
    ),
}
"""Names that a TASK may be, beside the prefixes."""
