"""The service's process: its socket, its signals, and the reload of a newer bundle."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from metasearch.errors import InputError, MetasearchError
from metasearch.functions import first_line
from metasearch.serving.app import Limits, Served, Service, make_app
from metasearch.serving.batching import Batcher, Predict
from metasearch.serving.metrics import Metrics
from metasearch.serving.replicas import Checked

DRAIN_S = 90
"""For the requests that are being answered when the service ends; one takes no longer."""
KEEP_ALIVE_S = 75
BACKLOG = 2048
Tell = Callable[[str], None]


class Source(Protocol):
    """Where models come from: `replicas.Replicas`. number: of replicas of each."""

    number: int

    async def check(self, folder: Path) -> Checked:
        """Return the bundle in a folder, checked completely. Raises MetasearchError."""

    async def deploy(self, checked: Checked) -> tuple[str, Predict]:
        """Start replicas of it; return their name and what asks them. Raises MetasearchError."""

    async def remove(self, name: str) -> None:
        """End the replicas of this name."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by an address that no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the port (0: any that is free): until it does, another may bind to it, too.

    Raises InputError where it cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # of a name that no host can have
        found.close()
        if isinstance(error, (socket.gaierror, UnicodeError)) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError("--host", "must be an address of this machine", host) from error
        raise InputError(
            "--host, --port", f"must be free ({error.strerror}); port 0 takes any", (host, port)
        ) from error
    return found


async def serve_until_stopped(
    folder: Path,
    source: Source,
    *,
    limits: Limits,
    listening: socket.socket,
    token: str | None,
    announce: Tell,
    tell: Tell,
) -> None:
    """Serve the bundle in a folder until SIGINT or SIGTERM, and at each SIGHUP what is there then.

    listening: of `bound`; who asks before the model answers, waits. announce: gets the address once it does. tell: gets
    what came of each reload. Raises KeyboardInterrupt, once everything that was asked is answered; before that
    InputError, NotFoundError or MetasearchError where the first bundle cannot be served.
    """
    import uvicorn

    metrics = Metrics()
    checked = await source.check(folder)
    service = Service(await opened(source, checked, limits, metrics), limits=limits, metrics=metrics)
    host, port = listening.getsockname()[:2]
    # a token keeps everyone else away, whatever name they ask by
    app = make_app(service, token=token, hosts=own_names(host, port) if token is None else None)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader(service, source, folder, tell))
    tell(f"serving {_shown(service.served)}; for a newer bundle in the same place: kill -HUP {os.getpid()}")
    announce(f"http://{_written(host)}:{port}")
    await uvicorn.Server(config).serve(sockets=[listening])


async def opened(source: Source, checked: Checked, limits: Limits, metrics: Metrics) -> Served:
    """Return a checked bundle with replicas that wait for requests."""
    name, predict = await source.deploy(checked)
    batcher = Batcher(
        predict,
        most=limits.most_batch,
        replicas=source.number,
        wait_s=limits.batch_wait_s,
        on_batch=metrics.batches.observe,
    )
    return Served(checked.bundle, batcher, name)


async def reload(service: Service, source: Source, folder: Path, tell: Tell) -> None:
    """Put the bundle that is in the folder now into service, if it passes every check; else the old one stays.

    The old one answers what it was asked; then its replicas end.
    """
    old, result = service.served, "refused"
    try:
        checked = await source.check(folder)
        if checked.bundle.digest == old.bundle.digest:
            tell(f"{_shown(old)} is in service already")
            result = "unchanged"
            return
        service.put(await opened(source, checked, service.limits, service.metrics))
        result = "taken"
    except MetasearchError as error:
        tell(f"{_shown(old)} stays in service: {error}")
        return
    finally:
        service.metrics.reloads.labels(result).inc()
    tell(f"serving {_shown(service.served)} instead of {_shown(old)}")
    await old.batcher.drained()
    await source.remove(old.name)


def reloader(service: Service, source: Source, folder: Path, tell: Tell) -> Callable[[], None]:
    """Return what starts a reload within the running event loop; those asked for meanwhile come one after the other."""
    tasks: set[asyncio.Task[None]] = set()
    turn = asyncio.Lock()

    async def in_turn() -> None:
        async with turn:
            await reload(service, source, folder, tell)

    def start() -> None:
        task = asyncio.get_running_loop().create_task(in_turn())
        tasks.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # our bug, but the service goes on
            tell(f"the reload failed: {type(error).__name__}: {first_line(error)}")

    return start


def own_names(host: str, port: int) -> set[str]:
    """Return how a browser on this machine may name the service in a request."""
    names = {"localhost", "127.0.0.1", _written(host)}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _written(host: str) -> str:
    """Return a host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _shown(served: Served) -> str:
    return f"{served.bundle.name} ({served.bundle.digest[:12]})"
