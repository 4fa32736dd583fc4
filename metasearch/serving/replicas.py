"""Ray Serve on this machine alone: replicas that hold a bundle's network and answer batches.

Everything of Ray's listens on the loopback and asks for a token that is made anew with each start; another user of the
machine could run code as us otherwise. Its files go into a folder of our own, so that other Rays do not see this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from metasearch.bundle.contents import Bundle, read_bundle
from metasearch.bundle.graph import fitting_batch
from metasearch.bundle.predict import open_session
from metasearch.bundle.runtime import Classifier, check_model, open_content
from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.functions import first_line
from metasearch.search.connect import on_loopback
from metasearch.serving.answers import Answer, answer_bodies
from metasearch.serving.batching import BATCHES_A_REPLICA, MOST_BATCH_BYTES, NoAnswerError, Predict

ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Checked:
    """A bundle and the content of its model, which passed every check; what replicas start from, now and again.

    values: numbers that the network computes for an input.
    """

    bundle: Bundle
    content: bytes
    values: int


class Replica:
    """The network of a bundle in a process of its own."""

    def __init__(self, checked: Checked, threads: int, most_batch: int) -> None:
        _listen_on_loopback()
        # of damaged files: each text would be kept, and read_image has a limit of its own for pixels
        warnings.filterwarnings("ignore", module=r"PIL\.")
        batch = fitting_batch(most_batch, checked.values, checked.bundle.input_shape)
        self._classifier = Classifier(checked.bundle, open_session(checked.content, threads=threads), batch)

    async def answer(self, bodies: list[bytes]) -> list[Answer]:
        """Return the answers to a batch; one batch after the other, so that it takes no more than its threads."""
        return answer_bodies(self._classifier, bodies)


class Replicas:
    """The applications of Ray Serve.

    number: replicas of each. threads: of each replica's onnxruntime. most_batch: inputs that it takes at once.
    """

    def __init__(self, *, number: int, threads: int, most_batch: int) -> None:
        self.number, self._threads, self._most_batch = number, threads, most_batch
        self._names = (f"model-{index}" for index in count())

    async def check(self, folder: Path) -> Checked:
        """Return the bundle in a folder, checked and run once, in a process of its own.

        Raises InputError or NotFoundError, one line, where something is wrong with it, MetasearchError where that
        does not come out.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

        task = ray.remote(num_cpus=0, max_retries=0)(_checked).remote(folder)
        try:
            checked: Checked = await task
        except WorkerCrashedError as error:
            raise InputError(str(folder), "crashes the process that opens it") from error
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, (InputError, NotFoundError)):
                raise cause from None
            raise MetasearchError(f"{folder}: its check did not end ({first_line(cause)})") from error
        return checked

    async def deploy(self, checked: Checked) -> tuple[str, Predict]:
        """Start replicas of a checked bundle; return their name and what asks them. Raises MetasearchError."""
        name = next(self._names)
        return name, await asyncio.to_thread(self._deploy, name, checked)

    async def remove(self, name: str) -> None:
        """End the replicas of this name."""
        from ray import serve

        await asyncio.to_thread(serve.delete, name)

    def _deploy(self, name: str, checked: Checked) -> Predict:
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        deployment = serve.deployment(
            Replica,
            num_replicas=self.number,
            max_ongoing_requests=BATCHES_A_REPLICA,
            max_constructor_retry_count=1,
            ray_actor_options={"num_cpus": 0},  # the old and the new ones share the machine for a while
        )
        try:
            handle: Any = serve.run(
                deployment.bind(checked, self._threads, self._most_batch), name=name, route_prefix=None
            )
        except (RuntimeError, RayError, RayServeException) as error:
            serve.delete(name)
            raise MetasearchError(f"the replicas do not start: {first_line(error)}") from error
        return _asking(handle)


@contextmanager
def serve_running(*, number: int, most_bytes: int) -> Iterator[None]:
    """Run Ray and Serve for as long as the block lasts. number: of replicas; most_bytes: of one body.

    Raises InputError where Serve is not installed.
    """
    # below /tmp, wherever others may be: the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="metasearch-serve-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ.update(ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))  # before Ray is loaded, which reads them
        import ray

        try:
            from ray import serve
        except ImportError as error:
            rule = f'needs ray[serve] ({first_line(error)}): pip install "metasearch[serve]"'
            raise InputError("serve", rule) from error

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        in_flight = number * BATCHES_A_REPLICA * max(MOST_BATCH_BYTES, most_bytes)
        with on_loopback():
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=1,
                object_store_memory=max(100 * 10**6, 2 * in_flight),
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
            yield
        finally:
            ray.shutdown()


def _asking(handle: Any) -> Predict:
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    async def predict(bodies: list[bytes]) -> list[Answer]:
        try:
            answers: list[Answer] = await handle.answer.remote(bodies)
        except RayTaskError:
            raise  # of our own code, not of Ray's
        except (RayError, RayServeException) as error:
            raise NoAnswerError("the replica that had the request died") from error
        return answers

    return predict


def _checked(folder: Path) -> Checked:
    bundle = read_bundle(folder)
    content, values = check_model(bundle)
    open_content(bundle, content)
    return Checked(bundle, content, values)


def _listen_on_loopback() -> None:
    """Let a replica's own port listen on the loopback: Ray 2.60 opens it on every interface, whatever the node's is.

    ray/serve/_private/replica.py, `add_port_to_grpc_server(self._server, "[::]:0")`, after the constructor.
    """
    from ray.serve._private import replica

    add: Any = getattr(replica, "add_port_to_grpc_server", None)
    if add is not None:  # earlier versions of Ray have no such port
        replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))
