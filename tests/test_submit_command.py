"""`--submit`, and what follows a job, against a job server that keeps what it is sent."""

from __future__ import annotations

import io
import json
import shlex
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metasearch import submit_command
from metasearch.errors import InputError, MetasearchError
from metasearch.search import jobs, patience
from metasearch.search.jobs import Job, JobServer, token
from metasearch.submit_command import exit_code, job_arguments, packed
from tests.command_line import Run
from tests.job_server import TOKEN, FakeJobServer, fake_job_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJobServer]:
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with fake_job_server() as fake:
        yield fake


def the_job(server: FakeJobServer) -> tuple[list[str], str]:
    """Return the words of the only job's command after `python -m metasearch`, and all that was sent of it."""
    (job,) = server.jobs.values()
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["python", "-m", "metasearch"]
    return words[3:], json.dumps(job)


def test_the_same_command_line_runs_on_the_head_and_its_output_and_code_come_back(
    metasearch: Run, server: FakeJobServer
) -> None:
    arguments = ["launch", "digits", "--space", "quick", "--constraint", "model_bytes<=25kB", "--name", "a b"]
    code, out, err = metasearch(*arguments, "--submit", server.url)
    words, _ = the_job(server)
    assert words == [
        "launch", "--address", "auto", "digits", "--space=quick", "--constraint", "model_bytes<=25kB", "--name", "a b",
    ]  # fmt: skip
    assert (code, out) == (0, "hello\nworld\n")
    assert err.startswith("study a b: job metasearch-a-b-")


def test_a_detached_launch_returns_at_once_with_a_name_of_its_own(metasearch: Run, server: FakeJobServer) -> None:
    code, out, err = metasearch("launch", "digits", "--detach", f"--submit={server.url}", "--space", "quick")
    words, _ = the_job(server)
    name = words[words.index("--name") + 1]
    assert (code, out) == (0, "")
    assert name.startswith("digits-quick-")
    assert f"metasearch logs|status|stop {name} --submit {server.url}" in err
    assert not any(request.endswith("/logs") for request in server.asked)


def test_no_secret_of_the_submitter_goes_along(
    metasearch: Run, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", "postgresql://u:canary@host/db")
    metasearch("launch", "digits", "--detach", "--submit", server.url)
    assert "canary" not in the_job(server)[1]
    code, _, err = metasearch("launch", "digits", "--submit", server.url, "--storage", "postgresql://u:canary@host/db")
    assert code == 2
    assert "must not hold a password" in err
    assert "canary" not in err
    assert len(server.jobs) == 1


def test_files_that_a_launch_reads_once_go_along(metasearch: Run, server: FakeJobServer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("some: space\n")
    (tmp_path / "first.yaml").write_text("[]\n")
    space, enqueue = str(tmp_path / "mine.yaml"), f"--enqueue={tmp_path / 'first.yaml'}"
    metasearch("launch", "digits", "--space", space, enqueue, "--detach", "--submit", server.url)
    words, _ = the_job(server)
    assert {"--space=space-mine.yaml", "--enqueue=enqueue-first.yaml"} <= set(words)
    (job,), ((path, content),) = server.jobs.values(), server.packages.items()
    assert job["runtime_env"]["working_dir"] == f"gcs://{path.rsplit('/', 1)[1]}"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("space-mine.yaml") == b"some: space\n"
        assert sorted(archive.namelist()) == ["enqueue-first.yaml", "space-mine.yaml"]


def test_a_file_that_is_too_large_does_not_go_along(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (submit_command.MOST_CARRIED_BYTES + 1))
    with pytest.raises(InputError, match="must be at most 1 MB"):
        packed(["--enqueue", str(tmp_path / "large.yaml")])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data-root", "data"],
        ["--teacher-weights=w.safetensors"],
        ["--meta", "m.safetensors"],
        ["--artefacts", "kept"],
        ["--teacher", "t.onnx"],
        ["--teacher=0.5*t.onnx"],
    ],
)
def test_a_relative_path_that_only_this_machine_could_find_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.onnx").touch()
    with pytest.raises(InputError, match="must be an absolute path with --submit"):
        packed(arguments)


def test_what_is_no_relative_path_goes_as_it_is() -> None:
    arguments = ["--teacher=0.5*resnet18", "--teacher-weights=own", "--data-root=/data", "--init-from=digits-quick-1"]
    arguments += ["--teacher=2*/data/t.onnx", "--artefacts=s3://bucket/kept", "--meta=s3://bucket/m.safetensors", "-h"]
    arguments += [f"--space={'s' * 300}", "--init-from=~nosuchuser"]
    assert packed(arguments) == (arguments, {})


