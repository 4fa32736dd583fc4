"""What the winner says of the test split: by class, the confusion matrix, and the images that it gets wrong.

K classes, n test examples. The split is read here only after the final runs have read it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasearch.errors import MetasearchError, StorageError
from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import Axis, Figure, Series, TextTable
from metasearch.search.artefacts import fetch, joined, trial_folder

ONNX_FILE = "model.onnx"
"""metasearch.pipeline.ONNX_FILE, which is not imported here because it loads torch."""
BATCH = 256
MOST_WRONG = 24
MOST_CLASSES = 50
"""Classes beyond which a confusion matrix is a blur; the table by class stays."""

Array = NDArray[Any]


@dataclass(frozen=True)
class WrongImage:
    """png: as a data URI. confidence: the softmax of the class that was predicted."""

    png: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Predictions:
    """by_class: precision, recall and F1. confusion: None with too many classes. wrong: the surest first."""

    accuracy: float
    by_class: TextTable
    confusion: Figure | None
    wrong: tuple[WrongImage, ...]
    wrong_count: int


def predictions(facts: Facts, number: int, *, artefacts: Mapping[str, str]) -> Predictions | str:
    """Return what a trial's ONNX file predicts of the test split, or why that is not known here.

    It is known where the trial's final runs are done, its file is there, and the task is prepared on this machine.
    artefacts: SHA-256 of the trial's files, by name.
    """
    if not any(run["role"] == "final" and run["of"] == number for run in facts.controls):
        return "its final runs are not done, and until then nothing reads the test split"
    description = facts.head.description
    folder = trial_folder(joined(description["artefacts"], facts.name), number)
    try:
        file = fetch(joined(folder, ONNX_FILE), artefacts[ONNX_FILE]) if ONNX_FILE in artefacts else None
    except StorageError as error:
        return f"its network is not to be had: {error}"
    if file is None:
        return "its network is not to be had from this machine"
    from metasearch.tasks import TaskSource, load_task

    try:
        task = load_task(TaskSource(**description["task"]), prepare=False)
    except MetasearchError:
        return "its data are not prepared on this machine"
    if task.fingerprint != description["fingerprint"]:
        return "the data of this name on this machine are other ones"
    inputs, labels = task.test.inputs.numpy(), task.test.labels.numpy()
    return described(logits_of(file, inputs), inputs, labels, task.class_names, index=facts.index)


def logits_of(file: Path, inputs: Array) -> Array:
    """Return (n, K) what an ONNX file of ours gives for inputs at rest, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    batches = (np.ascontiguousarray(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH))
    return np.concatenate([session.run(["logits"], {"input": batch})[0] for batch in batches])


def described(logits: Array, inputs: Array, labels: Array, names: Sequence[str], *, index: int) -> Predictions:
    """Return the predictions of logits (n, K) for inputs (n, ...) with labels (n,), as tables and figures."""
    predicted = logits.argmax(axis=1)
    counts = confusion_counts(labels, predicted, len(names))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = shares.max(axis=1) / shares.sum(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_WRONG]
    images = inputs.ndim == 4
    return Predictions(
        accuracy=float(np.mean(predicted == labels)),
        by_class=class_table(counts, names),
        confusion=confusion_figure(counts, names, index=index) if len(names) <= MOST_CLASSES else None,
        wrong=tuple(
            WrongImage(png_uri(inputs[i]), names[labels[i]], names[predicted[i]], float(confidence[i])) for i in surest
        )
        if images
        else (),
        wrong_count=len(wrong),
    )


def confusion_counts(labels: Array, predicted: Array, classes: int) -> NDArray[np.int64]:
    """Return (K, K): how many examples of a class (row) were taken for another (column)."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (K, 3) from counts (K, K): 0 where nothing was predicted, or nothing is there."""
    hits = np.diag(counts).astype(float)
    predicted, there = counts.sum(axis=0), counts.sum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros(len(counts)), where=predicted > 0)
    recall = np.divide(hits, there, out=np.zeros(len(counts)), where=there > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(len(counts)), where=both > 0)
    return np.column_stack([precision, recall, f1])


def class_table(counts: NDArray[np.int64], names: Sequence[str]) -> TextTable:
    """Return precision, recall, F1 and the number of examples of each class, and their plain means."""
    scores = precision_recall_f1(counts)
    rows = [
        (str(name), *(f"{score:.3f}" for score in own), str(count))
        for name, own, count in zip(names, scores, counts.sum(axis=1), strict=True)
    ]
    rows.append(("mean of the classes", *(f"{score:.3f}" for score in scores.mean(axis=0)), str(counts.sum())))
    return TextTable(("class", "precision", "recall", "F1", "images"), tuple(rows), numeric=frozenset({1, 2, 3, 4}))


def confusion_figure(counts: NDArray[np.int64], names: Sequence[str], *, index: int) -> Figure:
    """Return the confusion matrix as cells; a cell's colour is its share of the class, its number the count."""
    texts = distinct([str(name) for name in names])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    places = [(i, j) for i in range(len(texts)) for j in range(len(texts)) if counts[i, j]]
    off = [(int(counts[i, j]), i, j) for i, j in places if i != j]
    worst = max(off, default=None)
    series = Series(
        "images",
        "cells",
        "cells",
        tuple(texts[j] for _, j in places),
        tuple(texts[i] for i, _ in places),
        value=tuple(float(shares[i, j]) for i, j in places),
        text=tuple(str(counts[i, j]) for i, j in places),
    )
    most = f"; most often {texts[worst[1]]} is taken for {texts[worst[2]]}, {worst[0]} times" if worst else ""
    return Figure(
        id=f"confusion-{index}",
        title="Confusion matrix",
        alt=f"{int(np.diag(counts).sum())} of {int(counts.sum())} test examples lie on the diagonal{most}",
        x=Axis("predicted", "category", categories=texts),
        y=Axis("class", "category", categories=texts),
        series=(series,),
        caption="A row is a class; a cell says how many of its test examples were taken for the column's class.",
    )


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that all differ: what stands there before gets a number behind it."""
    found: list[str] = []
    for name in names:
        text, count = name, 1
        while text in found:
            count += 1
            text = f"{name} ({count})"
        found.append(text)
    return tuple(found)


def png_uri(image: Array) -> str:
    """Return an image (C, H, W) uint8, C 1 or 3, as a data URI of a PNG."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else np.moveaxis(image[:3], 0, -1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
