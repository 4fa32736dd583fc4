from __future__ import annotations

import asyncio
import io
import json
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image
from starlette.types import Receive, Scope, Send

from metasearch.serving import app as serving_app
from metasearch.serving.answers import Answer
from metasearch.serving.batching import NoAnswerError
from tests.serving.asking import PNG, ask, cats, make_service, open_app, predicted, told

TOKEN = "a-token-of-a-test"
MULTIPART = {"Content-Type": "multipart/form-data; boundary=xyz"}


def parts(*files: tuple[str, bytes]) -> bytes:
    heads = [f'--xyz\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n' for name, _ in files]
    bodies = [head.encode() + content + b"\r\n" for head, (_, content) in zip(heads, files, strict=True)]
    return b"".join(bodies) + b"--xyz--\r\n"


def test_an_image_is_answered_with_its_class_the_others_and_the_model() -> None:
    service = make_service()
    answer = predicted(open_app(service), b"pix", b"els")
    assert answer.status == 200
    assert answer.json() == {
        "class": "cat",
        "probability": 0.75,
        "top": [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}],
        "model": {"name": "pets-trial-3", "digest": service.served.bundle.digest},
    }


def test_files_of_a_form_are_answered_in_their_order_by_name() -> None:
    answer = predicted(open_app(make_service()), parts(("a.png", b"1"), ("ü.png", b"2")), headers=MULTIPART)
    assert answer.status == 200
    assert [(found["file"], found["class"]) for found in answer.json()["predictions"]] == [
        ("a.png", "cat"),
        ("ü.png", "cat"),
    ]


def test_rows_are_answered_one_by_one() -> None:
    async def predict(bodies: list[bytes]) -> list[Answer]:
        return [[[("cat", 1.0)]] * len(json.loads(body)["rows"]) for body in bodies]

    app = open_app(make_service(predict, shape=(2,)))
    answer = predicted(app, b'{"rows": [[1, 2], [3, 4]]}', headers={"Content-Type": "application/json; charset=utf-8"})
    assert [found["class"] for found in answer.json()["predictions"]] == ["cat", "cat"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"bad", PNG, 400, "is damaged"),
        (parts(("a.png", b"1"), ("b.png", b"bad")), MULTIPART, 400, "b.png: is damaged"),
        (b"pixels", {}, 415, "the content type must be image/*"),
        (b"pixels", {"Content-Type": "text/html"}, 415, "got 'text/html'"),
        (b"{}", {"Content-Type": "application/json"}, 415, "got 'application/json'"),
        (b"x" * 301, PNG, 413, "the body must have at most 300 bytes"),
        (b"", PNG | {"Content-Length": "301"}, 413, "the body must have at most 300 bytes"),
        (b"", PNG | {"Content-Length": "9" * 5000}, 413, "the body must have at most 300 bytes"),
        (b"--abc\r\n", MULTIPART, 400, "the body must begin with the boundary"),
        (b"", {"Content-Type": "multipart/form-data"}, 400, "the content type must name a boundary"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = predicted(open_app(make_service(most_bytes=300)), body, headers=headers)
    assert answer.status == status
    assert list(answer.json()) == ["error"]
    assert reason in answer.json()["error"]


def test_images_of_a_form_may_have_so_many_pixels_together() -> None:
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "GIF")
    gif, app = bytearray(file.getvalue()), open_app(make_service())
    gif[6:10] = 2 * (5000).to_bytes(2, "little")
    most = [(str(number), bytes(gif)) for number in range(4)]
    assert predicted(app, parts(*most, ("b", b"damaged")), headers=MULTIPART).status == 200
    answer = predicted(app, parts(*most, ("b", file.getvalue())), headers=MULTIPART)
    assert answer.status == 400
    assert answer.json() == {"error": "the images must have at most 100000000 pixels together"}


def test_a_body_in_pieces_is_refused_as_soon_as_it_is_too_large() -> None:
    answer = predicted(open_app(make_service(most_bytes=100)), b"x" * 60, b"x" * 60, ended=False)
    assert answer.status == 413


def test_a_body_that_does_not_come_takes_no_place_but_its_bytes_count_until_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_app, "MOST_HELD_BYTES", 10)

    async def run() -> None:
        service = make_service(body_s=0.05, most_bytes=10, most_waiting=1)
        app = open_app(service)
        slow = asyncio.create_task(ask(app, "/predict", method="POST", body=[b"the first"], headers=PNG, ended=False))
        await asyncio.sleep(0.01)
        assert [(await post(app, body)).status for body in (b"1", b"22")] == [200, 503]
        refused = await slow
        assert (refused.status, refused.headers["connection"]) == (408, "close")
        assert (service.waiting, service.held_bytes) == (0, 0)

    asyncio.run(run())


