from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasearch.report.task_check import MAX_CLASSES, counts_frame, print_task_check
from metasearch.tasks import Augmentation, Normalisation, Split, Task, TaskSource, load_task
from metasearch.tasks.check import check_task
from metasearch.tasks.findings import TaskCheck
from metasearch.tasks.splits import SPLITS
from tests.data_files import save_images

NAMES = ("cat", "dog", "eel")
Examples = list[tuple[int, int]]

examples = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=15)


def task_of(splits: dict[str, Examples], *, names: tuple[str, ...] = NAMES) -> Task:
    """Return a task of 2x2 images from (value, label) pairs; equal values give equal images, which are not constant."""

    def split(pairs: Examples) -> Split:
        images = np.array([[[[v, v + 1], [v, 200]]] for v, _ in pairs], np.uint8)
        return Split(torch.from_numpy(images), torch.tensor([label for _, label in pairs]))

    return Task(
        name="made",
        train=split(splits["train"]),
        validation=split(splits["validation"]),
        test=split(splits["test"]),
        class_names=names,
        normalisation=Normalisation((1 / 255,), (0.0,)),
        augmentation=Augmentation(),
        fingerprint="",
    )


def distinct(start: int, count: int = 6) -> Examples:
    return [(start + i, i % 3) for i in range(count)]


CLEAN = {"train": distinct(0), "validation": distinct(10), "test": distinct(20)}


def advice(**changes: Examples) -> list[str]:
    """Return the advice for a clean task with some splits replaced."""
    return list(check_task(task_of(CLEAN | changes)).advice)


def test_clean_task_gets_its_counts_and_no_advice() -> None:
    found = check_task(task_of(CLEAN))
    assert found.is_clean
    assert found.advice == ()
    assert found.counts == {name: {"cat": 2, "dog": 2, "eel": 2} for name in SPLITS}
    assert found.imbalance == 1.0
    assert (found.repeats, found.conflicts, found.constants) == ((), None, ())


@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, examples)))
def test_repeats_and_conflicts_equal_those_of_brute_force(splits: dict[str, Examples]) -> None:
    found = check_task(task_of(splits))
    counts: dict[tuple[str, str], int] = Counter()
    for at, name in enumerate(SPLITS):
        for position, (value, _) in enumerate(splits[name]):
            for other in SPLITS[: at + 1]:
                before = splits[other][:position] if other == name else splits[other]
                counts[name, other] += any(value == known for known, _ in before)
    assert {(r.split, r.of): r.count for r in found.repeats} == {pair: n for pair, n in counts.items() if n}
    for repeats in found.repeats:
        here, there = repeats.example
        assert splits[repeats.split][here][0] == splits[repeats.of][there][0]
        assert repeats.split != repeats.of or there < here
    labels: dict[int, set[int]] = {}
    for pairs in splits.values():
        for value, label in pairs:
            labels.setdefault(value, set()).add(label)
    conflicting = sum(len(of_value) > 1 for of_value in labels.values())
    assert (0 if found.conflicts is None else found.conflicts.count) == conflicting
    if found.conflicts is not None:
        (split, position, name), (other_split, other_position, other_name) = found.conflicts.example
        assert splits[split][position][0] == splits[other_split][other_position][0]
        assert name == NAMES[splits[split][position][1]] != other_name
    assert found.is_clean == (not any(pair[0] != pair[1] for pair in counts if counts[pair]))


@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, examples)))
def test_check_survives_json(splits: dict[str, Examples]) -> None:
    found = check_task(task_of(splits))
    assert TaskCheck.from_json(found.to_json()) == found


def test_leak_into_the_test_split_is_said_in_a_sentence_and_is_not_clean() -> None:
    (sentence,) = advice(test=[*distinct(20), (0, 0), (3, 0)])
    assert sentence == (
        "2 test images are also in train (test 6 is train 0): test accuracy will be too high; remove them"
    )
    (sentence,) = advice(test=[*distinct(20), (15, 2)])
    assert sentence.startswith("1 test image is also in validation (test 6 is validation 5): test accuracy will")
    assert not check_task(task_of(CLEAN | {"validation": [*distinct(10), (5, 2)]})).is_clean


def test_repeated_conflicting_and_missing_examples_are_advised_on_but_clean() -> None:
    (sentence,) = advice(train=[*distinct(0), (5, 2)])
    assert sentence == "1 train image repeats another of the split (train 6 is train 5): it counts more than once"
    sentences = advice(train=[*distinct(0), (5, 1)])
    assert "1 image bears more than one label (train 5 is eel, train 6 the same but dog)" in sentences[0]
    assert advice(test=[(20, 0), (21, 0)]) == ["the test split has no example of 2 classes (dog, eel)"]
    assert check_task(task_of(CLEAN | {"train": [*distinct(0), (5, 1)]})).is_clean


def test_imbalance_is_the_ratio_of_the_largest_class_to_the_smallest() -> None:
    train = [(i, 0) for i in range(9)] + [(100, 1), (101, 1), (102, 2), (103, 2)]
    found = check_task(task_of(CLEAN | {"train": train, "validation": distinct(50)}))
    assert found.imbalance == 4.5
    (sentence,) = found.advice
    assert sentence.startswith("the largest class has 4.5 times the train examples of the smallest (cat 9, dog 2)")
    assert "val_balanced_accuracy" in sentence


