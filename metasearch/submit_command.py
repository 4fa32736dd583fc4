"""`--submit URL`: the same command line as a job on a Ray cluster, and status, logs and stop of it. Loads no ray."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.errors import InputError, MetasearchError
from metasearch.flags import Detach, StorageUrl, StudyName, Submit, SubmittedTo
from metasearch.messages import tell

if TYPE_CHECKING:
    from metasearch.search.jobs import Job, JobServer

MOST_CARRIED_BYTES = 1_000_000
"""Of a file that goes along: it is kept in the memory of the cluster's head."""
CARRIED = ("--space", "--enqueue")
"""Files that are read once, when the study is made, and may therefore lie on the submitter's machine."""
PATHS, PERHAPS_PATHS = ("--data-root", "--teacher-weights", "--meta", "--artefacts"), ("--teacher", "--init-from")
"""What a resumed search reads again, or every node: paths on the cluster; the latter may be something else."""
NO_PATHS = ("-", "own")
"""What --teacher-weights takes beside files."""
ABSOLUTE = "must be an absolute path with --submit, which the head and all nodes see"

KNOWN_CODES = (1, 2, 3, 4, 5, 130)


@dataclass(frozen=True)
class SubmissionFlags:
    """What a command is told of where a search runs as a job, and of where its study lies."""

    submit: Submit = None
    detach: Detach = False
    storage: StorageUrl = None

    def sent(self, *, study: str | None, stem: str, tasks: Mapping[str, str | None]) -> bool:
        """Return whether the command runs as a job; it has then been sent, see `submit_arguments`."""
        if self.submit is None and not self.detach:
            return False
        submit_arguments(self.submit, study=study, stem=stem, storage=self.storage, detach=self.detach, tasks=tasks)
        return True


def submit_arguments(
    url: str | None,
    *,
    study: str | None,
    stem: str,
    storage: str | None,
    detach: bool,
    tasks: Mapping[str, str | None],
) -> None:
    """Run this process's own command line as a job at `url`, and follow it unless `detach`; exit as it does.

    study: None for a new name that begins with `stem`. tasks: the TASK and FAMILY texts of the command line, None where
    one is not given, by their flags. Ctrl-C ends the following alone.
    """
    if url is None:
        raise InputError("--detach", "needs --submit")
    from metasearch.search.jobs import JobServer
    from metasearch.search.names import storage_url

    if storage is not None:
        check_storage_there(storage_url(storage))
    for flag, text in tasks.items():
        check_task_there(flag, text or "")
    name = study or f"{re.sub('[^A-Za-z0-9._-]+', '-', stem)}-{secrets.token_hex(3)}"
    carried, files = packed(job_arguments(sys.argv[1:], name=None if study else name))
    server = JobServer(url)
    job = server.submit(carried, name, files=files)
    tell(f"study {name}: job {job}; it uses the storage of the head's METASEARCH_STORAGE unless --storage says")
    how = f"metasearch logs|status|stop {name} --submit {server.url}"
    if detach:
        tell(how)
        return
    try:
        followed = _follow(server, job)
    except KeyboardInterrupt:
        tell(f"the job runs on; {how}")
        sys.exit(130)
    _exit_as(followed)


