"""Ray's job server, over its documented REST interface: submit a command line, follow it, stop it.

Not through Ray's own client: importing it takes seconds and the dashboard's packages, RAY_ADDRESS in the environment
overrules the address that it is given, and a refusal comes as several lines.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.search.connect import TOKEN_REMEDY
from metasearch.search.patience import Patience

T = TypeVar("T")
TIMEOUT_S = 30.0
POLL_S = 1.5
LOG_RATE = 50_000.0
"""Characters a second: a log comes whole each time that it is asked for, a long one therefore less often."""
STUDY = "metasearch_study"
"""The key of a job's metadata that names its study."""
STOP_WAIT_S = 60
"""Seconds that a driver has to stop in good order; Ray's own 3 would kill it amid its books."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted job. status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. started, ended: Unix time, or None."""

    id: str
    study: str
    status: str
    message: str
    exit_code: int | None
    started: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, however."""
        return self.status in ENDED


class JobServer:
    """The job server at a URL such as http://HEAD:8265, asked with the token that Ray would use here.

    Every method raises MetasearchError, with the next step, where it does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        if not re.fullmatch(r"https?://[^/@?#]+/?", url) or not _has_host(url):
            raise InputError("--submit", "must be the URL of a Ray dashboard, such as http://HEAD:8265", url)
        self.url = url.rstrip("/")
        self._token = token()
        # none of the environment's proxies for http://, where one could read the token
        proxies = urllib.request.ProxyHandler({} if self.url.startswith("http:") else None)
        self._opener = urllib.request.build_opener(proxies)

    def submit(self, arguments: Sequence[str], study: str, *, files: Mapping[str, bytes]) -> str:
        """Start `python -m metasearch arguments...` on the head, in a folder with the files; return the job's id.

        Nothing of this machine's environment goes along: the storage's password is the head's own affair.
        """
        job = f"metasearch-{re.sub('[^A-Za-z0-9._-]', '-', study)}-{uuid.uuid4().hex[:8]}"
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        if files:
            environment["working_dir"] = self._upload(files)
        asked = {
            "entrypoint": command_text(arguments),
            "submission_id": job,
            "metadata": {STUDY: study},
            "runtime_env": environment,
        }
        return self._told("POST", "/api/jobs/", lambda answer: str(answer["submission_id"]), asked)

    def _upload(self, files: Mapping[str, bytes]) -> str:
        """Put the files into the cluster's memory, as a package that Ray unpacks for the job; return its URI."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(name), content)  # without a time: the same files, the same package
        name = f"_ray_pkg_{hashlib.md5(packed.getvalue(), usedforsecurity=False).hexdigest()}.zip"
        self._ask("PUT", f"/api/packages/gcs/{name}", packed.getvalue())
        return f"gcs://{name}"

    def job(self, job: str) -> Job:
        """Return where a job stands."""
        return self._told("GET", f"/api/jobs/{job}", _job_of)

    def jobs(self) -> list[Job]:
        """Return all jobs of ours that the cluster remembers, the last first."""
        ours = self._told(
            "GET",
            "/api/jobs/",
            lambda listed: [_job_of(each) for each in listed if STUDY in (each.get("metadata") or {})],
        )
        return sorted(ours, key=lambda job: job.started or 0.0, reverse=True)

    def job_of(self, study: str) -> Job:
        """Return the last job of a study that is not over, else its last: a second driver is refused, and ends first.

        Raises NotFoundError, with the studies there are.
        """
        jobs = self.jobs()
        of_study = [job for job in jobs if job.study == study]
        if of_study:
            return next((job for job in of_study if not job.is_over), of_study[0])
        known = ", ".join(sorted({job.study for job in jobs})) or "none"
        raise NotFoundError(f"study {study!r}: no job of this name at {self.url}; there are: {known}")

    def logs(self, job: str) -> str:
        """Return what a job has written so far."""
        return self._told("GET", f"/api/jobs/{job}/logs", lambda answer: str(answer["logs"]))

    def follow(self, job: str, *, write: Callable[[str], None], tell: Callable[[str], None]) -> Job:
        """Write what a job writes, as it comes; return it once it has ended. tell: hears of a server that is away.

        The server has no offset into a log, and its stream is a WebSocket, for which a client needs another package.
        """
        patience = Patience(tell=tell, what=f"job server {self.url}", away=_may_pass)
        shown, due = 0, 0.0
        while True:
            found = patience.retried(lambda again: self.job(job))  # before its logs: its last words are among them
            if found.is_over or time.monotonic() >= due:
                written = patience.retried(lambda again: self.logs(job))
                if len(written) > shown:
                    write(written[shown:])
                    shown = len(written)
                due = time.monotonic() + shown / LOG_RATE
            if found.is_over:
                return found
            time.sleep(POLL_S)

    def stop(self, job: str) -> bool:
        """Ask a job to stop in good order; return whether it was running."""
        return self._told("POST", f"/api/jobs/{job}/stop", lambda answer: bool(answer["stopped"]))

    def _told(self, method: str, path: str, read: Callable[[Any], T], body: Mapping[str, Any] | None = None) -> T:
        """Return what is read from an answer in JSON."""
        answer = self._ask(method, path, body)
        try:
            return read(json.loads(answer))
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # of JSON, or of another shape
            raise MetasearchError(f"job server {self.url}: does not answer as a Ray dashboard") from error

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | bytes | None = None) -> bytes:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": kind}, method=method)
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                what = "asks for a token" if error.code == 401 else "refused our token"
                raise MetasearchError(f"job server {self.url}: {what}; {TOKEN_REMEDY}") from error
            said = error.read().decode(errors="replace").strip().splitlines()
            raise MetasearchError(f"job server {self.url}: {said[-1] if said else error.reason}") from error
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            next_step = "is that the head's dashboard, and its port open to this machine?"
            raise MetasearchError(f"job server {self.url}: no answer ({cause}); {next_step}") from error


def _has_host(url: str) -> bool:
    """Whether a connection can be tried: a host that has a name in the DNS's letters, and a port that is a number."""
    try:
        host, _ = urlsplit(url).hostname, urlsplit(url).port
        return bool(host and host.encode("idna"))
    except ValueError:  # UnicodeError is one
        return False


