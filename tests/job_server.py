"""A stand-in for Ray's job server, on loopback: it keeps what it is sent, and runs no job."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "canary-token"


class FakeJobServer:
    """jobs: by id, as the REST interface shows them. packages: by path. asked: method and path of every request.

    faults: codes with which the next requests about a job are answered, 0 for a connection that is closed instead.
    """

    def __init__(self) -> None:
        self.url = ""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.logs: list[str] = ["hello\n", "hello\nworld\n"]
        self.ends_as: dict[str, Any] = {"status": "SUCCEEDED", "driver_exit_code": 0}
        self.asked: list[str] = []
        self.faults: list[int] = []

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if not token:
            return 401, "Unauthorized: Missing authentication token"
        if token != f"Bearer {TOKEN}":
            return 403, "Forbidden: Invalid authentication token"
        if path.startswith("/api/packages/"):
            self.packages[path] = body
            return 200, {}
        if method == "POST" and path == "/api/jobs/":
            asked = json.loads(body)
            raw = {**asked, "status": "RUNNING", "start_time": 1000 * (1 + len(self.jobs)), "end_time": 0}
            self.jobs[asked["submission_id"]] = raw
            return 200, {"submission_id": asked["submission_id"]}
        if path == "/api/jobs/":
            return 200, [{"type": "DRIVER", "status": "RUNNING", "metadata": None}, *self.jobs.values()]
        if self.faults:
            return self.faults.pop(0), "Internal Server Error"
        _, _, _, job, *rest = path.split("/")
        if job not in self.jobs:
            return 404, f"Traceback ...\nJob {job} does not exist"
        if rest == ["logs"]:
            if len(self.logs) == 1:
                self.jobs[job] |= self.ends_as
            return 200, {"logs": self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]}
        if rest == ["stop"]:
            self.jobs[job] |= {"status": "STOPPED"}
            return 200, {"stopped": True}
        return 200, self.jobs[job]


@contextmanager
def fake_job_server() -> Iterator[FakeJobServer]:
    """Run one for as long as the block lasts."""
    fake = FakeJobServer()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, said = fake.answer(self.command, self.path, body, self.headers.get("Authorization") or "")
            if code == 0:
                self.close_connection = True
                return
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