def job_arguments(arguments: Sequence[str], *, name: str | None) -> list[str]:
    """Return the arguments without `--submit URL` and `--detach`, with `--address auto`, and with a name if given.

    Raises InputError for an address of another cluster.
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--submit":
            skip = True
        elif argument != "--detach" and not argument.startswith("--submit="):
            kept.append(argument)
    if "--address" in kept or any(argument.startswith("--address=") for argument in kept):
        raise InputError("--address", "must not be given with --submit: the job runs in the cluster that it names")
    command, rest = kept[:1], kept[1:]  # before the rest: behind a -- flags would be none
    return [*command, "--address", "auto", *(["--name", name] if name is not None else []), *rest]


def packed(arguments: Sequence[str]) -> tuple[list[str], dict[str, bytes]]:
    """Return the arguments as the job gets them, and the files that go along, by their name in its folder.

    Raises InputError for a file that is too large to go along, and a relative path that the cluster could not find.
    """
    given: list[str] = []
    files: dict[str, bytes] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in (*CARRIED, *PATHS, *PERHAPS_PATHS):
            given.append(argument)
            continue
        value = value if equals else next(rest, "")
        # a teacher may have its share before it: 0.5*FILE
        path = _expanded(value.rpartition("*")[2] if flag == "--teacher" else value)
        if flag in CARRIED and os.path.isfile(path):
            value = f"{flag.strip('-')}-{path.name}"
            files[value] = _content(path, flag)
        elif _is_only_here(path) or (flag in PATHS and not (path.is_absolute() or value in NO_PATHS or "://" in value)):
            raise InputError(flag, ABSOLUTE, value)
        given.append(f"{flag}={value}")
    return given, files


def _expanded(text: str) -> Path:
    """Return what may be a path with its home folder; a text that can be none, of an unknown user perhaps, stays."""
    return Path(os.path.expanduser(text))


def _is_only_here(path: Path) -> bool:
    return not path.is_absolute() and os.path.exists(path)  # not Path's own: it raises where a text is too long


def _content(path: Path, flag: str) -> bytes:
    size = path.stat().st_size
    if size > MOST_CARRIED_BYTES:
        rule = f"must be at most {MOST_CARRIED_BYTES / 1e6:g} MB to go along with --submit"
        raise InputError(f"{flag} {path}", rule, f"{size / 1e6:.1f} MB")
    return path.read_bytes()


def check_task_there(flag: str, text: str) -> None:
    """Raise InputError for a TASK or FAMILY with a relative path that is here; others are below the data root there."""
    from metasearch.tasks.task_source import named_paths

    for path in named_paths(text):
        if _is_only_here(_expanded(path)):
            raise InputError(f"{flag} {text}", ABSOLUTE, path)


def check_storage_there(url: str) -> None:
    """Raise InputError for a SQLite file with a relative path: the job's folder on the head is gone with the job."""
    from metasearch.search.names import SQLITE

    if url.startswith(SQLITE) and not url.removeprefix(SQLITE).startswith("/"):
        raise InputError("--storage", "must have an absolute path with --submit (sqlite:////...), on the head", url)


def logs(
    study: StudyName,
    submit: SubmittedTo,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended; exit as it does.")] = False,
) -> None:
    """Print what the job of a study, running or else the last, has written.

    Example: metasearch logs STUDY --submit http://HEAD:8265 --follow
    """
    from metasearch.search.jobs import JobServer

    server = JobServer(submit)
    job = server.job_of(study)
    if follow:
        _exit_as(_follow(server, job.id))
    typer.echo(server.logs(job.id), nl=False)


def job_status(url: str, study: str, *, as_json: bool) -> None:
    """Print where the job of a study stands, the running one or else the last."""
    from metasearch.search.jobs import JobServer

    job = JobServer(url).job_of(study)
    if as_json:
        typer.echo(json.dumps(asdict(job)))
        return
    ended = f", exit code {job.exit_code}" if job.exit_code is not None else ""
    typer.echo(f"{study}: job {job.id} {job.status}{ended}")
    if job.status == "FAILED" and job.message:
        typer.echo(job.message.strip().splitlines()[-1])


def stop_job(url: str, study: str) -> None:
    """Ask the driver of a study's job to stop in good order; it can be resumed."""
    from metasearch.search.jobs import STOP_WAIT_S, JobServer

    server = JobServer(url)
    job = server.job_of(study)
    if job.is_over or not server.stop(job.id):
        raise MetasearchError(f"study {study}: its job {job.id} has ended ({job.status})")
    tell(f"asked job {job.id} to stop; within {STOP_WAIT_S} s it does, or is killed. Either way it can be resumed")


def exit_code(job: Job) -> int:
    """Return the exit code of a job that has ended as ours: the driver's own, 130 for one that was stopped, else 1."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 130
    return job.exit_code if job.exit_code in KNOWN_CODES else 1


def _follow(server: JobServer, job: str) -> Job:
    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return server.follow(job, write=write, tell=tell)


def _exit_as(job: Job) -> None:
    code = exit_code(job)
    if job.status != "SUCCEEDED":
        cause = "" if job.exit_code is not None else f": {' '.join(job.message.split())[:300]}"
        tell(f"job {job.id} {job.status}{cause}")
    sys.exit(code)
