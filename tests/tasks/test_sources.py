from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from metasearch.errors import InputError, NotFoundError
from metasearch.tasks.idx import TYPES, parse_idx, read_idx
from metasearch.tasks.image_files import read_images
from metasearch.tasks.image_folder import list_images
from metasearch.tasks.npz import read_npz
from metasearch.tasks.photographs import CIFAR10_FILES
from metasearch.tasks.raw import Request, raw_from_arrays
from metasearch.tasks.registered import REGISTERED
from metasearch.tasks.sources import find_source
from tests.data_files import read, save_images, to_idx

Array = npt.NDArray[Any]


# idx files


@given(
    st.sampled_from(sorted(TYPES.values())).flatmap(
        lambda text: hnp.arrays(np.dtype(text).newbyteorder("="), hnp.array_shapes(max_dims=4, min_side=0, max_side=5))
    )
)
def test_idx_round_trip_keeps_every_array(values: Array) -> None:
    assert np.array_equal(parse_idx("file", to_idx(values)), values, equal_nan=values.dtype.kind == "f")


def test_idx_file_reads_alike_gzipped_or_not(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(to_idx(values))
    (tmp_path / "zipped").write_bytes(gzip.compress(to_idx(values)))
    assert np.array_equal(read_idx(tmp_path / "plain"), values)
    assert np.array_equal(read_idx(tmp_path / "zipped"), values)


@given(st.binary(max_size=40))
def test_idx_parser_refuses_arbitrary_bytes_with_an_input_error_only(data: bytes) -> None:
    try:
        parse_idx("file", data)
    except InputError as error:
        assert str(error).startswith("file: ")  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG....", "is not an idx file"),
        (to_idx(np.zeros((3, 4), np.uint8))[:-1], "is truncated"),
        (to_idx(np.zeros((3, 4), np.uint8))[:9], "is truncated"),
        (to_idx(np.zeros((3, 4), np.uint8)) + b"x", "has bytes left over"),
        (gzip.compress(to_idx(np.zeros((30, 40), np.uint8)), mtime=0)[:-12], "cannot be read"),
    ],
)
def test_damaged_idx_file_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "images-idx3"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"images-idx3: {said}"):
        read_idx(path)


def test_idx_pairs_give_train_and_test(tmp_path: Path) -> None:
    for name, values in {
        "a": np.ones((4, 2, 3), np.uint8),
        "al": np.array([3, 5, 3, 5], np.uint8),
        "b": np.zeros((2, 2, 3), np.uint8),
        "bl": np.array([5, 3], np.uint8),
    }.items():
        (tmp_path / name).write_bytes(to_idx(values))
    raw = read("idx:a,al,b,bl", tmp_path)
    assert raw.test is not None
    assert raw.train.inputs.shape == (4, 1, 2, 3)
    assert raw.class_names == ("3", "5")
    assert raw.test.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="takes 2 or 4 files"):
        read("idx:a,al,b", tmp_path)


# numpy archives and layouts of arrays


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 9, 8), (6, 1, 9, 8)),
        ((6, 9, 8, 3), (6, 3, 9, 8)),
        ((6, 3, 9, 8), (6, 3, 9, 8)),
        ((6, 1, 9, 8), (6, 1, 9, 8)),
        ((6, 3, 9, 4), (6, 4, 3, 9)),
        ((6, 9), (6, 9)),
    ],
)
def test_layouts_become_channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    raw = raw_from_arrays([("file", values, np.array([0, 1] * 3))])
    assert raw.train.inputs.shape == expected
    assert raw.train.inputs.dtype == (np.float32 if len(shape) == 2 else np.uint8)
    assert np.array_equal(np.sort(raw.train.inputs.ravel()), np.sort(values.ravel()))
    if shape == (6, 9, 8, 3):
        assert np.array_equal(raw.train.inputs[2, 1], values[2, :, :, 1])


def test_unit_range_images_are_scaled_and_byte_range_images_rounded() -> None:
    labels = np.array([0, 1])
    unit = np.full((2, 4, 4), 0.5, np.float32)
    unit[0, 0, 0] = 1.0
    dark = np.full((2, 4, 4), 0.2)
    raw = raw_from_arrays([("train", unit, labels), ("test", dark, labels)])
    assert raw.test is not None
    assert raw.train.inputs[0, 0, 0].tolist() == [255, 128, 128, 128]
    assert set(raw.test.inputs.ravel().tolist()) == {51}
    bytes_as_float = raw_from_arrays([("train", np.full((2, 4, 4), 200.4), labels), ("test", dark, labels)])
    assert bytes_as_float.test is not None
    assert int(bytes_as_float.train.inputs.max()) == 200
    assert int(bytes_as_float.test.inputs.max()) == 0