@pytest.mark.parametrize(
    ("flag", "text", "path"),
    [
        ("TASK", "folder:photos", "photos"),
        ("TASK", "npz:/data/train.npz,test.npz", "test.npz"),
        ("TASK", "table:t.csv#label", "t.csv"),
        ("TASK", "folder:/data/photos@groups:g.json#red", "g.json"),
        ("--source", "idx:/data/images,labels", "labels"),
        ("--meta-family", "digits,folder:photos,usps", "photos"),
        ("--unlabelled", "images:photos", "photos"),
    ],
)
def test_a_task_that_only_this_machine_could_find_is_refused(
    metasearch: Run, server: FakeJobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flag: str, text: str, path: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / path).touch()
    given = [text] if flag == "TASK" else ["digits", flag, text]
    code, _, err = metasearch("launch", *given, "--submit", server.url)
    rule = "must be an absolute path with --submit, which the head and all nodes see"
    assert (code, err) == (2, f"metasearch: {flag} {text}: {rule}, got {path!r}\n")
    assert not server.jobs


def test_a_task_below_the_clusters_data_root_goes_along(metasearch: Run, server: FakeJobServer) -> None:
    tasks = ["folder:there", "--source", "usps", "--meta-family", "digits,npz:/data/a.npz", "--unlabelled", "rest:100"]
    metasearch("launch", *tasks, "--max-train=1000", "--detach", "--submit", server.url)
    assert [word for word in the_job(server)[0] if word in tasks] == tasks


def test_another_address_and_a_database_in_the_jobs_folder_are_refused(metasearch: Run, server: FakeJobServer) -> None:
    with pytest.raises(InputError, match="--address: must not be given with --submit"):
        job_arguments(["launch", "digits", "--address", "auto", "--submit", "x"], name=None)
    code, _, err = metasearch("launch", "digits", "--submit", server.url, "--storage", "sqlite:///studies.db")
    assert code == 2
    assert "--storage: must have an absolute path with --submit" in err
    assert metasearch("launch", "digits", "--detach")[0::2] == (2, "metasearch: --detach: needs --submit\n")


def test_the_last_job_of_a_study_is_asked_for_stopped_and_read(metasearch: Run, server: FakeJobServer) -> None:
    for _ in range(2):
        metasearch("launch", "digits", "--name", "s", "--detach", "--submit", server.url)
    first, last = sorted(server.jobs, key=lambda job: server.jobs[job]["start_time"])
    server.jobs[first] |= server.ends_as
    code, out, _ = metasearch("status", "s", "--json", "--submit", server.url)
    assert code == 0
    assert json.loads(out)["id"] == last
    assert metasearch("logs", "s", "--submit", server.url)[1] == "hello\n"
    assert metasearch("stop", "s", "--submit", server.url)[0] == 0
    assert server.jobs[last]["status"] == "STOPPED"
    assert metasearch("status", "s", "--submit", server.url)[1] == f"s: job {last} STOPPED\n"
    code, _, err = metasearch("stop", "s", "--submit", server.url)
    assert (code, err) == (1, f"metasearch: study s: its job {last} has ended (STOPPED)\n")
    code, _, err = metasearch("status", "t", "--submit", server.url)
    assert code == 3
    assert "there are: s" in err


def test_a_running_job_is_not_hidden_by_a_later_one_that_was_refused(metasearch: Run, server: FakeJobServer) -> None:
    for _ in range(2):
        metasearch("launch", "digits", "--name", "s", "--detach", "--submit", server.url)
    running, refused = sorted(server.jobs, key=lambda job: server.jobs[job]["start_time"])
    server.jobs[refused] |= {"status": "FAILED", "driver_exit_code": 5}
    assert metasearch("status", "s", "--submit", server.url)[1] == f"s: job {running} RUNNING\n"
    metasearch("logs", "s", "--submit", server.url)
    assert metasearch("stop", "s", "--submit", server.url)[0] == 0
    asked = [request for request in server.asked if request.endswith(("/logs", "/stop"))]
    assert asked == [f"GET /api/jobs/{running}/logs", f"POST /api/jobs/{running}/stop"]


def test_a_resumed_study_keeps_its_name(metasearch: Run, server: FakeJobServer) -> None:
    metasearch("resume", "s", "--trials", "9", "--submit", server.url, "--detach")
    assert the_job(server)[0] == ["resume", "--address", "auto", "s", "--trials", "9"]
    assert JobServer(server.url).job_of("s").status == "RUNNING"


