"""The HTTP application over a model in service: its routes, its limits, and who may ask.

Every refusal is JSON, {"error": "..."}. 400 a body that cannot be read, 401 no or another token, 403 another host's
name, 404 and 405 no such route, 408 a body that does not come, 413 too large, 415 another content type, 503 too many
requests, or the replica that had it died.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metasearch.bundle.contents import Bundle
from metasearch.serving.answers import Answer, Prediction
from metasearch.serving.batching import Batcher, NoAnswerError
from metasearch.serving.metrics import CONTENT_TYPE, Metrics
from metasearch.serving.multipart import MultipartError, boundary_of, read_parts

READY_S = 5.0
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

    most_bytes: of a body, which must have come within body_s. most_waiting: predictions that are not answered yet, at
    once. most_batch: bodies that go to a replica together. batch_wait_s: how long one waits for as many as came last.
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
    """The model that answers now, which a reload replaces, and the requests that wait."""

    def __init__(self, served: Served, *, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.waiting = 0
        self.put(served)

    def put(self, served: Served) -> None:
        """Let this model answer what is asked from now on."""
        self.served = served
        self.metrics.tell_model(served.bundle)


def make_app(service: Service, *, token: str | None, hosts: Collection[str] | None) -> ASGIApp:
    """Return the application.

    token: what everyone must bring who asks for more than the page. hosts: the names that a request may ask for, None
    for any: the page of another site that had its own name lead to this machine would ask with that name.
    """

    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        if service.waiting >= service.limits.most_waiting:
            raise HTTPException(503, f"{service.waiting} requests wait already", {"Retry-After": "1"})
        service.waiting += 1
        try:
            return await _predict(service, request)
        finally:
            service.waiting -= 1
            service.metrics.seconds.observe(time.perf_counter() - started)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        try:
            await asyncio.wait_for(service.served.batcher.probe(), READY_S)
        except (NoAnswerError, TimeoutError) as error:
            raise HTTPException(503, "the model does not answer", {"Retry-After": "1"}) from error
        return JSONResponse({"status": "ready"})

    async def model(request: Request) -> Response:
        bundle = service.served.bundle
        described = {"input_shape": bundle.input_shape, "classes": bundle.class_names}
        return JSONResponse(service.served.model | described | {"most_bytes": service.limits.most_bytes})

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
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refusal})
    paths = {route.path for route in routes}
    return _counted(_guarded(app, token=token, hosts=hosts), service.metrics, paths)


async def _predict(service: Service, request: Request) -> Response:
    is_image = service.served.bundle.is_image
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    several = is_image and kind == "multipart/form-data"
    if not (several or _fits(kind, is_image=is_image)):
        wanted = "image/*, application/octet-stream or multipart/form-data" if is_image else "application/json"
        raise HTTPException(415, f"the content type must be {wanted}, got {kind[:80]!r}")
    body = await _body(request, service.limits)
    try:
        parts = read_parts(body, boundary_of(content_type)) if several else [("", body)]
    except MultipartError as error:
        raise HTTPException(400, str(error)) from error
    served = service.served  # what follows reaches its batcher before anything else can happen
    try:
        answers = await served.batcher.answers([content for _, content in parts])
    except NoAnswerError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    found = [
        ({"file": name} if several else {}) | _described(prediction)
        for (name, _), answer in zip(parts, answers, strict=True)
        for prediction in _unrefused(answer, place=f"{name or 'part'}: " if several else "")
    ]
    return JSONResponse((found[0] if is_image and not several else {"predictions": found}) | {"model": served.model})


def _fits(kind: str, *, is_image: bool) -> bool:
    if is_image:  # which image it is, its content says
        return kind.startswith("image/") or kind == "application/octet-stream"
    return kind == "application/json"


async def _body(request: Request, limits: Limits) -> bytes:
    """Return the request's body. Raises HTTPException for one that is too large, and where the rest does not come."""
    too_large = HTTPException(413, f"the body must have at most {limits.most_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limits.most_bytes):  # int() limits digits, too
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.most_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError as error:
        refusal = f"the body must come within {limits.body_s:g} s"
        raise HTTPException(408, refusal, {"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the client went away") from error  # which nobody reads
    return b"".join(chunks)


def _described(prediction: Prediction) -> dict[str, Any]:
    (name, probability), *_ = prediction
    top = [{"class": name, "probability": probability} for name, probability in prediction]
    return {"class": name, "probability": probability, "top": top}


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


def _guarded(app: ASGIApp, *, token: str | None, hosts: Collection[str] | None) -> ASGIApp:
    """Return the app for those who may ask."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if hosts is not None and headers.get("host", "") not in hosts:
                refusal = HTTPException(403, "this service is for this machine, by its own name")
            elif token is not None and scope["path"] not in OPEN_TO_ALL and not _is_bearer(headers, token):
                refusal = HTTPException(
                    401, "needs the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )
        if refusal is None:
            await app(scope, receive, send)
        else:
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send)

    return guarded


def _is_bearer(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


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