@pytest.mark.parametrize("labels", [np.array(["b", "a", "b", "c"]), np.array([b"b", b"a", b"b", b"c"])])
def test_text_labels_become_positions_of_sorted_names(labels: Array) -> None:
    raw = raw_from_arrays([("train", np.zeros((4, 5)), labels)])
    assert raw.class_names == ("a", "b", "c")
    assert raw.train.labels.tolist() == [1, 0, 1, 2]


def test_integer_labels_sort_by_value_and_keep_their_text() -> None:
    raw = raw_from_arrays([("train", np.zeros((3, 5)), np.array([[10], [-1], [9]]))])
    assert raw.class_names == ("-1", "9", "10")
    assert raw.train.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (np.zeros((2, 5, 6, 7)), np.arange(2), "channel axis of size 1, 3 or 4"),
        (np.zeros((2,)), np.arange(2), "inputs must be N,F"),
        (np.array([["a", "b"]]), np.arange(1), "inputs must be numbers"),
        (np.full((2, 3), np.nan), np.arange(2), "must be finite"),
        (np.full((2, 3, 3), 256), np.arange(2), "0..255, got min=256"),
        (np.full((2, 3, 3), -0.5), np.arange(2), "0..255, got min=-0.5"),
        (np.zeros((2, 3)), np.arange(3), "one label an input, got inputs=2, labels=3"),
        (np.zeros((2, 3)), np.eye(2), "one number or text an example"),
        (np.zeros((2, 3)), np.array([0.5, 1.5]), "integers or text"),
    ],
)
def test_array_that_breaks_a_rule_is_refused(inputs: Array, labels: Array, said: str) -> None:
    with pytest.raises(InputError, match=said):
        raw_from_arrays([("file", inputs, labels)])


def test_test_label_that_train_has_not_is_refused() -> None:
    parts = [("train", np.zeros((2, 3)), np.array([0, 1])), ("test", np.zeros((2, 3)), np.array([1, 7]))]
    with pytest.raises(InputError, match=r"test: the train split has no example of a label, got \[7\]"):
        raw_from_arrays(parts)


def test_npz_with_wrong_keys_is_refused_and_its_keys_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=np.zeros((2, 3)), labels=np.arange(2))
    with pytest.raises(InputError, match=r"exactly one of the keys images and x, got \['data', 'labels'\]"):
        read_npz(tmp_path / "a.npz")


def test_npz_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}, {}], dtype=object), y=np.arange(2))
    with pytest.raises(InputError, match="without pickled objects"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1, 2])])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: cannot be read as an \.npz archive"):
        read_npz(tmp_path / "a.npz")


def test_damaged_or_single_array_archive_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).random((50, 9)), y=np.arange(50))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[200:260] = bytes(60)
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InputError, match="single array"):
        read_npz(tmp_path / "b.npy")


# class folders


def test_folder_classes_are_sorted_names_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"dog/1.png": (6, 5), "cat/deep/2.PNG": (6, 5), "cat/1.png": (6, 5)})
    for hidden in ("d/cat/.hidden.png", "d/cat/._1.png", "d/.DS_Store", "d/cat/notes.txt"):
        (tmp_path / hidden).write_bytes(b"not an image")
    (tmp_path / "d" / ".git").mkdir()
    raw = read("folder:d", tmp_path)
    assert raw.class_names == ("cat", "dog")
    assert raw.train.inputs.shape == (3, 3, 5, 6)
    assert raw.train.labels.tolist() == [0, 0, 1]
    assert raw.notes == {"other_files_ignored": 1}
    expected = np.asarray(Image.open(tmp_path / "d/dog/1.png")).transpose(2, 0, 1)
    assert np.array_equal(raw.train.inputs[2], expected)


@pytest.mark.parametrize("spelling", ["val", "valid", "validation"])
def test_folder_with_splits_above_the_classes_keeps_them(tmp_path: Path, spelling: str) -> None:
    names = [f"{split}/{name}/1.png" for split in ("train", spelling, "test") for name in ("a", "b")]
    save_images(tmp_path / "d", dict.fromkeys(names, (4, 4)), mode="L")
    raw = read("folder:d", tmp_path)
    assert raw.validation is not None
    assert raw.test is not None
    assert raw.train.inputs.shape == raw.validation.inputs.shape == raw.test.inputs.shape == (2, 1, 4, 4)


