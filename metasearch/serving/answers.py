"""What the bodies of a batch are answered: each is decoded, then the network runs once. Knows neither HTTP nor Ray.

Symbols: N inputs, those of all bodies together; F features; K classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from metasearch.bundle.contents import Bundle
from metasearch.bundle.predict import ImageError, open_image, read_image, softmax
from metasearch.bundle.runtime import Classifier, Prediction, likeliest
from metasearch.functions import first_line

TOP = 10
"""Classes of an answer, the most probable first."""
MOST_PIXELS, MOST_FORM_PIXELS = 25_000_000, 100_000_000
"""Of an image, or of all in a form, by their headers: 100 MB once they are decoded with their transparency."""
MOST_ROWS = 1000

Answer = list[Prediction] | str
"""Of one body: the predictions of its inputs, of TOP classes at most, or in one line why it is refused."""


class RowsError(ValueError):
    """Why a body is no JSON of rows, in one line."""


def answer_bodies(classifier: Classifier, bodies: Sequence[bytes]) -> list[Answer]:
    """Return each body's answer. A body is an image file, or for a network of vectors the JSON of `read_json_rows`."""
    decoded = [_decoded(body, classifier.bundle.input_shape) for body in bodies]
    inputs = [found for found in decoded if not isinstance(found, str)]
    with np.errstate(over="ignore", invalid="ignore"):  # what no float holds is refused below
        rows = iter(softmax(classifier.logits(np.concatenate(inputs))) if inputs else ())
    return [
        found if isinstance(found, str) else _answer(classifier.bundle, [next(rows) for _ in found])
        for found in decoded
    ]


def check_pixels(images: Sequence[bytes]) -> None:
    """Raise ImageError where images have more than MOST_FORM_PIXELS together, by their headers.

    Damaged ones have none.
    """
    total = 0
    for content in images:
        with suppress(Exception), open_image(io.BytesIO(content)) as opened:  # `read_image` says why
            total += opened.width * opened.height
        if total > MOST_FORM_PIXELS:
            raise ImageError(f"the images must have at most {MOST_FORM_PIXELS} pixels together")


def read_json_rows(body: bytes, features: int) -> np.ndarray:
    """Return the vectors (N, F) float32 in the JSON `{"rows": [[...], ...]}`, 1 <= N <= MOST_ROWS.

    Raises RowsError, one line, for anything else.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RowsError(f"is no JSON ({first_line(error)})") from error
    if not isinstance(document, dict) or set(document) != {"rows"} or not isinstance(document["rows"], list):
        raise RowsError('must be {"rows": [[...], ...]}')
    if not 1 <= len(document["rows"]) <= MOST_ROWS:
        raise RowsError(f"must hold 1 to {MOST_ROWS} rows, got {len(document['rows'])}")
    for number, row in enumerate(document["rows"]):
        if not isinstance(row, list) or len(row) != features or {type(value) for value in row} - {int, float}:
            raise RowsError(f"row {number}: must be {features} numbers")
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            rows = np.array(document["rows"], np.float32)
    except OverflowError as error:  # an integer that no float can hold
        raise RowsError("must hold finite numbers only") from error
    if not np.isfinite(rows).all():
        raise RowsError("must hold finite numbers only")
    return rows


def _decoded(body: bytes, input_shape: tuple[int, ...]) -> np.ndarray | str:
    try:
        if len(input_shape) == 1:
            return read_json_rows(body, input_shape[0])
        return read_image(io.BytesIO(body), input_shape, most_pixels=MOST_PIXELS)[None]
    except (ImageError, RowsError) as error:
        return str(error)


def _answer(bundle: Bundle, probabilities: Sequence[np.ndarray]) -> Answer:
    """Return the answer to one body, by the probabilities (K,) of each of its inputs."""
    for number, row in enumerate(probabilities):
        if not np.isfinite(row).all():
            return ("" if bundle.is_image else f"row {number}: ") + "is beyond what the network can compute"
    return [
        [(name, round(share, 6)) for name, share in likeliest(row, bundle.class_names, top=TOP)]
        for row in probabilities
    ]
