"""The HTTP application over a model in service: its routes, its limits, and who may ask.

Every refusal is JSON, {"error": "..."}. 400 a body that cannot be read, 401 no or another token, 403 another host's
name or another site's page, 404 and 405 no such route, 408 a body that does not come, 413 too large, 415 another
content type, 500 our bug, 503 too many requests, or the replica that had it died or takes too long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metasearch.bundle.contents import Bundle
from metasearch.bundle.predict import ImageError
from metasearch.bundle.runtime import Prediction, described
from metasearch.serving.answers import Answer, check_pixels
from metasearch.serving.batching import Batcher, NoAnswerError
from metasearch.serving.guard import guarded
from metasearch.serving.metrics import CONTENT_TYPE, Metrics
from metasearch.serving.multipart import MultipartError, boundary_of, read_parts

READY_S = 5.0
MOST_HELD_BYTES = 256 * 10**6
"""Of the bodies that are in memory at once, whole or in part; one may always be."""
AGAIN = {"Retry-After": "1"}
PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
OPEN_TO_ALL = {*FILES, "/healthz", "/readyz"}
"""What a token is not asked for: nothing here says anything of the model."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer."""
ENCODED = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


@dataclass(frozen=True)
class Limits:
    """What a request may take, and how many wait for each other.

    most_bytes: of a body, which must have come within body_s. most_waiting: predictions whose body is there, and that
    are not answered yet, at once. most_batch: bodies that go to a replica together. batch_wait_s: how long one waits
    for as many as came last.
    """

    most_bytes: int = 10 * 10**6
    most_waiting: int = 128
    most_batch: int = 32
    batch_wait_s: float = 0.002
    body_s: float = 30.0


@dataclass(frozen=True)
class Served:
    """A bundle in service, and the way to its replicas. name: of their application in Ray Serve."""

    bundle: Bundle
    batcher: Batcher
    name: str

    @cached_property
    def model(self) -> dict[str, str]:
        """What every answer says of the model."""
        return {"name": self.bundle.name, "digest": self.bundle.digest}


class Service:
    """The model that answers now, which a reload replaces, the predictions that wait and the bytes of all bodies."""

    def __init__(self, served: Served, *, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.waiting = self.held_bytes = 0
        self.put(served)

    def check_room(self) -> None:
        """Raise HTTPException where no more predictions may wait."""
        if self.waiting >= self.limits.most_waiting:
            raise HTTPException(503, f"{self.waiting} requests wait already", AGAIN)

    def put(self, served: Served) -> None:
        """Let this model answer what is asked from now on."""
        self.served = served
        self.metrics.tell_model(served.bundle)


def make_app(service: Service, *, token: str | None, hosts: Collection[str] | None) -> ASGIApp:
    """Return the application.

    token: what everyone must bring who asks for more than the page. hosts: the names that a request may ask for, and
    whose pages may post, None for any.
    """

    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        service.check_room()  # before its body is read
        try:
            return await _predict(service, request)
        finally:
            service.metrics.seconds.observe(time.perf_counter() - started)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        try:
            await asyncio.wait_for(service.served.batcher.probe(), READY_S)
        except (NoAnswerError, TimeoutError) as error:
            raise HTTPException(503, "the model does not answer", AGAIN) from error
        return JSONResponse({"status": "ready"})

    async def model(request: Request) -> Response:
        bundle = service.served.bundle
        takes = {"input_shape": bundle.input_shape, "most_bytes": service.limits.most_bytes}
        return JSONResponse(service.served.model | takes | {"classes": bundle.class_names})

    async def metrics(request: Request) -> Response:
        service.metrics.waiting.set(service.waiting)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    routes = [
        Route("/predict", predict, methods=["POST"]),
        *(Route(path, _file(PAGE / name)) for path, name in FILES.items()),
        Route("/model", model),
        Route("/metrics", metrics),
        Route("/healthz", health),
        Route("/readyz", ready),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refusal, Exception: _failure})
    app.router.redirect_slashes = False  # as the rest, they are no such route
    paths = {route.path for route in routes}
    return _counted(guarded(app, token=token, hosts=hosts, open_to_all=OPEN_TO_ALL), service.metrics, paths)