def test_folder_named_train_may_be_a_class(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"train/1.png": (4, 4), "tram/1.png": (4, 4)})
    assert read("folder:d", tmp_path).class_names == ("train", "tram")


def test_images_of_differing_sizes_need_an_image_size(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"a/1.png": (40, 30), "b/2.png": (20, 10)})
    with pytest.raises(InputError, match=r"need --image-size: a/1\.png is 40x30, b/2\.png is 20x10"):
        read("folder:d", tmp_path)
    assert read("folder:d", tmp_path, image_size=8).train.inputs.shape == (2, 3, 8, 8)


def test_grey_images_among_colour_ones_become_colour(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"a/1.png": (4, 4)}, mode="L")
    save_images(tmp_path / "d", {"b/1.png": (4, 4)})
    raw = read("folder:d", tmp_path)
    assert raw.train.inputs.shape == (2, 3, 4, 4)
    assert np.array_equal(raw.train.inputs[0, 0], raw.train.inputs[0, 2])


def test_transparent_pixels_are_laid_over_white(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGBA", (4, 4), (10, 20, 30, 0 if name == "a" else 255)).save(tmp_path / "d" / name / "1.png")
    raw = read("folder:d", tmp_path)
    assert raw.train.inputs[:, :, 0, 0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_sixteen_bit_grey_images_keep_their_range(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)).save(tmp_path / "d" / name / "1.png")
    assert read("folder:d", tmp_path).train.inputs[0, 0].tolist() == [[0, 1, 128, 255]]


def test_corrupt_images_are_all_counted_and_the_first_named(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {f"{name}/{i}.png": (16, 16) for name in "ab" for i in range(6)})
    for i in range(2):
        (tmp_path / "d" / "a" / f"{i}.png").write_bytes(b"junk")
    for i in range(3):
        path = tmp_path / "d" / "b" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"5 of 12 image files cannot be read: a/0\.png \(.*; a/1\.png .*; \.\.\.$"):
        read("folder:d", tmp_path)
    raw = read("folder:d", tmp_path, skip_corrupt=True)
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 3
    assert raw.notes["corrupt_files_skipped"] == 5
    assert raw.notes["corrupt_files"] == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"]
    expected = np.asarray(Image.open(tmp_path / "d/b/3.png")).transpose(2, 0, 1)
    assert np.array_equal(raw.train.inputs[4], expected)


def test_class_with_corrupt_images_only_is_refused_even_when_skipping(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"a/1.png": (4, 4)})
    (tmp_path / "d" / "b").mkdir()
    (tmp_path / "d" / "b" / "1.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="too few readable images are left in the train split"):
        read("folder:d", tmp_path, skip_corrupt=True)


def test_blocks_of_one_image_read_what_one_block_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path / "d", {f"{name}/{i}.png": (5, 4) for name in "ab" for i in range(4)})
    whole = read("folder:d", tmp_path).train.inputs.copy()
    monkeypatch.setattr("metasearch.tasks.image_files.BLOCK_BYTES", 1)
    listing = list_images(tmp_path / "d")
    parts = read_images(listing, image_size=None, skip_corrupt=False, scratch=tmp_path).train
    assert np.array_equal(parts.inputs, whole)


def test_bad_folders_are_refused_with_the_rule_they_break(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="at least two class folders with images in them, found none"):
        list_images(tmp_path / "empty")
    save_images(tmp_path, {"one/a/1.png": (4, 4)})
    with pytest.raises(InputError, match="at least two class folders with images in them, found a"):
        list_images(tmp_path / "one")
    (tmp_path / "one" / "b").mkdir()
    with pytest.raises(InputError, match="one/b: the class folder holds no image files"):
        list_images(tmp_path / "one")
    save_images(tmp_path, {f"split/{name}.png": (4, 4) for name in ("train/a/1", "train/b/1", "test/a/1", "test/c/1")})
    with pytest.raises(InputError, match=r"the train split has no folder for a class, got \['c'\]"):
        list_images(tmp_path / "split")
    with pytest.raises(NotFoundError, match="nowhere: there is no such folder"):
        list_images(tmp_path / "nowhere")
    save_images(tmp_path, {f"vals/{name}/1.png": (4, 4) for name in ("train/a", "train/b", "val/a", "valid/a")})
    with pytest.raises(InputError, match="more than one validation folder"):
        list_images(tmp_path / "vals")
    save_images(tmp_path, {f"flat/{name}.png": (4, 4) for name in ("train/a/1", "train/b/1", "test/1")})
    with pytest.raises(InputError, match="flat/test: the split holds no image files in class folders"):
        list_images(tmp_path / "flat")