def test_images_of_one_colour_are_counted_and_one_is_named() -> None:
    task = task_of(CLEAN)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8)
    images[4] = np.array([1, 2, 3])[:, None, None]
    images[5] = 7
    images[3, :2] = 0  # the third channel still varies
    colour = {
        name: replace(getattr(task, name), inputs=torch.from_numpy(images + k * 16)) for k, name in enumerate(SPLITS)
    }
    found = check_task(replace(task, **colour))
    assert [(c.split, c.count, c.example) for c in found.constants] == [(name, 2, 4) for name in SPLITS]
    assert "2 train images are of one colour only (train 4): look whether they show anything" in found.advice
    assert found.is_clean


def test_channel_statistics_are_those_of_the_pixels_in_the_unit_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), np.uint8)
    task = task_of(CLEAN)
    other = [np.random.default_rng(seed).integers(0, 256, (6, 3, 5, 4), np.uint8) for seed in (1, 2)]
    colour = dict(zip(SPLITS, (images, *other), strict=True))
    changed: dict[str, Any] = {n: replace(getattr(task, n), inputs=torch.from_numpy(v)) for n, v in colour.items()}
    found = check_task(replace(task, **changed))
    assert found.channel_mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)).tolist())
    assert found.channel_std == pytest.approx((images / 255).std(axis=(0, 2, 3)).tolist())


def test_small_chunks_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of({"train": [(i % 5, i % 3) for i in range(20)], "validation": distinct(3), "test": distinct(0)})
    whole = check_task(task)
    monkeypatch.setattr("metasearch.tasks.prepared.CHUNK_BYTES", 1)
    assert check_task(task) == whole


def test_vectors_have_constant_features_named_by_their_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(90), "same": 3, "y": np.arange(90) % 3})
    frame.to_csv(tmp_path / "a.csv", index=False)
    found = check_task(load_task(f"table:{tmp_path}/a.csv"))
    assert found.constant_features == ("same",)
    assert found.advice == ("1 feature never changes in train (same): leave out what is constant",)
    assert (found.channel_mean, found.constants) == ((), ())


def test_corrupt_files_are_named_and_counted_and_are_not_clean(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {f"{name}/{i:02d}.png": (8, 8) for name in "ab" for i in range(12)})
    for name in ("a/03.png", "b/00.png"):
        (tmp_path / "d" / name).write_bytes(b"junk")
    found = check_task(load_task(TaskSource(f"folder:{tmp_path}/d", skip_corrupt=True)))
    assert (found.corrupt, found.corrupt_count) == (("a/03.png", "b/00.png"), 2)
    assert not found.is_clean
    assert found.advice[0].startswith("2 image files cannot be read (a/03.png, b/00.png): repair or remove them")
    assert found.counts["train"]["a"] + found.counts["validation"]["a"] + found.counts["test"]["a"] == 11


def test_unlabelled_images_are_counted_and_their_corrupt_files_too(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"1.png": (8, 8), "2.png": (8, 8)}, mode="L")
    (tmp_path / "d" / "3.png").write_bytes(b"junk")
    found = check_task(load_task(TaskSource("digits", unlabelled=f"images:{tmp_path}/d", skip_corrupt=True)))
    assert (found.unlabelled, found.corrupt) == (2, ("3.png",))


# what is printed


def test_few_classes_have_a_row_each_and_many_are_summed_up() -> None:
    found = check_task(task_of(CLEAN))
    assert counts_frame(found)["class"].tolist() == [*NAMES, "all"]
    many = {f"class {i}": i + 1 for i in range(MAX_CLASSES + 1)}
    frame = counts_frame(replace(found, counts=dict.fromkeys(SPLITS, many)))
    assert frame["class"].tolist() == ["smallest class", "largest class", "all"]
    assert frame["train"].tolist() == [1, MAX_CLASSES + 1, sum(many.values())]


def test_printed_check_holds_counts_statistics_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    found = check_task(task_of(CLEAN | {"test": [*distinct(20), (0, 0)]}))
    print_task_check(found)
    out = capsys.readouterr().out
    assert "made: 1x2x2 images (channels x height x width), 3 classes" in out
    assert f"channel mean (train, in [0, 1]): {found.channel_mean[0]:.4f}" in out
    assert f"- {found.advice[0]}\n" in out
    assert "nothing wrong" not in out
    print_task_check(check_task(task_of(CLEAN)))
    assert "nothing wrong found" in capsys.readouterr().out


def test_real_digits_check_agrees_with_numpy() -> None:
    task = load_task("digits")
    found = check_task(task)
    images = np.concatenate([getattr(task, name).inputs.numpy().reshape(-1, 64) for name in SPLITS])
    assert (found.repeats == ()) == (len(np.unique(images, axis=0)) == len(images))
    assert sum(sum(counts.values()) for counts in found.counts.values()) == 1797