async def _predict(service: Service, request: Request) -> Response:
    is_image = service.served.bundle.is_image
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    several = is_image and kind == "multipart/form-data"
    if not (several or _fits(kind, is_image=is_image)):
        wanted = "image/*, application/octet-stream or multipart/form-data" if is_image else "application/json"
        raise HTTPException(415, f"the content type must be {wanted}, got {kind[:80]!r}")
    async with _body(request, service) as body:
        parts = await _files(body, content_type) if several else [("", body)]
        with _place(service):
            served = service.served  # what follows reaches its batcher before anything else can happen
            try:
                answers = await served.batcher.answers([content for _, content in parts])
            except NoAnswerError as error:
                raise HTTPException(503, str(error), AGAIN) from error
    found = [
        ({"file": name} if several else {}) | described(prediction)
        for (name, _), answer in zip(parts, answers, strict=True)
        for prediction in _unrefused(answer, place=f"{name or 'part'}: " if several else "")
    ]
    return JSONResponse((found[0] if is_image and not several else {"predictions": found}) | {"model": served.model})


def _fits(kind: str, *, is_image: bool) -> bool:
    if is_image:  # which image it is, its content says
        return kind.startswith("image/") or kind == "application/octet-stream"
    return kind == "application/json"


@asynccontextmanager
async def _body(request: Request, service: Service) -> AsyncIterator[bytes]:
    """Yield the request's body, which counts among the bytes in memory until the block ends.

    Raises HTTPException for one that is too large, and where the rest does not come.
    """
    limits = service.limits
    too_large = HTTPException(413, f"the body must have at most {limits.most_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limits.most_bytes):  # int() limits digits, too
        raise too_large
    chunks, size = [], 0
    try:
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    service.held_bytes += len(chunk)
                    if size > limits.most_bytes:
                        raise too_large
                    if service.held_bytes > max(MOST_HELD_BYTES, limits.most_bytes):
                        raise HTTPException(503, f"{service.held_bytes} bytes wait already", AGAIN)
                    chunks.append(chunk)
        except TimeoutError as error:
            refusal = f"the body must come within {limits.body_s:g} s"
            raise HTTPException(408, refusal, {"Connection": "close"}) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the client went away") from error  # which nobody reads
        yield b"".join(chunks)
    finally:
        service.held_bytes -= size


@contextmanager
def _place(service: Service) -> Iterator[None]:
    """Count a prediction among those that wait until the block ends. Raises HTTPException where too many do."""
    service.check_room()
    service.waiting += 1
    try:
        yield
    finally:
        service.waiting -= 1


async def _files(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Return the names and contents of a form's images. Raises HTTPException where they are none or too large."""
    try:
        parts = read_parts(body, boundary_of(content_type))
        await asyncio.to_thread(check_pixels, [content for _, content in parts])
    except (MultipartError, ImageError) as error:
        raise HTTPException(400, str(error)) from error
    return parts


def _unrefused(answer: Answer, *, place: str) -> list[Prediction]:
    if isinstance(answer, str):
        raise HTTPException(400, place + answer)
    return answer


def _file(path: Path) -> Callable[[Request], Any]:
    content = path.read_bytes()

    async def show(request: Request) -> Response:
        return Response(content, media_type=TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    return show


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed"}, 500)  # its traceback goes to stderr


def _counted(app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> ASGIApp:
    """Return the app with its answers counted, and each with the headers that all have."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in paths else "other"
                metrics.requests.labels(path, message["status"]).inc()
                message["headers"] = [*message["headers"], *ENCODED]
            await send(message)

        await app(scope, receive, sending if scope["type"] == "http" else send)

    return counted