def _may_pass(error: BaseException) -> bool:
    """Whether a request failed for a reason that may pass: no answer, or the server's own fault."""
    cause = error.__cause__
    if isinstance(cause, urllib.error.HTTPError):
        return cause.code >= 500
    return isinstance(cause, OSError | HTTPException)


def command_text(arguments: Sequence[str]) -> str:
    """Return the shell command that runs metasearch with these arguments."""
    import shlex

    return f"python -m metasearch {shlex.join(arguments)}"


def token() -> str | None:
    """Return the token that Ray would use here: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; None.

    Raises InputError where the file of RAY_AUTH_TOKEN_PATH cannot be read, and for what no header can hold.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    place, text = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not text:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        try:
            place, text = str(path), path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            if named:
                raise InputError("RAY_AUTH_TOKEN_PATH", f"cannot be read ({error.strerror})", named) from error
    if not (text.isascii() and text.isprintable()):
        raise InputError(place, "must hold a token in printable ASCII")  # not shown
    return text or None


def _job_of(raw: Mapping[str, Any]) -> Job:
    started, ended = (raw.get(name) for name in ("start_time", "end_time"))
    return Job(
        id=str(raw.get("submission_id")),
        study=(raw.get("metadata") or {}).get(STUDY, ""),
        status=str(raw["status"]),
        message=raw.get("message") or "",
        exit_code=raw.get("driver_exit_code"),
        started=None if started is None else started / 1000,
        ended=None if not ended else ended / 1000,
    )
