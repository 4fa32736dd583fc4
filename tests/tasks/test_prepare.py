from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.folders import cache_folder, home_folder
from metasearch.tasks import Augmentation, Normalisation, Split, Task, TaskSource, load_task
from metasearch.tasks.prepare import resize
from metasearch.tasks.prepared import fingerprint, fit_normalisation
from metasearch.tasks.raw import RawData, RawSplit
from metasearch.tasks.splits import SPLITS, choose, choose_splits, equal_counts, proportional_counts

Snapshot = dict[str, tuple[int, int]]

class_counts = st.lists(st.integers(0, 40), min_size=1, max_size=8).map(lambda counts: np.asarray(counts, np.int64))


def snapshot(root: Path) -> Snapshot:
    """Return path -> (size, mtime) of everything below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def save_npz(path: Path, count: int = 60, *, shape: tuple[int, ...] = (8, 8), classes: int = 3, seed: int = 0) -> None:
    """Write `count` random byte images, the classes in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % classes)


def split_of(inputs: npt.NDArray[Any]) -> Split:
    """Return a split with labels 0, 0, ..."""
    return Split(torch.from_numpy(inputs), torch.zeros(len(inputs), dtype=torch.int64))


def rows(split: Split) -> list[bytes]:
    """Return the bytes of each input."""
    return [row.tobytes() for row in split.inputs.numpy()]


def python_task() -> Task:
    """What `python:` finds in this module: byte images 0, 1, 2, ... of two classes."""
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 12, 12).contiguous()
    split = Split(images, torch.arange(40) % 2)
    return Task("mine", split, split, split, ("a", "b"), Normalisation((0.5,), (1.0,)), Augmentation(3), "")


# subsets and splits


@given(class_counts, st.integers(0, 200))
def test_equal_counts_are_exact_in_sum_and_as_equal_as_can_be(available: npt.NDArray[np.int64], total: int) -> None:
    counts = equal_counts(available, total)
    assert counts.sum() == min(total, available.sum())
    assert (counts <= available).all()
    assert (counts >= 0).all()
    unfinished = counts[counts < available]
    if len(unfinished):
        assert counts.max() - unfinished.min() <= 1


@given(class_counts, st.integers(0, 200))
def test_proportional_counts_follow_the_shares_and_leave_one_of_each(
    available: npt.NDArray[np.int64], total: int
) -> None:
    counts = proportional_counts(available, total)
    most = int(np.maximum(available - 1, 0).sum())
    assert counts.sum() == min(total, most)
    assert (counts[available > 0] < available[available > 0]).all()
    exact = available * total / max(1, available.sum())
    if (exact <= available - 1).all():
        assert (np.abs(counts - exact) < 1).all()


@given(st.lists(st.integers(0, 4), min_size=5, max_size=80), st.integers(5, 40), st.integers(0, 3))
def test_chosen_positions_are_distinct_sorted_and_seeded(labels: list[int], total: int, seed: int) -> None:
    array = np.asarray(labels, np.int64)
    first, again = (
        choose(array, total, counts_rule=equal_counts, classes=5, rng=np.random.default_rng(seed)) for _ in range(2)
    )
    assert first.tolist() == again.tolist() == sorted(set(first.tolist()))
    expected = equal_counts(np.bincount(array, minlength=5), total)
    assert np.bincount(array[first], minlength=5).tolist() == expected.tolist()


@given(st.integers(0, 5), st.sampled_from([None, 6, 20]))
def test_splits_made_from_one_are_disjoint_and_stratified(seed: int, max_train: int | None) -> None:
    labels = np.repeat(np.arange(3), [120, 60, 36])
    raw = RawData(RawSplit(np.arange(216, dtype=np.float32)[:, None], labels), None, None, ("a", "b", "c"))
    chosen, sizes = choose_splits("here", raw, max_train=max_train, seed=seed)
    positions = np.concatenate([chosen[name][1] for name in SPLITS])
    assert len(np.unique(positions)) == len(positions)
    assert np.bincount(labels[chosen["test"][1]]).tolist() == [20, 10, 6]
    assert sizes["test"] == {"examples": 36, "of": 36, "origin": "held out of train"}
    assert sizes["validation"]["of"] == 30
    if max_train is None:
        assert np.bincount(labels[chosen["train"][1]]).tolist() == [83, 42, 25]
    else:
        counts = np.bincount(labels[chosen["train"][1]])
        assert counts.sum() == max_train
        assert counts.max() - counts.min() <= 1


def test_validation_is_at_most_ten_thousand_and_then_follows_max_train() -> None:
    labels = np.arange(70_000) % 2
    train = RawSplit(np.zeros((70_000, 1), np.float32), labels)
    raw = RawData(train, None, RawSplit(train.inputs[:10], labels[:10]), ("a", "b"))
    for max_train, expected in ((None, 10_000), (30_000, 10_000), (4_000, 2_000), (100, 500)):
        chosen, _ = choose_splits("here", raw, max_train=max_train, seed=0)
        assert len(chosen["validation"][1]) == expected
        assert len(chosen["test"][1]) == 10


