"""A web application on this machine alone, and for reading alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from metasearch.errors import InputError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
READING = ("GET", "HEAD")


def listening(port: int) -> LoopbackServer:
    """Return a server that has a port of this machine (0: any that is free) and nothing to say yet.

    Raises InputError for a port that is taken.
    """
    nothing: Callable[..., Any] = lambda environment, start: []  # noqa: E731 - a def here would need its own name
    try:
        return make_server(HOST, port, nothing, server_class=LoopbackServer, handler_class=_Silent)
    except OSError as error:
        raise InputError("--port", f"must be free ({error.strerror}); 0 takes any that is", port) from error


def reading_alone(app: WSGIApplication, hosts: Collection[str]) -> WSGIApplication:
    """Return the app without what changes something, and for requests to these hosts alone.

    A page of another site that had its own name lead to this machine would ask with that name.
    """

    def guarded(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        refused = ""
        if environment.get("HTTP_HOST") not in hosts:
            refused = "403 Forbidden"
        elif environment["REQUEST_METHOD"] not in READING:
            refused = "405 Method Not Allowed"
        if refused:
            start(refused, [("Content-Type", "text/plain")])
            return [b"this dashboard is for reading, on this machine\n"]
        return app(environment, start)

    return guarded


class LoopbackServer(ThreadingMixIn, WSGIServer):
    """A thread a request; none outlives the server."""

    daemon_threads = True

    def show(self, app: WSGIApplication) -> str:
        """Serve an app to those who read; return its address."""
        port = "" if self.server_port == 80 else f":{self.server_port}"  # as browsers write it
        hosts = [f"{name}{port}" for name in (HOST, "localhost")]
        self.set_app(reading_alone(app, hosts))
        return f"http://{hosts[0]}"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing of each request."""
