from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metasearch.bundle.predict import read_image
from metasearch.bundle.runtime import Classifier, open_bundle
from metasearch.serving.answers import MOST_PIXELS, MOST_ROWS, TOP, Answer, RowsError, answer_bodies, read_json_rows
from tests.bench.malformed import Body, malformed_images, malformed_rows
from tests.bundle.stand_ins import write_stand_in
from tests.serving.asking import make_bundle, make_service, open_app, predicted


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("images") / "bundle"
    write_stand_in(folder, shape=(3, 8, 8))
    return open_bundle(folder)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("vectors") / "bundle"
    write_stand_in(folder, shape=(6,), family="mlp")
    return open_bundle(folder)


def encoded(seed: int, *, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_answers_of_a_batch_are_those_of_each_image_alone_however_bad_the_others(images: Classifier) -> None:
    bodies = [encoded(0), b"noise", encoded(1, size=(20, 11)), encoded(2)[:80], encoded(3, kind="JPEG"), b""]
    answers = answer_bodies(images, bodies)
    for body, answer in zip(bodies, answers, strict=True):
        if isinstance(answer, str):
            assert [answer] == answer_bodies(images, [body])
            assert "\n" not in answer
        else:
            [(name, probability)] = images.classify(read_image(io.BytesIO(body), (3, 8, 8))[None])
            [[best, *rest]] = answer
            assert best[0] == name
            assert best[1] == pytest.approx(probability, abs=1e-4)
            assert [share for _, share in rest] == sorted((share for _, share in rest), reverse=True)
            assert sum(share for _, share in answer[0]) == pytest.approx(1, abs=1e-4)
    assert [isinstance(answer, str) for answer in answers] == [False, True, False, True, False, True]


def test_a_batch_of_nothing_but_bad_images_and_an_empty_one_are_answered(images: Classifier) -> None:
    assert [type(answer) for answer in answer_bodies(images, [b"a", b"b"])] == [str, str]
    assert answer_bodies(images, []) == []


def test_of_many_classes_the_most_probable_are_told() -> None:
    names = tuple(f"class {number}" for number in range(50))
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)

    class Session:
        def run(self, *arguments: Any) -> list[np.ndarray]:
            return [logits]

    classifier = Classifier(replace(make_bundle(shape=(3, 8, 8)), class_names=names), Session())
    [answer] = answer_bodies(classifier, [encoded(0)])
    assert not isinstance(answer, str)
    best = sorted(range(50), key=lambda index: -logits[0, index])[:TOP]
    assert [name for name, _ in answer[0]] == [names[index] for index in best]


def test_an_image_of_too_many_pixels_is_refused_by_its_header(images: Classifier) -> None:
    head = Image.new("1", (MOST_PIXELS // 1000 + 1, 1000))
    file = io.BytesIO()
    head.save(file, "PNG")
    [answer] = answer_bodies(images, [file.getvalue()[:100]])  # nothing to decode is there
    assert isinstance(answer, str)
    assert "pixels, more than" in answer


def test_rows_are_answered_one_by_one_beside_other_bodies(vectors: Classifier) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    bodies = [json.dumps({"rows": part.tolist()}).encode() for part in (rows[:2], rows[2:])]
    first, bad, second = answer_bodies(vectors, [bodies[0], b"[]", bodies[1]])
    assert isinstance(bad, str)
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    found = [prediction[0][0] for prediction in (*first, *second)]
    assert found == [name for name, _ in vectors.classify(rows)]


def test_a_row_beyond_what_the_network_computes_is_refused_and_no_other(vectors: Classifier) -> None:
    good, too_large = [0.5] * 6, [3e38] * 6
    bodies = [json.dumps({"rows": rows}).encode() for rows in ([good, too_large], [good])]
    refused, answer = answer_bodies(vectors, bodies)
    assert refused == "row 1: is beyond what the network can compute"
    assert [answer] == answer_bodies(vectors, bodies[1:])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe\xfd", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"rows": [[1, 2]]', "is no JSON"),
        (b"[[1, 2]]", "must be {"),
        (b'{"rows": [[1, 2]], "x": 1}', "must be {"),
        (b'{"rows": {}}', "must be {"),
        (b'{"rows": []}', f"must hold 1 to {MOST_ROWS} rows, got 0"),
        (json.dumps({"rows": [[1, 2]] * (MOST_ROWS + 1)}).encode(), f"got {MOST_ROWS + 1}"),
        (b'{"rows": [[1, 2], [1]]}', "row 1: must be 2 numbers"),
        (b'{"rows": [[1, true]]}', "row 0: must be 2 numbers"),
        (b'{"rows": [[1, "2"]]}', "row 0: must be 2 numbers"),
        (b'{"rows": [[1, null]]}', "row 0: must be 2 numbers"),
        (b'{"rows": [[1, [2]]]}', "row 0: must be 2 numbers"),
        (b'{"rows": [[1, NaN]]}', "must hold finite numbers only"),
        (b'{"rows": [[1, 1e999]]}', "must hold finite numbers only"),
        (b'{"rows": [[1, 1e39]]}', "must hold finite numbers only"),
        (b'{"rows": [[1, 1' + b"0" * 400 + b"]]}", "must hold finite numbers only"),
        (b'{"rows": [[1, 1' + b"0" * 5000 + b"]]}", "is no JSON"),
    ],
)
def test_json_that_holds_no_rows_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(RowsError) as refused:
        read_json_rows(body, 2)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1)
)
def test_rows_come_through_json_unchanged(rows: list[list[float]]) -> None:
    found = read_json_rows(json.dumps({"rows": rows}).encode(), 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(rows, np.float32))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_bodies_that_are_broken_in_many_ways_are_refused_and_never_fail(
    images: Classifier, vectors: Classifier
) -> None:
    rng = np.random.default_rng(0)
    for classifier, bodies in (
        (images, malformed_images(rng, 300)),
        (vectors, malformed_rows(rng, 300, features=6)),
    ):
        statuses = Counter(status_of(classifier, body) for body in bodies)
        assert set(statuses) <= {200, 400, 415}
        assert statuses[400] > 100


def status_of(classifier: Classifier, body: Body) -> int:
    async def predict(bodies: list[bytes]) -> list[Answer]:
        return answer_bodies(classifier, bodies)

    app = open_app(make_service(predict, shape=classifier.bundle.input_shape))
    return predicted(app, body.content, headers={"Content-Type": body.content_type}).status