def test_test_split_does_not_depend_on_max_train(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz")
    whole, cut = (load_task(TaskSource(f"npz:{tmp_path}/a.npz", max_train=limit)) for limit in (None, 9))
    assert rows(whole.test) == rows(cut.test)
    assert set(rows(cut.train)) < set(rows(whole.train))


def test_leading_part_of_a_sorted_train_split_has_every_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((300, 4)), y=np.repeat(np.arange(3), 100))
    task = load_task(f"npz:{tmp_path}/a.npz")
    for split in (task.train, task.validation):
        assert set(split.labels[:25].tolist()) == {0, 1, 2}


def test_too_few_examples_for_a_split_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4)), y=np.arange(2))
    with pytest.raises(InputError, match="too few examples to hold some out for test"):
        load_task(f"npz:{tmp_path}/a.npz")


# normalisation, resizing, fingerprint, augmentation


@pytest.mark.parametrize("shape", [(50, 3, 7, 5), (50, 6)])
def test_normalised_train_split_has_zero_mean_and_unit_variance(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape)
    split = split_of(values.astype(np.uint8 if len(shape) == 4 else np.float32))
    normalised = fit_normalisation(split)(split.inputs).double()
    axes = [0] if len(shape) == 2 else [0, 2, 3]
    assert normalised.mean(axes).abs().max() < 1e-5
    assert (normalised.std(axes, correction=0) - 1).abs().max() < 1e-5


def test_constant_channel_or_feature_is_normalised_to_zero() -> None:
    for values in (np.full((9, 2, 4, 4), 200, np.uint8), np.full((9, 3), 1e8, np.float32)):
        split = split_of(values)
        normalised = fit_normalisation(split)(split.inputs)
        assert torch.equal(normalised, torch.zeros_like(normalised))


def test_resized_image_averages_its_pixels_and_stays_within_bytes() -> None:
    images = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (3, 1, 64, 48))
    resized = resize(images, 8)
    assert resized.shape == (3, 1, 8, 8)
    assert resized.dtype == np.uint8
    assert abs(float(resized.mean()) - float(images.mean())) < 4
    assert resized.std() < 40
    assert resize(resized, 8) is resized
    assert set(resize(np.full((1, 3, 9, 9), 77, np.uint8), 20).ravel().tolist()) == {77}


def test_resized_folder_and_resized_archive_are_nearly_the_same(tmp_path: Path) -> None:
    ramps = np.random.default_rng(0).integers(0, 255, (24, 3, 3, 1)).repeat(3, axis=3).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(r).resize((40, 40), Image.Resampling.BICUBIC)) for r in ramps])
    labels = np.repeat(np.arange(2), 12)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "d" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image, "RGB").save(tmp_path / "d" / str(label) / f"{index:02d}.png")
    first, second = (
        load_task(TaskSource(f"{kind}", image_size=12)) for kind in (f"npz:{tmp_path}/a.npz", f"folder:{tmp_path}/d")
    )
    grey = second.train.inputs.int().sum(1) / 3
    assert (first.train.inputs.int().sum(1) / 3 - grey).abs().max() <= 2


def test_fingerprint_changes_with_every_part_it_covers() -> None:
    def task_fingerprint(**changes: Any) -> str:
        given_parts = {"value": 0, "label": 0, "shape": (4, 3), "names": ("a", "b"), **changes}
        splits = {}
        for name in SPLITS:
            inputs = torch.zeros(given_parts["shape"])
            inputs[-1, -1] = given_parts["value"] if name == "test" else 0
            splits[name] = Split(inputs, torch.tensor([0, 1, 0, given_parts["label"]]))
        return fingerprint(splits, given_parts["names"])

    changes: list[dict[str, Any]] = [{}, {"value": 1}, {"label": 1}, {"shape": (4, 4)}, {"names": ("a", "c")}]
    assert len({task_fingerprint(**change) for change in changes}) == len(changes)
    assert task_fingerprint() == task_fingerprint()


@pytest.mark.parametrize(
    ("augment", "expected"),
    [(None, (2, False)), ("none", (0, False)), ("shift", (2, False)), ("shift+flip", (2, True))],
)
def test_augment_option_overrides_the_source(tmp_path: Path, augment: str | None, expected: tuple[int, bool]) -> None:
    save_npz(tmp_path / "a.npz", shape=(24, 30))
    task = load_task(TaskSource(f"npz:{tmp_path}/a.npz", augment=augment))
    assert task.augmentation == Augmentation(*expected)


