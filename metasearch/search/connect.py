"""What goes before `ray.init`: whether a cluster answers and takes our token, and what a Ray of our own listens on.

A cluster is asked in a process of its own: asked by `ray.init` itself, a refused token takes 20 s and as many lines,
and a server that is not there for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metasearch.errors import InputError, MetasearchError

TIMEOUT_S = 30.0
TOKEN_REMEDY = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token, which `ray get-auth-token` "
    "prints on its head"
)
REFUSED, NOT_THERE = "InvalidAuthToken", "Failed to connect to GCS"
"""What Ray's own check writes; it goes on asking."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a Ray that is started within the block listen on 127.0.0.1 alone: on others, any machine could run code.

    `ray.init` refuses that address. Ray (2.60) takes it where a switch for other systems is off: its processes read it
    in their environment, this one has read it already.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    in_environment, here = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = here
        os.environ.pop(name)
        if in_environment is not None:
            os.environ[name] = in_environment


def check_address(address: str) -> None:
    """Raise InputError for an address of Ray's client, which cannot send what Tune runs. auto: RAY_ADDRESS, if set."""
    in_environment = os.environ.get("RAY_ADDRESS") if address == "auto" else None
    place, meant = ("RAY_ADDRESS", in_environment) if in_environment else ("--address", address)
    if "://" in meant:
        raise InputError(place, "must be auto or HOST:PORT; outside the cluster's nodes use --submit", meant)


def check_reachable(address: str) -> None:
    """Raise MetasearchError, with the next step, unless a cluster at the address (or auto) answers and takes our token.

    `local` is left to Ray. Raises InputError as `check_address` does.
    """
    check_address(address)
    if address == "local":
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    with tempfile.TemporaryDirectory(prefix="metasearch-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            asking = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            problem = _problem(asking, log)
        finally:
            asking.kill()
            asking.wait()
    if problem:
        raise MetasearchError(f"Ray at {address}: {problem}")


def _problem(asking: subprocess.Popen[bytes], log: Path) -> str:
    """Return what is wrong, as soon as it is known; "" once the cluster has answered."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        ended = asking.poll() is not None
        said = log.read_text(errors="replace")
        if REFUSED in said:
            return f"refused our token, or that there is none; {TOKEN_REMEDY}"
        if ended:
            lines = said.strip().splitlines() or ["no answer"]
            return "" if asking.returncode == 0 else lines[-1]
        if NOT_THERE in said or time.monotonic() > deadline:
            return "no answer; `ray status` on the head says whether it runs, and its port must be open to this machine"
        time.sleep(0.05)