# registered names and spellings


def test_digits_are_bytes_over_the_whole_range(tmp_path: Path) -> None:
    raw = read("digits", tmp_path)
    assert raw.train.inputs.shape == (1797, 1, 8, 8)
    assert (raw.train.inputs.min(), raw.train.inputs.max()) == (0, 255)
    assert raw.test is None


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "usps", "cifar10"])
def test_missing_data_name_the_place_and_both_ways_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        read(name, tmp_path)
    for part in (name, str(tmp_path), "--data-root", "--download"):
        assert part in str(caught.value)


def test_download_is_called_only_when_asked_for_and_data_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool, bool]] = []

    def download(root: str, *, train: bool, download: bool) -> None:
        calls.append((root, train, download))
        for part, values in (("images-idx3", np.zeros((10, 2, 2), np.uint8)), ("labels-idx1", np.arange(10))):
            raw_folder = Path(root) / "MNIST" / "raw"
            raw_folder.mkdir(parents=True, exist_ok=True)
            split = "train" if train else "t10k"
            (raw_folder / f"{split}-{part}-ubyte").write_bytes(to_idx(values.astype(np.uint8)))

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    with pytest.raises(NotFoundError):
        read("mnist", tmp_path)
    assert calls == []
    assert len(read("mnist", tmp_path, download=True).train) == 10
    read("mnist", tmp_path, download=True)
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]


def test_failed_download_is_a_not_found_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: str, *, train: bool, download: bool) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(NotFoundError, match=r"cifar10: cannot be downloaded into .*network is unreachable"):
        read("cifar10", tmp_path, download=True)


def test_cifar10_batches_are_read_through_their_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for index, name in enumerate(CIFAR10_FILES):
        names = [str(i) for i in range(10)]
        batch = {"data": np.full((10, 3072), index, np.uint8), "labels": list(range(10)), "label_names": names}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with pytest.raises(InputError, match="is not the CIFAR-10 data"):
        read("cifar10", tmp_path)
    batches = [[name, sums[name]] for name in CIFAR10_FILES[:5]]
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", batches)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr("torchvision.datasets.CIFAR10.meta", meta)
    raw = read("cifar10", tmp_path)
    assert raw.test is not None
    assert raw.train.inputs.shape == (50, 3, 32, 32)
    assert raw.test.inputs.shape == (10, 3, 32, 32)
    assert int(raw.test.inputs.max()) == 5


def test_usps_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "USPS").mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / "USPS" / name).write_bytes(bz2.compress(b"1 1:0.5 2:0.1"))
    with pytest.raises(InputError, match="is not the USPS data"):
        read("usps", tmp_path)


@pytest.mark.slow
def test_usps_bytes_equal_those_of_torchvision(shared_data: Path, tmp_path: Path) -> None:
    from torchvision.datasets import USPS

    source, argument = find_source("usps")
    request = Request(argument, shared_data)
    raw = source.read(request, source.locate(request), tmp_path)
    reference = USPS(str(shared_data / "USPS"), train=False)
    assert raw.test is not None
    assert np.array_equal(raw.test.inputs[:, 0], reference.data)
    assert raw.test.labels.tolist() == reference.targets


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("fashion-mnist", "fashion_mnist"),
        ("Cifar10", "cifar10"),
        ("floder:photos", "folder:"),
        ("folder:", "folder:"),
    ],
)
def test_unknown_task_lists_the_names_and_the_nearest(text: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        find_source(text)
    message = str(caught.value)
    assert all(name in message for name in (*REGISTERED, "folder:", "npz:", "idx:", "python:"))
    assert f"did you mean {meant}?" in message


def test_unknown_task_that_is_a_folder_is_told_the_prefix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean folder:{tmp_path}"):
        find_source(str(tmp_path))


def test_relative_path_is_looked_for_in_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    for folder, classes in ((here, 2), (root, 3)):
        folder.mkdir()
        np.savez(folder / "a.npz", x=np.zeros((6, 4)), y=np.arange(6) % classes)
    monkeypatch.chdir(here)
    assert len(read("npz:a.npz", root).class_names) == 2
    (here / "a.npz").unlink()
    assert len(read("npz:a.npz", root).class_names) == 3
    with pytest.raises(NotFoundError, match=r"b\.npz: there is no such file or folder; looked at .*here.* and .*root"):
        read("npz:b.npz", root)