def test_digits_are_not_augmented_unless_asked() -> None:
    assert load_task("digits").augmentation == Augmentation()
    assert load_task(TaskSource("digits", augment="shift")).augmentation == Augmentation(1)


# the prepared cache


def test_task_loaded_again_is_mapped_from_the_cache_and_equal(tmp_path: Path, metasearch_home: Path) -> None:
    save_npz(tmp_path / "a.npz")
    source = TaskSource(f"npz:{tmp_path}/a.npz", max_train=30, image_size=10)
    first = load_task(source)
    before = snapshot(metasearch_home)
    again = load_task(TaskSource(**json.loads(json.dumps(dataclasses.asdict(source)))))
    assert snapshot(metasearch_home) == before
    assert first.fingerprint == again.fingerprint
    for name in SPLITS:
        assert torch.equal(getattr(first, name).inputs, getattr(again, name).inputs)
        assert torch.equal(getattr(first, name).labels, getattr(again, name).labels)
    assert dataclasses.replace(first, train=again.train, validation=again.validation, test=again.test) == again
    assert json.loads(json.dumps(again.provenance)) == again.provenance
    assert first.input_shape == (1, 10, 10)
    assert home_folder() == metasearch_home


def test_writing_to_a_loaded_tensor_leaves_the_cache_alone(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz")
    task = load_task(f"npz:{tmp_path}/a.npz")
    kept = task.train.inputs.clone()
    task.train.inputs.zero_()
    assert torch.equal(load_task(f"npz:{tmp_path}/a.npz").train.inputs, kept)


@pytest.mark.parametrize("option", [{"seed": 1}, {"max_train": 12}, {"image_size": 9}])
def test_option_changes_the_prepared_task(tmp_path: Path, option: dict[str, int]) -> None:
    save_npz(tmp_path / "a.npz")
    text = f"npz:{tmp_path}/a.npz"
    assert load_task(text).fingerprint != load_task(TaskSource(text, **option)).fingerprint  # type: ignore[arg-type]  # ints only


def test_changed_data_are_prepared_again(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz")
    first = load_task(f"npz:{tmp_path}/a.npz").fingerprint
    save_npz(tmp_path / "a.npz", seed=1)
    assert load_task(f"npz:{tmp_path}/a.npz").fingerprint != first


def test_image_added_to_a_folder_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.new("L", (8, 8), index).save(tmp_path / name / f"{index}.png")
    before = load_task(f"folder:{tmp_path}")
    Image.new("L", (8, 8), 99).save(tmp_path / "a" / "new.png")
    after = load_task(f"folder:{tmp_path}")
    sizes = [sum(len(getattr(task, name)) for name in SPLITS) for task in (before, after)]
    assert sizes == [12, 13]
    assert (before.classes, before.input_shape) == (2, (1, 8, 8))


def test_damaged_cache_is_prepared_again(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz")
    first = load_task(f"npz:{tmp_path}/a.npz")
    (folder,) = (cache_folder() / "tasks").iterdir()
    (folder / "train_inputs.npy").write_bytes((folder / "train_inputs.npy").read_bytes()[:200])
    assert load_task(f"npz:{tmp_path}/a.npz").fingerprint == first.fingerprint
    (folder / "task.json").write_text("{")
    assert load_task(f"npz:{tmp_path}/a.npz").fingerprint == first.fingerprint
    assert [path.name for path in (cache_folder() / "tasks").iterdir()] == [folder.name]


def test_many_at_once_prepare_one_task_and_all_succeed(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", count=600, shape=(20, 20))
    with ThreadPoolExecutor(6) as pool:
        tasks = list(pool.map(load_task, [f"npz:{tmp_path}/a.npz"] * 6))
    assert len({task.fingerprint for task in tasks}) == 1
    assert len(list((cache_folder() / "tasks").iterdir())) == 1


def test_refused_data_leave_nothing_in_the_cache(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", shape=(8, 8))
    save_npz(tmp_path / "b.npz", shape=(9, 8))
    with pytest.raises(InputError, match="train and test must have one shape, got train="):
        load_task(f"npz:{tmp_path}/a.npz,{tmp_path}/b.npz")
    assert list((cache_folder() / "tasks").iterdir()) == []
    assert load_task(TaskSource(f"npz:{tmp_path}/a.npz,{tmp_path}/b.npz", image_size=8)).input_shape == (1, 8, 8)


def test_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="METASEARCH_HOME"):
        load_task("digits")


def test_absolute_source_loads_the_same_task_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_npz(tmp_path / "a.npz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    here = load_task("npz:a.npz")
    source = TaskSource("npz:a.npz").absolute()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError):
        load_task("npz:a.npz")
    assert load_task(source).fingerprint == here.fingerprint
    assert len(list((cache_folder() / "tasks").iterdir())) == 1


# options and python tasks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 7}, r"image_size: must lie in 8\.\.224, got 7"),
        ({"image_size": 225}, "image_size"),
        ({"max_train": 1}, "max_train"),
        ({"seed": -1}, "seed"),
        ({"augment": "rotate"}, "augment: must be one of none, shift, shift"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TaskSource("digits", **options)


def test_option_that_does_not_suit_the_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.random.default_rng(0).random((60, 4)), y=np.arange(60) % 3)
    np.savez(tmp_path / "one.npz", x=np.zeros((60, 4)), y=np.zeros(60, int))
    for text, options, said in (
        ("v", {"image_size": 8}, "vectors have no image size"),
        ("v", {"augment": "shift"}, "vectors can neither be shifted nor flipped"),
        ("v", {"max_train": 2}, "at least one example for each of the 3 classes"),
        ("one", {}, "needs at least two classes"),
    ):
        with pytest.raises(InputError, match=said):
            load_task(TaskSource(f"npz:{tmp_path}/{text}.npz", **options))
    assert load_task(f"npz:{tmp_path}/v.npz").augmentation == Augmentation()


def test_python_function_gives_its_task_with_options_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_tasks", sys.modules[__name__])
    whole = load_task("python:my_tasks:python_task")
    cut = load_task(TaskSource("python:my_tasks:python_task", max_train=10, image_size=8, augment="shift+flip"))
    assert (whole.name, len(whole.train), whole.augmentation) == ("mine", 40, Augmentation(3))
    assert len(whole.fingerprint) == 64
    assert (len(cut.train), cut.input_shape, cut.augmentation) == (10, (1, 8, 8), Augmentation(1, flip=True))
    assert cut.train.labels.bincount().tolist() == [5, 5]
    assert cut.normalisation == whole.normalisation
    assert cut.fingerprint != whole.fingerprint


def test_python_module_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_for_task.py").write_text("def broken():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="must return a metasearch"):
        load_task("python:module_for_task:broken")
    with pytest.raises(NotFoundError, match="has no function missing"):
        load_task("python:module_for_task:missing")
    with pytest.raises(NotFoundError, match="no_such_module"):
        load_task("python:no_such_module:f")
    with pytest.raises(InputError, match="must be spelled python:package"):
        load_task("python:module_for_task")


# real data


@pytest.mark.parametrize(
    ("text", "options", "shape", "sizes"),
    [
        ("mnist", {"max_train": 1000}, (1, 28, 28), (1000, 500, 10000)),
        ("fashion_mnist", {"max_train": 1000, "image_size": 14}, (1, 14, 14), (1000, 500, 10000)),
        pytest.param("usps", {}, (1, 16, 16), (6076, 1215, 2007), marks=pytest.mark.slow),
        pytest.param(
            "folder:SignLanguageDigits/Dataset",
            {"image_size": 32},
            (3, 32, 32),
            (1432, 286, 344),
            marks=pytest.mark.slow,
        ),
        (
            "npz:CMATERdb/telugu-numerals/training-images.npz,CMATERdb/telugu-numerals/testing-images.npz",
            {},
            (3, 32, 32),
            (2083, 417, 500),
        ),
        (
            "idx:notMNIST/raw/t10k-images-idx3-ubyte.gz,notMNIST/raw/t10k-labels-idx1-ubyte.gz",
            {},
            (1, 28, 28),
            (6944, 1389, 1667),
        ),
        (
            "idx:KannadaMNIST/raw/X_kannada_MNIST_test-idx3-ubyte.gz,KannadaMNIST/raw/y_kannada_MNIST_test-idx1-ubyte.gz",
            {},
            (1, 28, 28),
            (6944, 1389, 1667),
        ),
    ],
)
def test_real_data_load_and_their_root_is_not_written_to(
    shared_data: Path, text: str, options: dict[str, int], shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    before = snapshot(shared_data)
    task = load_task(TaskSource(text, data_root=str(shared_data), **options))  # type: ignore[arg-type]  # ints only
    assert snapshot(shared_data) == before
    assert task.input_shape == shape
    assert task.classes == 10
    assert (len(task.train), len(task.validation), len(task.test)) == sizes
    assert all(set(getattr(task, name).labels.tolist()) == set(range(10)) for name in SPLITS)
    normalised = task.normalisation(task.train.inputs)
    assert abs(float(normalised.mean())) < 1e-3
    assert abs(float(normalised.std()) - 1) < 0.05


def test_cached_task_loads_in_well_under_a_tenth_of_a_second(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_DATA", os.fspath(shared_data))
    source = TaskSource("fashion_mnist", max_train=10_000)
    load_task(source)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        task = load_task(source)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
    assert task.train.labels.bincount().tolist() == [1000] * 10
    assert task.class_names[0] == "T-shirt/top"
    assert task.augmentation == Augmentation(2, flip=True)
