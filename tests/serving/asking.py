"""The application of a service, asked without a socket, over a network that is a function."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from metasearch.bundle.contents import Bundle
from metasearch.serving.answers import Answer
from metasearch.serving.app import Limits, Served, Service, make_app
from metasearch.serving.batching import Batcher, Predict
from metasearch.serving.metrics import Metrics

PNG = {"Content-Type": "image/png"}
CATS_AND_DOGS: list[tuple[str, float]] = [("cat", 0.75), ("dog", 0.25)]


@dataclass(frozen=True)
class Told:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: ASGIApp,
    path: str,
    *,
    method: str = "GET",
    body: Iterable[bytes] = (),
    headers: Mapping[str, str] | None = None,
    ended: bool = True,
) -> Told:
    """Ask an application. body: comes in these pieces; ended: whether anything comes after the last of them."""
    pieces = list(body) or [b""]
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": not ended or index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("nothing more comes")

    async def send(message: Message) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:8000"} | {name.lower(): value for name, value in (headers or {}).items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    start, *rest = sent
    named = {name.decode(): value.decode() for name, value in start["headers"]}
    return Told(start["status"], named, b"".join(message["body"] for message in rest))


def told(app: ASGIApp, path: str, **options: Any) -> Told:
    """Ask an application and wait for what it answers."""
    return asyncio.run(ask(app, path, **options))


def predicted(app: ASGIApp, *body: bytes, headers: Mapping[str, str] = PNG, **options: Any) -> Told:
    """Post a body to /predict and wait for what is answered."""
    return told(app, "/predict", method="POST", body=body, headers=headers, **options)


async def cats(bodies: list[bytes]) -> list[Answer]:
    """Refuse what begins with "bad"; the rest are cats."""
    return ["is damaged" if body.startswith(b"bad") else [CATS_AND_DOGS] for body in bodies]


def make_bundle(name: str = "pets-trial-3", *, shape: tuple[int, ...] = (1, 8, 8)) -> Bundle:
    """Return the description of a bundle that is in no folder."""
    return Bundle(
        folder=Path(),
        name=name,
        class_names=("cat", "dog"),
        input_shape=shape,
        int8=False,
        opset=20,
        normalisation={},
        preprocessing={},
        config={},
        seed=0,
        metrics={},
        final={},
        references={},
        stages=(),
        provenance={},
        parity={},
        files={},
    )


def make_batcher(predict: Predict, *, metrics: Metrics | None = None, limits: Limits | None = None) -> Batcher:
    limits = limits or Limits()
    observe: Callable[[int], object] = (metrics or Metrics()).batches.observe
    return Batcher(predict, most=limits.most_batch, replicas=1, wait_s=limits.batch_wait_s, on_batch=observe)


def make_service(
    predict: Callable[[list[bytes]], Awaitable[list[Answer]]] = cats,
    *,
    shape: tuple[int, ...] = (1, 8, 8),
    **limits: Any,
) -> Service:
    """Return a service of one model. limits: fields of Limits."""
    metrics, limited = Metrics(), Limits(**limits)
    served = Served(make_bundle(shape=shape), make_batcher(predict, metrics=metrics, limits=limited), "model-0")
    return Service(served, limits=limited, metrics=metrics)


def open_app(service: Service, *, token: str | None = None, hosts: Collection[str] | None = None) -> ASGIApp:
    return make_app(service, token=token, hosts=hosts)
