"""`metasearch serve` in a process of its own, a client that costs little, and what /proc tells of its processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

STARTS_S = 180.0
ENDS_S = 60.0


@dataclass(frozen=True)
class Program:
    """A running service. errors: the file with what it says."""

    process: subprocess.Popen[str]
    address: str
    errors: Path

    def reload(self) -> None:
        """Ask it to load the bundle that is there now."""
        self.process.send_signal(signal.SIGHUP)

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def wait_until_said(self, text: str) -> None:
        """Wait until it has said a text; raises TimeoutError."""
        end = time.monotonic() + STARTS_S
        while text not in self.said():
            if time.monotonic() > end or self.process.poll() is not None:
                raise TimeoutError(f"{text!r} was not said: {self.said()}")
            time.sleep(0.05)


@contextmanager
def serving(
    bundle: Path, scratch: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Serve a bundle on a free port until the block ends. scratch: a folder for what it says."""
    errors = scratch / "serve.err"
    command = [sys.executable, "-m", "metasearch", "serve", str(bundle), "--port", "0", *arguments]
    with errors.open("w") as said:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | dict(environment or {}),
            start_new_session=True,  # a group of its own, so that a test can interrupt it as a terminal does
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"it did not start: {errors.read_text(encoding='utf-8')}")
        yield Program(process, address, errors)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            process.stdout.close()


class Connection:
    """A connection that is kept alive; one request at a time."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        url = urlsplit(address)
        self._host, self._port = url.hostname, url.port
        self._head = f"Host: {url.netloc}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def request(self, path: str, body: bytes | None = None, content_type: str = "image/png") -> bytes:
        """Return a request's bytes: POST where it has a body."""
        if body is None:
            return f"GET {path} HTTP/1.1\r\n{self._head}\r\n".encode("latin-1")
        head = (
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body. Raises ConnectionError or EOFError if the service hangs up."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return status, await self._reader.readexactly(int(length[15:]))

    async def predict(self, body: bytes, content_type: str = "image/png") -> tuple[int, Any]:
        """Post a body to /predict; return status and what the JSON says."""
        status, answer = await self.send(self.request("/predict", body, content_type))
        return status, json.loads(answer)

    async def get(self, path: str) -> tuple[int, bytes]:
        return await self.send(self.request(path))


def tree_of(root: int) -> list[int]:
    """Return the process and all its descendants that live."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:  # which grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def command_of(pid: int) -> str:
    """Return a process's command line, "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:
        return ""


def listening_addresses(pids: Sequence[int]) -> set[str]:
    """Return the addresses, as /proc/net/tcp writes them, on which one of the processes listens."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor))
            except OSError:  # closed meanwhile
                continue
    found = set()
    for file in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{file}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                found.add(local.partition(":")[0])
    return found