def test_more_requests_than_may_wait_are_refused_with_a_time_to_come_again() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def predict(bodies: list[bytes]) -> list[Answer]:
            await release.wait()
            return await cats(bodies)

        app = open_app(make_service(predict, most_waiting=2))
        waiting = [asyncio.create_task(post(app)) for _ in range(2)]
        await asyncio.sleep(0.01)
        refused = await post(app)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await ask(app, "/healthz")).status == 200
        release.set()
        assert [(await task).status for task in waiting] == [200, 200]
        assert (await post(app)).status == 200

    asyncio.run(run())


async def post(app: Any, body: bytes = b"pixels") -> Any:
    return await ask(app, "/predict", method="POST", body=[body], headers=PNG)


def test_a_failure_of_our_own_is_told_as_json_and_raised_for_the_log() -> None:
    async def predict(bodies: list[bytes]) -> list[Answer]:
        raise RuntimeError("a bug")

    app = open_app(make_service(predict))
    with pytest.raises(RuntimeError, match="a bug"):
        predicted(app, b"pixels")

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(RuntimeError):
            await app(scope, receive, send)

    answer = predicted(quiet, b"pixels")
    assert (answer.status, answer.json()) == (500, {"error": "the service failed"})


def test_a_replica_that_died_is_no_fault_of_the_client() -> None:
    async def predict(bodies: list[bytes]) -> list[Answer]:
        raise NoAnswerError("the replica that had the request died")

    app = open_app(make_service(predict))
    answer = predicted(app, b"pixels")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert told(app, "/readyz").status == 503
    assert told(app, "/healthz").status == 200


def test_it_is_ready_once_the_model_answers() -> None:
    assert told(open_app(make_service()), "/readyz").json() == {"status": "ready"}


def test_the_model_says_what_it_takes_and_gives() -> None:
    service = make_service(most_bytes=7)
    assert told(open_app(service), "/model").json() == {
        "name": "pets-trial-3",
        "digest": service.served.bundle.digest,
        "input_shape": [1, 8, 8],
        "classes": ["cat", "dog"],
        "most_bytes": 7,
    }


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/predict/", "POST", 404), ("/predict", "GET", 405), ("/model", "POST", 405)],
)
def test_other_routes_and_methods_are_refused_as_json(path: str, method: str, status: int) -> None:
    answer = told(open_app(make_service()), path, method=method)
    assert (answer.status, list(answer.json())) == (status, ["error"])


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js"])
def test_the_page_may_load_nothing_from_elsewhere(path: str) -> None:
    answer = told(open_app(make_service(), token=TOKEN), path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body


@pytest.mark.parametrize("path", ["/predict", "/model", "/metrics", "/nothing"])
@pytest.mark.parametrize("given", ["", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é", TOKEN])
def test_without_the_token_nothing_of_the_model_is_told(path: str, given: str) -> None:
    answer = told(open_app(make_service(), token=TOKEN), path, headers={"Authorization": given} if given else {})
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.body.decode()


def test_with_the_token_all_is_answered() -> None:
    app = open_app(make_service(), token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        assert predicted(app, b"pixels", headers=PNG | {"Authorization": f"{scheme} {TOKEN}"}).status == 200


def test_probes_need_no_token() -> None:
    app = open_app(make_service(), token=TOKEN)
    assert [told(app, path).status for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:8000", 200), ("evil.example", 403), ("", 403)])
def test_another_sites_name_for_this_machine_is_refused(host: str, status: int) -> None:
    app = open_app(make_service(), hosts={"127.0.0.1:8000"})
    assert told(app, "/model", headers={"Host": host}).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_the_page_of_another_site_may_not_post_but_may_link_here(headers: dict[str, str], status: int) -> None:
    app = open_app(make_service(), hosts={"127.0.0.1:8000"})
    assert predicted(app, b"pixels", headers=PNG | headers).status == status
    assert told(app, "/", headers=headers).status == 200


def test_metrics_count_requests_batches_and_seconds_and_name_the_model() -> None:
    service = make_service()
    app = open_app(service)
    for body in (b"good", b"bad", b"good"):
        predicted(app, body)
    told(app, "/no\nsuch")
    answer = told(app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.body.decode().splitlines()
    for line in (
        'metasearch_requests_total{path="/predict",status="200"} 2.0',
        'metasearch_requests_total{path="/predict",status="400"} 1.0',
        'metasearch_requests_total{path="other",status="404"} 1.0',
        "metasearch_predict_seconds_count 3.0",
        "metasearch_batch_size_sum 3.0",
        "metasearch_waiting_requests 0.0",
        f'metasearch_model_info{{digest="{service.served.bundle.digest}",name="pets-trial-3"}} 1.0',
    ):
        assert line in lines
