from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metasearch.errors import InputError, NotFoundError
from metasearch.tasks import Augmentation, Normalisation, Split, Task, TaskSource, load_task
from metasearch.tasks.prepared import cache_key, fingerprint
from metasearch.tasks.splits import SPLITS
from metasearch.tasks.unlabelled import Mixing, mixtures
from tests.data_files import save_images


def save_npz(path: Path, count: int = 120, *, shape: tuple[int, ...] = (8, 8), seed: int = 7) -> str:
    """Write `count` random byte images of three classes; return the TASK text."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 3)
    return f"npz:{path}"


def rows(inputs: torch.Tensor | None) -> list[bytes]:
    assert inputs is not None
    return [row.tobytes() for row in inputs.numpy()]


def load(text: str, unlabelled: str | None, **options: Any) -> Task:
    return load_task(TaskSource(text, unlabelled=unlabelled, **options))


def python_task() -> Task:
    """A task of byte images 0, 1, 2, ... whose own unlabelled images are 20, 21, ..., 59; 30 to 39 are validation."""
    images = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 1, 8, 8).contiguous()
    labels = torch.arange(60) % 2
    train, validation = Split(images[:30], labels[:30]), Split(images[30:40], labels[30:40])
    normalisation = Normalisation((1 / 255,), (0.0,))
    return Task(
        "own", train, validation, validation, ("a", "b"), normalisation, Augmentation(), "", unlabelled=images[20:]
    )


def test_rest_is_what_max_train_leaves_out_and_nothing_else(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    whole, cut = load(text, None), load(text, "rest", max_train=30)
    assert set(rows(cut.unlabelled)) == set(rows(whole.train.inputs)) - set(rows(cut.train.inputs))
    assert cut.unlabelled is not None
    assert len(cut.unlabelled) == len(whole.train) - 30
    assert cut.unlabelled.dtype == torch.uint8
    assert cut.provenance["unlabelled"] == {"source": "rest", "examples": 53, "of": 53, "equal_to_held_out": 0}
    for name in SPLITS:
        assert torch.equal(getattr(cut, name).inputs, getattr(load(text, None, max_train=30), name).inputs)


def test_rest_of_a_number_is_a_seeded_choice(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    every = set(rows(load(text, "rest", max_train=30).unlabelled))
    first, again = (rows(load(text, "rest:20", max_train=30).unlabelled) for _ in range(2))
    assert first == again
    assert len(set(first)) == 20
    assert set(first) < every
    assert set(rows(load(text, "rest:20", max_train=30, seed=1).unlabelled)) != set(first)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mixture_lies_between_two_different_examples_and_each_is_mixed_as_often(
    tmp_path: Path, dtype: type[np.uint8] | type[np.float32]
) -> None:
    corners = (np.eye(5) * 200).astype(dtype)  # a mixture shows in its two entries of which it is made, and how much
    mixed, again, other = (
        np.asarray(mixtures(corners, Mixing.draw(40, examples=5, seed=seed), file=tmp_path / f"{name}.npy"))
        for name, seed in enumerate((3, 3, 4))
    )
    assert mixed.dtype == dtype
    assert set((mixed > 0).sum(axis=1)) <= {1, 2}
    assert np.abs(mixed.astype(float).sum(axis=1) - 200).max() <= 1
    assert (mixed.max(axis=0) > 100).all()
    assert len(np.unique(mixed, axis=0)) > 30
    assert (mixed == again).all()
    assert (mixed != other).any()


def test_mixed_is_made_of_the_training_examples_alone(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    task = load(text, "mixed", max_train=30)
    assert task.unlabelled is not None
    assert task.unlabelled.shape == (300, *task.input_shape)
    flat, train = (t.flatten(1).double() for t in (task.unlabelled, task.train.inputs))
    # what is left of each mixture outside the span of the training images: rounding alone
    rest = flat - (torch.linalg.pinv(train.T) @ flat.T).T @ train
    assert float(rest.abs().max()) < 2
    fewer = load(text, "mixed:7", max_train=30).unlabelled
    assert fewer is not None
    assert len(fewer) == 7


def test_images_equal_to_a_held_out_one_are_never_unlabelled(tmp_path: Path) -> None:
    distinct = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    images = np.concatenate([distinct, distinct, distinct, distinct])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(120) % 3)
    task = load(f"npz:{tmp_path}/a.npz", "rest", max_train=6)
    held_out = set(rows(task.validation.inputs)) | set(rows(task.test.inputs))
    assert not held_out & set(rows(task.unlabelled))
    record = task.provenance["unlabelled"]
    assert record["examples"] + record["equal_to_held_out"] == record["of"]
    assert record["equal_to_held_out"] > 0


def test_another_task_gives_its_train_images_resized(tmp_path: Path) -> None:
    text, other = save_npz(tmp_path / "a.npz"), save_npz(tmp_path / "b.npz", shape=(20, 20), seed=1)
    task = load(text, other, image_size=8)
    assert sorted(rows(task.unlabelled)) == sorted(rows(load(other, None, image_size=8).train.inputs))
    with pytest.raises(InputError, match=r"unlabelled: must have the shape .*--image-size.*task=\(1, 8, 8\), unl"):
        load(text, other)


def test_same_task_gives_no_held_out_image(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    task = load(text, text, max_train=30)
    assert sorted(rows(task.unlabelled)) == sorted(rows(load(text, None).train.inputs))


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((8, 8, 3), 3)])
def test_folder_of_images_at_any_depth_takes_the_task_s_channels(
    tmp_path: Path, shape: tuple[int, ...], channels: int
) -> None:
    text = save_npz(tmp_path / "a.npz", shape=shape)
    save_images(tmp_path / "d", {"1.png": (8, 8), "deep/er/2.png": (8, 8), "deep/.hidden.png": (8, 8)})
    save_images(tmp_path / "d", {"grey/3.png": (8, 8)}, mode="L")
    (tmp_path / "d" / "notes.txt").write_text("no image")
    task = load(text, f"images:{tmp_path}/d")
    assert task.unlabelled is not None
    assert tuple(task.unlabelled.shape) == (3, channels, 8, 8)
    grey = np.asarray(Image.open(tmp_path / "d/grey/3.png"), np.uint8)
    assert np.repeat(grey[None], channels, axis=0).tobytes() in rows(task.unlabelled)
    assert task.provenance["unlabelled"]["other_files_ignored"] == 1


def test_folder_of_images_of_another_size_needs_an_image_size(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    save_images(tmp_path / "d", {"1.png": (9, 8)}, mode="L")
    with pytest.raises(InputError, match=r"unlabelled=\(1, 8, 9\)"):
        load(text, f"images:{tmp_path}/d")
    save_images(tmp_path / "d", {"2.png": (30, 20)}, mode="L")
    with pytest.raises(InputError, match=r"images:.*differing sizes need --image-size: 1\.png is 9x8, 2\.png is 30x20"):
        load(text, f"images:{tmp_path}/d")
    task = load(text, f"images:{tmp_path}/d", image_size=8)
    assert task.unlabelled is not None
    assert len(task.unlabelled) == 2


def test_unreadable_unlabelled_image_is_refused_or_skipped_and_named(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    save_images(tmp_path / "d", {"1.png": (8, 8)})
    (tmp_path / "d" / "2.png").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"images:.*/d: 1 of 2 image files cannot be read: 2\.png"):
        load(text, f"images:{tmp_path}/d")
    task = load(text, f"images:{tmp_path}/d", skip_corrupt=True)
    assert task.provenance["unlabelled"]["corrupt_files"] == ["2.png"]


def test_unlabelled_inputs_change_the_fingerprint_and_only_where_they_are(tmp_path: Path) -> None:
    text = save_npz(tmp_path / "a.npz")
    splits = {name: getattr(load(text, None), name) for name in SPLITS}
    assert load(text, None).fingerprint == fingerprint(splits, ("0", "1", "2"))
    texts = [None, "rest", "rest:9", "rest:10", text]
    assert len({load(text, unlabelled, max_train=30).fingerprint for unlabelled in texts}) == len(texts)


def test_task_without_unlabelled_inputs_keeps_its_fingerprint_and_its_place_in_the_cache(
    tmp_path: Path, metasearch_home: Path
) -> None:
    images = (np.arange(24 * 64) % 251).astype(np.uint8).reshape(24, 1, 8, 8)
    split = Split(torch.from_numpy(images), torch.arange(24) % 3)
    # as computed before there were unlabelled inputs
    expected = "72b02a15395ad6f51672ac39bd3eab5dcc5ff786682139888b5f1de953a34bc2"
    assert fingerprint(dict.fromkeys(SPLITS, split), ("a", "b", "c")) == expected
    text = save_npz(tmp_path / "a.npz")
    load_task(text)
    options = {"max_train": None, "image_size": None, "seed": 0, "skip_corrupt": False}
    (folder,) = (metasearch_home / "cache" / "tasks").iterdir()
    assert folder.name == cache_key(text, options, [tmp_path / "a.npz"])


def test_unlabelled_inputs_are_mapped_from_the_cache_until_their_files_change(
    tmp_path: Path, metasearch_home: Path
) -> None:
    text = save_npz(tmp_path / "a.npz")
    save_images(tmp_path / "d", {"1.png": (8, 8)}, mode="L")
    source = TaskSource(text, unlabelled=f"images:{tmp_path}/d")
    first, again = load_task(source), load_task(TaskSource(**json.loads(json.dumps(asdict(source)))))
    assert rows(first.unlabelled) == rows(again.unlabelled)
    assert len(list((metasearch_home / "cache" / "tasks").iterdir())) == 1
    save_images(tmp_path / "d", {"1.png": (8, 8), "2.png": (8, 8)}, mode="L")
    assert len(rows(load_task(source).unlabelled)) == 2


def test_absolute_source_finds_its_unlabelled_inputs_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_npz(tmp_path / "a.npz")
    save_npz(tmp_path / "b.npz", seed=1)
    save_images(tmp_path / "d", {"1.png": (8, 8)}, mode="L")
    monkeypatch.chdir(tmp_path)
    sources = [TaskSource("npz:a.npz", max_train=30, unlabelled=text) for text in ("npz:b.npz", "images:d", "rest")]
    here = [load_task(source).fingerprint for source in sources]
    absolute = [source.absolute() for source in sources]
    monkeypatch.chdir("/")
    assert [load_task(source).fingerprint for source in absolute] == here


def test_given_task_takes_unlabelled_inputs_or_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_tasks", sys.modules[__name__])
    own = load("python:own_tasks:python_task", None)
    assert sorted(row[0] for row in rows(own.unlabelled)) == [*range(20, 30), *range(40, 60)]
    assert own.provenance["unlabelled"]["equal_to_held_out"] == 10
    rest = load("python:own_tasks:python_task", "rest", max_train=10)
    kept = {row[0] for row in rows(rest.train.inputs)}
    assert {row[0] for row in rows(rest.unlabelled)} == set(range(30)) - kept
    without = replace(python_task(), unlabelled=None)
    assert (
        len({own.fingerprint, rest.fingerprint, fingerprint({n: getattr(without, n) for n in SPLITS}, ("a", "b"))}) == 3
    )


@pytest.mark.parametrize(
    ("unlabelled", "options", "said"),
    [
        ("rest", {}, "unlabelled: nothing is left out without max_train, got 'rest'"),
        ("rest:", {"max_train": 30}, "must be spelled rest or rest:N"),
        ("rest:0", {"max_train": 30}, "must be spelled rest or rest:N"),
        ("rest:-3", {"max_train": 30}, "must be spelled rest or rest:N"),
        ("rest:ten", {"max_train": 30}, "must be spelled rest or rest:N"),
        ("rest:54", {"max_train": 30}, "unlabelled: there must be at least 54 beside .*, got 53"),
        ("rest", {"max_train": 1000}, "unlabelled: there must be at least 1 beside .*, got 0"),
        ("mixed:0", {}, "must be spelled mixed or mixed:N, with N at least 1, got 'mixed:0'"),
        ("digitz", {}, "did you mean digits"),
        ("images:.", {}, "the folder holds no image files"),
    ],
)
def test_unlabelled_text_that_breaks_a_rule_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabelled: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        load(save_npz(tmp_path / "a.npz"), unlabelled, **options)


def test_unlabelled_inputs_of_another_kind_or_place_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.random.default_rng(0).random((60, 4)), y=np.arange(60) % 3)
    save_images(tmp_path / "d", {"1.png": (8, 8)})
    with pytest.raises(InputError, match="unlabelled: image files do not suit"):
        load(f"npz:{tmp_path}/v.npz", f"images:{tmp_path}/d")
    with pytest.raises(InputError, match=r"task=\(4,\), unlabelled=\(1, 8, 8\)"):
        load(f"npz:{tmp_path}/v.npz", save_npz(tmp_path / "a.npz"))
    with pytest.raises(NotFoundError, match="nowhere"):
        load(f"npz:{tmp_path}/v.npz", f"images:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    "unlabelled", [torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9).byte()]
)
def test_task_refuses_unlabelled_inputs_unlike_its_own(unlabelled: torch.Tensor) -> None:
    with pytest.raises(InputError, match="unlabelled inputs must be there, of the shape and type of train's"):
        replace(python_task(), unlabelled=unlabelled)
