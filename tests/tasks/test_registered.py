"""Registered data sets, read from small files in the format that each is published in."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.io import savemat

from metasearch.errors import InputError, NotFoundError
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.mnist_family import BALANCED, EMNIST_FILES, GARMENTS, HIRAGANA, MNIST_FILES
from metasearch.tasks.photographs import CIFAR100_FILES, SVHN_FILES
from metasearch.tasks.registered import REGISTERED
from tests.data_files import read, to_idx

Array = npt.NDArray[Any]


def random_bytes(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save_pairs(folder: Path, names: tuple[str, ...], images: Array, labels: Array) -> None:
    """Write the same images and labels as train and as test."""
    folder.mkdir(parents=True)
    for name, values in zip(names, (images, labels, images, labels), strict=True):
        (folder / name).write_bytes(to_idx(values))


def save_svhn(folder: Path, images: Array, labels: Array) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SVHN_FILES:
        savemat(folder / name, {"X": images, "y": labels}, do_compression=True)


def save_drawings(folder: Path, characters: list[str], *, count: int = 3, seed: int = 0) -> None:
    """Write `count` random black-and-white 105x105 drawings of each ALPHABET/CHARACTER."""
    for index, character in enumerate(characters):
        (folder / character).mkdir(parents=True)
        for drawing in range(count):
            pixels = random_bytes(105, 105, seed=1000 * seed + 10 * index + drawing) > 127
            Image.fromarray(pixels).save(folder / character / f"{index:04d}_{drawing:02d}.png")


def zipped(folder: Path) -> None:
    """Replace a folder by a zip file of it, as Omniglot is published."""
    with zipfile.ZipFile(folder.with_name(folder.name + ".zip"), "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder.parent))
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()


@pytest.mark.parametrize("name", sorted(set(REGISTERED) - {"digits"}))
def test_every_registered_name_says_how_to_get_missing_data(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        read(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert all(part in message for part in (str(tmp_path), "--data-root", "METASEARCH_DATA", "--download"))


def test_class_names_are_those_of_torchvision() -> None:
    from torchvision.datasets import EMNIST, KMNIST, FashionMNIST

    assert list(BALANCED) == EMNIST.classes_split_dict["balanced"]
    assert list(HIRAGANA) == KMNIST.classes
    assert list(GARMENTS) == FashionMNIST.classes


def test_kmnist_is_read_as_it_lies(tmp_path: Path) -> None:
    images, labels = random_bytes(20, 28, 28), (np.arange(20) % 10).astype(np.uint8)
    save_pairs(tmp_path / "KMNIST" / "raw", MNIST_FILES, images, labels)
    raw = read("kmnist", tmp_path)
    assert raw.class_names == HIRAGANA
    assert np.array_equal(raw.train.inputs[:, 0], images)


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    from torchvision.datasets import EMNIST

    upright, labels = random_bytes(47, 28, 28), np.arange(47).astype(np.uint8)
    save_pairs(tmp_path / "EMNIST" / "raw", EMNIST_FILES, upright.swapaxes(1, 2), labels)
    raw = read("emnist", tmp_path)
    assert raw.test is not None
    assert raw.class_names == BALANCED
    for split in (raw.train, raw.test):
        assert np.array_equal(split.inputs[:, 0], upright)
        assert split.labels.tolist() == labels.tolist()
    reference = EMNIST(str(tmp_path), split="balanced", train=True)
    assert np.array_equal(raw.train.inputs[:, 0].swapaxes(1, 2), reference.data.numpy())


def test_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    save_pairs(tmp_path / "EMNIST" / "raw", EMNIST_FILES, random_bytes(2, 28, 28), np.array([0, 47], np.uint8))
    with pytest.raises(InputError, match=r"labels-idx1-ubyte: labels must be below 47, got '47'"):
        read("emnist", tmp_path)


def test_cifar100_has_fine_labels_and_is_checked_before_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = random_bytes(100, 3072)
    batch = {"data": pixels, "fine_labels": list(range(100)), "coarse_labels": [0] * 100}
    meta = {"fine_label_names": [f"thing {i}" for i in range(100)]}
    for name, content in zip(CIFAR100_FILES, (batch, batch, meta), strict=True):
        (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="is not the CIFAR-100 data"):
        read("cifar100", tmp_path)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in CIFAR100_FILES}
    monkeypatch.setattr("torchvision.datasets.CIFAR100.train_list", [["train", sums["train"]]])
    monkeypatch.setattr("torchvision.datasets.CIFAR100.test_list", [["test", sums["test"]]])
    described = {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]}
    monkeypatch.setattr("torchvision.datasets.CIFAR100.meta", described)
    raw = read("cifar100", tmp_path)
    assert raw.class_names[99] == "thing 99"
    assert np.array_equal(raw.train.inputs, pixels.reshape(100, 3, 32, 32))
    assert raw.train.labels.tolist() == list(range(100))


@pytest.mark.parametrize("folder", ["SVHN", "svhn", "."])
def test_svhn_is_read_wherever_it_lies_with_ten_as_zero(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = random_bytes(32, 32, 3, 20), np.arange(1, 21, dtype=np.uint8)[:, None] % 10
    save_svhn(tmp_path / folder, images, np.where(labels == 0, 10, labels))
    known = {}
    for split, name in zip(("train", "test"), SVHN_FILES, strict=True):
        known[split] = ["", name, hashlib.md5((tmp_path / folder / name).read_bytes()).hexdigest()]
    monkeypatch.setattr("torchvision.datasets.SVHN.split_list", known)
    raw = read("svhn", tmp_path)
    assert raw.test is not None
    assert raw.class_names == tuple("0123456789")
    for part in (raw.train, raw.test):
        assert np.array_equal(part.inputs[7, 2], images[:, :, 2, 7])
        assert part.inputs.shape == (20, 3, 32, 32)
        assert part.labels.tolist() == labels.ravel().tolist()


@pytest.mark.parametrize("length", [0, 3, 100, None])
def test_matlab_file_of_another_checksum_is_refused_before_it_is_parsed(tmp_path: Path, length: int | None) -> None:
    save_svhn(tmp_path / "SVHN", random_bytes(32, 32, 3, 4), np.ones((4, 1), np.uint8))
    path = tmp_path / "SVHN" / SVHN_FILES[0]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="SVHN: is not the SVHN data"):
        read("svhn", tmp_path)


@pytest.mark.parametrize(
    ("name", "dataset", "folder", "parts"),
    [
        ("emnist", "EMNIST", "", [{"split": "balanced", "train": True}, {"split": "balanced", "train": False}]),
        ("svhn", "SVHN", "SVHN", [{"split": "train"}, {"split": "test"}]),
        ("usps", "USPS", "USPS", [{"train": True}, {"train": False}]),
        ("omniglot", "Omniglot", "", [{"background": True}, {"background": False}]),
    ],
)
def test_download_asks_torchvision_for_every_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dataset: str,
    folder: str,
    parts: list[dict[str, Any]],
) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []

    def remember(root: str, **options: Any) -> None:
        calls.append((Path(root), options))

    monkeypatch.setattr(f"torchvision.datasets.{dataset}", remember)
    with pytest.raises(NotFoundError, match="not found in"):
        read(name, tmp_path, download=True)
    assert calls == [(tmp_path / folder, part | {"download": True}) for part in parts]


# Omniglot


def test_omniglot_characters_of_both_sets_are_classes(tmp_path: Path) -> None:
    place = tmp_path / "omniglot-py"
    save_drawings(place / "images_background", ["Greek/character01", "Greek/character02"])
    save_drawings(place / "images_evaluation", ["Atlantean/character01"])
    save_drawings(place / "images_background_small1", ["Latin/character01"])
    raw = read("omniglot", tmp_path)
    assert raw.class_names == ("Atlantean/character01", "Greek/character01", "Greek/character02")
    assert raw.train.inputs.shape == (9, 1, 105, 105)
    assert raw.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    first = np.asarray(Image.open(place / "images_evaluation" / "Atlantean/character01/0000_00.png").convert("L"))
    assert np.array_equal(raw.train.inputs[0, 0], first)


def test_small_omniglot_sets_are_joined_and_shared_drawings_counted_once(tmp_path: Path) -> None:
    place = tmp_path / "omniglot-py"
    save_drawings(place / "images_background_small1", ["Greek/character01", "Latin/character01"])
    save_drawings(place / "images_background_small2", ["Greek/character01", "Tagalog/character01"])
    raw = read("omniglot", tmp_path)
    assert raw.class_names == ("Greek/character01", "Latin/character01", "Tagalog/character01")
    assert np.bincount(raw.train.labels).tolist() == [3, 3, 3]


def test_zipped_omniglot_reads_like_an_unpacked_one_and_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "omniglot-py"
    save_drawings(place / "images_background_small1", ["Greek/character01", "Latin/character01"], count=9)
    source = TaskSource("omniglot", data_root=str(tmp_path), image_size=28)
    unpacked = load_task(source)
    zipped(place / "images_background_small1")
    archived = load_task(source)
    assert archived.fingerprint == unpacked.fingerprint
    assert [path.name for path in place.iterdir()] == ["images_background_small1.zip"]


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_bad_omniglot_zip_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / "omniglot-py"
    place.mkdir()
    archive = place / "images_background.zip"
    if content is None:
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("elsewhere/a.txt", "nothing")
    else:
        archive.write_bytes(content)
    with pytest.raises(InputError, match=r"images_background\.zip: (cannot be unpacked|must hold a folder)"):
        read("omniglot", tmp_path)


def test_omniglot_folder_without_characters_is_refused(tmp_path: Path) -> None:
    save_drawings(tmp_path / "omniglot-py" / "images_background", ["Greek/character01"])
    with pytest.raises(InputError, match=r"needs ALPHABET/CHARACTER folders of images, got \['Greek/character01'\]"):
        read("omniglot", tmp_path)


@pytest.mark.slow
def test_real_omniglot_has_its_characters(shared_data: Path) -> None:
    task = load_task(TaskSource("omniglot", data_root=str(shared_data / "Omniglot"), image_size=28))
    assert task.classes == 136 + 156 - (24 + 26)  # Greek and Latin are in both small sets
    assert len(task.train) + len(task.validation) + len(task.test) == 20 * task.classes
    assert task.input_shape == (1, 28, 28)
