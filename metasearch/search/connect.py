"""Joining a Ray cluster at an address: whether it answers and takes our token is asked first, in a process of its own.

Asked by `ray.init` itself, a refused token takes 20 s and as many lines, and a server that is not there for ever.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metasearch.errors import MetasearchError

TIMEOUT_S = 30.0
TOKEN_REMEDY = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the cluster's token, which `ray get-auth-token` "
    "prints on its head"
)
REFUSED, NOT_THERE = "InvalidAuthToken", "Failed to connect to GCS"
"""What Ray's own check writes; it goes on asking."""


def check_reachable(address: str) -> None:
    """Raise MetasearchError, with the next step, unless a cluster at the address (or auto) answers and takes our token.

    An address with a scheme, and `local`, are left to Ray.
    """
    if "://" in address or address == "local":
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
