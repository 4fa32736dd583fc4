"""Splits and subsets by class, as positions into the raw data.

Symbols: N examples, K classes; labels (N,) int64 in 0..K-1; positions are int64 indices into the N.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from metasearch.errors import InputError
from metasearch.tasks.raw import RawData, RawSplit

Positions = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Chosen = dict[str, tuple[RawSplit, Positions]]
"""Split name -> raw split, and the positions in it that are kept, in their order."""

SPLITS = ("train", "validation", "test")
HELD_OUT = 1 / 6
"""The fraction of the examples that a split made here takes."""

MAX_VALIDATION = 10_000
MIN_VALIDATION_LIMIT = 500


def proportional_counts(available: Counts, total: int) -> Counts:
    """Return how many of each class to take, in proportion to what is available, `total` in all.

    Largest remainders get what rounding leaves; no class gives its last example, so that none is lost to the rest.
    available: (K,). The sum is below `total` only where the classes have no more to give.
    """
    limit = np.maximum(available - 1, 0)
    exact = available * (total / max(1, int(available.sum())))
    counts: Counts = np.minimum(np.floor(exact).astype(np.int64), limit)
    while counts.sum() < total and (counts < limit).any():
        counts[np.argmax(np.where(counts < limit, exact - counts, -np.inf))] += 1
    return counts


def equal_counts(available: Counts, total: int) -> Counts:
    """Return how many of each class to take, as equal as availability allows, min(total, sum of available) in all.

    available: (K,). Any two classes that have examples left differ by at most one.
    """
    counts = np.zeros_like(available)
    left = min(total, int(available.sum()))
    while left > 0:
        open_classes = np.flatnonzero(counts < available)
        share = left // len(open_classes)
        if share == 0:
            counts[open_classes[:left]] += 1
            break
        step = np.minimum(available[open_classes] - counts[open_classes], share)
        counts[open_classes] += step
        left -= int(step.sum())
    return counts


def choose(
    labels: npt.NDArray[np.int64],
    total: int,
    *,
    counts_rule: Callable[[Counts, int], Counts],
    classes: int,
    rng: np.random.Generator,
) -> Positions:
    """Return sorted positions of about `total` examples, drawn at random within each class by the counts of a rule."""
    counts = counts_rule(np.bincount(labels, minlength=classes), total)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def choose_splits(
    place: str, raw: RawData, *, max_train: int | None, seed: int
) -> tuple[Chosen, dict[str, dict[str, int | str]]]:
    """Return the examples of train, validation and test, and for each its size, the size before any cut and its origin.

    A split that the source lacks is held out of train; see `load_task` for the rules. Each step has its own stream of
    random numbers, so that one more option leaves the others' choices alone: the test split depends on seed only.
    Raises InputError where a class has too few examples for a split to be made.
    """
    classes = len(raw.class_names)
    for_test, for_validation, for_subset, for_order = np.random.default_rng(seed).spawn(4)
    chosen: Chosen = {"train": (raw.train, np.arange(len(raw.train)))}
    origins = dict.fromkeys(SPLITS, "given")
    for name, given, limit, rng in (
        ("test", raw.test, len(raw.train), for_test),
        ("validation", raw.validation, MAX_VALIDATION, for_validation),
    ):
        if given is not None:
            chosen[name] = (given, np.arange(len(given)))
            continue
        positions = chosen["train"][1]
        total = min(max(1, round(len(positions) * HELD_OUT)), limit)
        labels = raw.train.labels[positions]
        held = choose(labels, total, counts_rule=proportional_counts, classes=classes, rng=rng)
        if len(held) == 0:
            raise InputError(place, f"has too few examples to hold some out for {name}", len(positions))
        chosen[name] = (raw.train, positions[held])
        chosen["train"] = (raw.train, np.delete(positions, held))
        origins[name] = "held out of train"
    available = {name: len(chosen[name][1]) for name in SPLITS}
    if max_train is not None:
        for name, limit in (("train", max_train), ("validation", max(max_train // 2, MIN_VALIDATION_LIMIT))):
            split, positions = chosen[name]
            labels = split.labels[positions]
            kept = choose(labels, limit, counts_rule=equal_counts, classes=classes, rng=for_subset)
            chosen[name] = (split, positions[kept])
    for name in ("train", "validation"):
        split, positions = chosen[name]
        chosen[name] = (split, for_order.permutation(positions))
    sizes: dict[str, dict[str, int | str]] = {
        name: {"examples": len(chosen[name][1]), "of": available[name], "origin": origins[name]} for name in SPLITS
    }
    return chosen, sizes


def left_out_of_train(place: str, raw: RawData, *, max_train: int | None, seed: int) -> Positions:
    """Return the sorted positions in raw.train that would be training examples, had max_train not left them out."""
    whole, cut = (choose_splits(place, raw, max_train=limit, seed=seed)[0]["train"][1] for limit in (None, max_train))
    return np.setdiff1d(whole, cut)
