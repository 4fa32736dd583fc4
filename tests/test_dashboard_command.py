from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from metasearch.report.loopback import reading_alone
from tests.command_line import Run
from tests.report.studies import reported_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(found, tmp_path, trials=4)
    return found


def status_of(address: str, *, method: str = "GET", host: str | None = None) -> int:
    request = urllib.request.Request(address, method=method, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_dashboard_shows_a_copy_that_goes_with_it(url: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = hashlib.sha256((tmp_path / "studies.db").read_bytes()).hexdigest()
    command = [sys.executable, "-m", "metasearch", "dashboard", "ten", "--port", "0", "--storage", url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert urlsplit(address).hostname == "127.0.0.1"
            assert status_of(address) == 200
            root = f"http://{urlsplit(address).netloc}"
            with urllib.request.urlopen(f"{root}/api/studies", timeout=60) as answer:
                names = [study["study_name"] for study in json.load(answer)["study_summaries"]]
            assert names == ["ten", "ten/controls"]
            study = address.rpartition("/")[2]
            assert status_of(f"{root}/api/studies/{study}", method="DELETE") == 405
            assert status_of(f"{root}/api/studies", host="evil.example") == 403
            assert len(list(scratch.iterdir())) == 1
        finally:
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # else the block would wait for it without end
                raise
    assert (process.returncode, out, err) == (0, "", "")
    assert list(scratch.iterdir()) == []
    assert hashlib.sha256((tmp_path / "studies.db").read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    ("method", "host", "passed"),
    [
        ("GET", "127.0.0.1:80", True),
        ("HEAD", "127.0.0.1:80", True),
        ("POST", "127.0.0.1:80", False),
        ("PUT", "127.0.0.1:80", False),
        ("GET", "elsewhere:80", False),
        ("GET", None, False),
    ],
)
def test_only_reading_from_this_machine_reaches_the_app(method: str, host: str | None, passed: bool) -> None:
    reached: list[Any] = []
    told: list[str] = []

    def answer(environment: Any, start: Any) -> list[bytes]:
        reached.append(environment)
        return []

    def start(status: str, *rest: Any) -> Any:
        told.append(status)

    environment = {"REQUEST_METHOD": method} | ({} if host is None else {"HTTP_HOST": host})
    list(reading_alone(answer, ["127.0.0.1:80"])(environment, start))
    assert (len(reached), len(told)) == ((1, 0) if passed else (0, 1))


def test_without_the_extra_one_line_says_how_to_get_it(
    metasearch: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    code, out, err = metasearch("dashboard", "--storage", url)
    assert (code, out) == (2, "")
    assert err == 'metasearch: dashboard: needs optuna_dashboard: pip install "metasearch[dashboard]"\n'


def test_a_port_that_is_taken_and_a_study_that_is_not_there_are_one_line(metasearch: Run, url: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = metasearch("dashboard", "--port", port, "--storage", url)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("metasearch: --port: must be free (")
    code, _, err = metasearch("dashboard", "tan", "--storage", url)
    assert (code, "did you mean ten" in err) == (3, True)
