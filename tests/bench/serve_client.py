"""A client that costs little: plain sockets in one thread, so that the service has the machine to itself.

Started as `python -m tests.bench.serve_client JOB_FILE RESULT_FILE`; both are JSON, of Job and Outcome.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Job:
    """What to ask. requests: files of whole HTTP requests, sent in turn; each once only where `once`.

    rate: requests a second at most, None for as many as are answered. seconds: how long, unless once.
    """

    host: str
    port: int
    requests: Sequence[str]
    clients: int
    seconds: float = 0.0
    rate: float | None = None
    once: bool = False


@dataclass
class Outcome:
    """What came of it. statuses: how often each; "failed" are connections that broke. Latencies in milliseconds.

    reasons: of each status but 200 the first answer.
    """

    answered: int
    seconds: float
    statuses: dict[str, int]
    reasons: dict[str, str]
    p50_ms: float
    p99_ms: float
    most_ms: float
    cpu_seconds: float


@dataclass
class _Connection:
    socket: socket.socket
    due: float
    request: bytes = b""
    answer: bytearray = field(default_factory=bytearray)
    length: int | None = None


def ask(job: Job) -> Outcome:
    """Send a job's requests over as many connections as it has clients, one at a time on each.

    With a rate, latencies count from when a request was due: one that must wait for an earlier answer is late already.
    """
    read = [Path(file).read_bytes() for file in job.requests]
    pending: Iterator[bytes] = iter(read) if job.once else cycle(read)
    selector = selectors.DefaultSelector()
    started = time.perf_counter()
    interval = 0.0 if job.rate is None else job.clients / job.rate
    idle = [_Connection(_connect(job), started + index / job.clients * interval) for index in range(job.clients)]
    statuses, reasons, latencies = Counter[str](), dict[str, str](), list[float]()
    busy = 0
    while True:
        now = time.perf_counter()
        ended = not job.once and now - started >= job.seconds
        for connection in [] if ended else [c for c in idle if job.rate is None or c.due <= now]:
            request = next(pending, None)
            if request is None:
                ended = True
                break
            idle.remove(connection)
            if job.rate is None:
                connection.due = now
            connection.request = request
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            busy += 1
            _send(connection)
        if busy == 0 and ended:
            break
        wait_s = min((c.due for c in idle), default=now + 1) - now if job.rate is not None and not ended else 1.0
        for key, _ in selector.select(max(0.0, min(wait_s, 1.0))):
            connection = key.data
            status = _status(connection)
            if status is None:
                continue
            latencies.append(time.perf_counter() - connection.due)
            statuses[status] += 1
            if status != "200":
                reasons.setdefault(status, connection.answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")[:200])
            selector.unregister(connection.socket)
            busy -= 1
            if status == "failed" or b"connection: close" in connection.answer.lower():
                connection.socket.close()
                connection.socket = _connect(job)
            connection.answer, connection.length = bytearray(), None
            connection.due += interval
            idle.append(connection)
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    return Outcome(
        answered=len(latencies),
        seconds=seconds,
        statuses=dict(statuses),
        reasons=reasons,
        p50_ms=1000 * cuts[49],
        p99_ms=1000 * cuts[98],
        most_ms=1000 * max(latencies, default=0.0),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
    )


def _connect(job: Job) -> socket.socket:
    found = socket.create_connection((job.host, job.port), timeout=TIMEOUT_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _send(connection: _Connection) -> None:
    with suppress(OSError):  # refused before it was whole: the answer, or that there is none, is read next
        connection.socket.sendall(connection.request)


def _status(connection: _Connection) -> str | None:
    """Read what has come; return the status once the answer is whole, "failed" if the connection broke before."""
    try:
        piece = connection.socket.recv(65536)
    except OSError:
        return "failed"
    if not piece:
        return "failed"
    connection.answer += piece
    if connection.length is None:
        end = connection.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(connection.answer[:end]).lower()
        connection.length = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return connection.answer[9:12].decode("ascii") if len(connection.answer) >= connection.length else None


def main() -> None:
    """Do the job that the command line names and write what came of it."""
    job, result = (Path(argument) for argument in sys.argv[1:])
    result.write_text(json.dumps(asdict(ask(Job(**json.loads(job.read_text("utf-8")))))), encoding="utf-8")


if __name__ == "__main__":
    main()
