"""`metasearch serve`: a bundle as an HTTP service. Loads ray only once everything that needs none is checked."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from metasearch.errors import InputError, NotFoundError

TOKEN = "METASEARCH_SERVE_TOKEN"
SHORTEST_TOKEN = 16


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder; a link to one is followed anew.")],
    host: Annotated[str, typer.Option(help="Others than this machine need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that run the network.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of onnxruntime, in each replica.")] = 1,
    most_batch: Annotated[int, typer.Option(min=1, help="Bodies, and inputs, that run together at most.")] = 32,
    batch_wait_ms: Annotated[
        float,
        typer.Option(min=0, max=10_000, help="How long a free replica waits, at least, for as many as it had last."),
    ] = 2.0,
    most_bytes: Annotated[str, typer.Option(help="Of a request's body.")] = "10MB",
    most_waiting: Annotated[int, typer.Option(min=1, help="Requests not answered yet; more are refused.")] = 128,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Holds the token. Default: {TOKEN}, else none.")
    ] = None,
) -> None:
    """Serve a bundle over HTTP until Ctrl-C: POST /predict, a page to drop images on at /, /metrics, /healthz, /readyz.

    SIGHUP loads the bundle that is at BUNDLE then: checked completely first, and no request is dropped. With a token,
    in METASEARCH_SERVE_TOKEN or a file, each request must bring `Authorization: Bearer TOKEN`; any host but this
    machine needs one, and something before it that speaks TLS. Needs the extra `serve`.

    Example: metasearch serve BUNDLE, then: curl --data-binary @IMAGE.png -H "Content-Type: image/png" ADDRESS/predict
    """
    _check_extra()
    import uvicorn

    from metasearch.bundle.contents import read_bundle
    from metasearch.serving.app import Limits
    from metasearch.serving.replicas import Replicas, serve_running
    from metasearch.serving.server import bound, is_loopback, serve_until_stopped

    limits = Limits(
        most_bytes=_positive_bytes(most_bytes),
        most_waiting=most_waiting,
        most_batch=most_batch,
        batch_wait_s=batch_wait_ms / 1000,
    )
    token = _token(token_file)
    if token is None and not is_loopback(host):
        raise InputError("--host", f"any but this machine needs a token, in {TOKEN} or --token-file", host)
    read_bundle(bundle)  # before Ray's seconds
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged files
    with (
        suppress(KeyboardInterrupt),
        _signals(),
        bound(host, port) as listening,
        serve_running(number=replicas, most_bytes=limits.most_bytes),
    ):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init takes it
        serving = serve_until_stopped(
            bundle,
            Replicas(number=replicas, threads=threads, most_batch=most_batch),
            limits=limits,
            listening=listening,
            token=token,
            announce=typer.echo,
            tell=lambda text: typer.echo(text, err=True),
        )
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(serving)


def _check_extra() -> None:
    """Raise InputError where the packages of the extra `serve` are missing, but for Ray's own, which take seconds."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("serve", f'needs {error.name}: pip install "metasearch[serve]"') from error


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does, and SIGHUP do nothing until there is a model to reload."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # SIG_IGN would be Ray's processes', too
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _positive_bytes(text: str) -> int:
    from metasearch.search.objectives import quantity_in

    found = int(quantity_in("B", text, name="a body", place="--most-bytes"))
    if found < 1:
        raise InputError("--most-bytes", "must be positive", text)
    return found


def _token(file: Path | None) -> str | None:
    """Return the token of the file or of the environment, where no process that we start will find it; None for none.

    Raises NotFoundError and InputError, which do not show it.
    """
    place, text = TOKEN, os.environ.pop(TOKEN, None)
    if file is not None:
        place = str(file)
        try:
            text = file.read_text(encoding="ascii")
        except FileNotFoundError as error:
            raise NotFoundError(f"--token-file: {file} is not there") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(place, "must be a file with a token in ASCII") from error
    if text is None:
        return None
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(place, f"must hold a token of at least {SHORTEST_TOKEN} printable ASCII characters, no spaces")
    return token