def test_a_client_without_the_token_is_refused_in_one_line_with_the_next_step(
    metasearch: Run, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    code, _, err = metasearch("launch", "digits", "--submit", server.url)
    assert (code, err.count("\n")) == (1, 1)
    assert "refused our token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in err
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, _, err = metasearch("status", "s", "--submit", server.url)
    assert (code, err.count("\n")) == (1, 1)
    assert "asks for a token" in err
    assert "canary" not in err


def test_the_token_does_not_go_to_a_proxy_that_could_read_it(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # urlopen's, which knows the proxies of its first use
    monkeypatch.delenv("no_proxy", raising=False)
    with fake_job_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        JobServer(server.url).submit(["launch"], "s", files={})
        assert (proxy.asked, server.asked) == ([], ["POST /api/jobs/"])


def test_a_server_that_is_not_there_or_no_url_is_one_line(metasearch: Run) -> None:
    code, _, err = metasearch("status", "s", "--submit", "http://127.0.0.1:9")
    assert (code, err.count("\n")) == (1, 1)
    assert "job server http://127.0.0.1:9: no answer" in err
    for url in ("head:8265", "http://[::1", "http://.:8", "http://head:port"):
        code, _, err = metasearch("status", "s", "--submit", url)
        assert code == 2
        assert "--submit: must be the URL of a Ray dashboard" in err


@pytest.mark.parametrize("answer", [b"<html>another program", b"[]", b"{}", b"7", b"[{}]", b"\xff"])
def test_another_web_server_is_no_dashboard(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "_ask", lambda self, method, path, body=None: answer)
    server = JobServer("http://head:80")
    calls: list[Callable[[], object]] = [
        lambda: server.submit(["launch"], "s", files={}),
        lambda: server.job("s"),
        lambda: server.logs("s"),
        lambda: server.stop("s"),
    ]
    if answer not in (b"[]", b"{}", b"[{}]"):  # else a list of jobs, none of them ours
        calls.append(server.jobs)
    for call in calls:
        with pytest.raises(MetasearchError, match=r"^job server http://head:80: does not answer as a Ray dashboard$"):
            call()


def test_ctrl_c_leaves_the_job_running(metasearch: Run, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    code, _, err = metasearch("launch", "digits", "--name", "s", "--submit", server.url)
    assert code == 130
    assert f"the job runs on; metasearch logs|status|stop s --submit {server.url}" in err
    assert not any(request.endswith("/stop") for request in server.asked)


def test_following_goes_on_after_requests_that_failed(
    metasearch: Run, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    server.faults = [0, 503, 0]
    code, out, err = metasearch("launch", "digits", "--name", "s", "--submit", server.url)
    assert (code, out) == (0, "hello\nworld\n")
    assert f"job server {server.url} is away" in err
    assert "trying again for up to 60 s" in err


def test_following_ends_at_once_where_waiting_mends_nothing(metasearch: Run, server: FakeJobServer) -> None:
    server.faults = [404]
    code, _, err = metasearch("launch", "digits", "--name", "s", "--submit", server.url)
    assert code == 1
    assert "is away" not in err
    assert server.faults == []


def test_a_long_log_is_asked_for_less_often_and_its_end_at_once(
    server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = 5_000_000 * "x"
    server.logs = [long, f"{long}y"]
    client = JobServer(server.url)
    job = client.submit(["launch"], "s", files={})
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            server.jobs[job] |= server.ends_as

    monkeypatch.setattr(time, "sleep", pause)
    written: list[str] = []
    ended = client.follow(job, write=written.append, tell=written.append)
    assert ended.status == "SUCCEEDED"
    assert written == [long, "y"]
    assert sum(request.endswith("/logs") for request in server.asked) == 2


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        ("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 5, 5), ("FAILED", 130, 130),
        ("FAILED", -9, 1), ("FAILED", None, 1), ("STOPPED", None, 130),
    ],
)  # fmt: skip
def test_the_drivers_exit_code_is_ours_and_a_job_that_was_lost_gives_one(
    status: str, code: int | None, ours: int
) -> None:
    assert exit_code(Job("j", "s", status, "", code, None, None)) == ours


def test_a_failed_job_ends_the_launch_with_its_code(metasearch: Run, server: FakeJobServer) -> None:
    server.ends_as = {"status": "FAILED", "driver_exit_code": 4, "message": "failed with exit code 4"}
    code, _, err = metasearch("launch", "digits", "--name", "s", "--submit", server.url)
    assert code == 4
    assert err.endswith("FAILED\n")


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert token() == "of the home"
    (tmp_path / "file").write_text(" of the file \n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert token() == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert token() == "of the environment"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH: cannot be read"):
        token()
    for unfit in (b"\xffcanary", b"canary\ncanary", "canary €".encode()):
        (tmp_path / "file").write_bytes(unfit)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
        with pytest.raises(InputError, match=r"must hold a token in printable ASCII$") as refused:
            token()
        assert "canary" not in str(refused.value)
