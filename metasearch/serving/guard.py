"""Who may ask a service: those with its token, or else this machine and its own page. The rest get 401 or 403."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def guarded(app: ASGIApp, *, token: str | None, hosts: Collection[str] | None, open_to_all: Collection[str]) -> ASGIApp:
    """Return the app for those who may ask.

    token: what everyone must bring who asks for more than the paths that are open to all. hosts: the names that a
    request may ask for, and whose pages may post, None for any: the page of another site that had its own name lead to
    this machine would ask with that name.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if hosts is not None and headers.get("host", "") not in hosts:
                refusal = HTTPException(403, "this service is for this machine, by its own name")
            elif hosts is not None and scope["method"] == "POST" and _is_of_another_site(headers, hosts):
                refusal = HTTPException(403, "this service is not for the pages of other sites")
            elif token is not None and scope["path"] not in open_to_all and not _is_bearer(headers, token):
                refusal = HTTPException(
                    401, "needs the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )
        if refusal is None:
            await app(scope, receive, send)
        else:
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send)

    return guard


def _is_of_another_site(headers: Headers, hosts: Collection[str]) -> bool:
    """Whether a browser says that the page of another site, or of another port, asks."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return True
    return "origin" in headers and headers["origin"].partition("://")[2] not in hosts


def _is_bearer(headers: Headers, token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
