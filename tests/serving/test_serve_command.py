from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import pytest

from tests.bundle.stand_ins import write_stand_in
from tests.command_line import Run

TOKEN = "METASEARCH_SERVE_TOKEN"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    write_stand_in(folder)
    return str(folder)


def test_what_is_no_bundle_is_refused_before_ray_starts(
    metasearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = metasearch("serve", str(tmp_path))
    assert (code, out, err.count("\n")) == (3, "", 1)
    write_stand_in(tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"more")
    code, out, err = metasearch("serve", str(tmp_path / "bundle"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "model.onnx: must have the SHA-256" in err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_another_host_without_a_token_is_refused(metasearch: Run, bundle: str, host: str) -> None:
    code, _, err = metasearch("serve", bundle, "--host", host)
    rule = "any but this machine needs a token, in METASEARCH_SERVE_TOKEN or --token-file"
    assert (code, err) == (2, f"metasearch: --host: {rule}, got '{host}'\n")


@pytest.mark.parametrize("token", ["", "short", "with spaces in between", "öäüöäüöäüöäüöäüöäü"])
def test_a_token_that_is_none_is_refused_and_not_shown(
    metasearch: Run, bundle: str, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, token)
    code, _, err = metasearch("serve", bundle)
    assert (code, err.count("\n")) == (2, 1)
    assert TOKEN not in os.environ
    assert not token or token not in err
    (tmp_path / "token").write_text(token, encoding="utf-8")
    code, _, err = metasearch("serve", bundle, "--token-file", str(tmp_path / "token"))
    assert (code, err.count("\n")) == (2, 1)
    assert not token or token not in err


def test_a_token_file_that_is_not_there_is_not_found(metasearch: Run, bundle: str, tmp_path: Path) -> None:
    code, _, err = metasearch("serve", bundle, "--token-file", str(tmp_path / "none"))
    assert (code, err) == (3, f"metasearch: --token-file: {tmp_path / 'none'} is not there\n")


@pytest.mark.parametrize("size", ["0", "10", "-1MB", "10ms", "much"])
def test_only_a_positive_number_of_bytes_limits_bodies(metasearch: Run, bundle: str, size: str) -> None:
    with socket.socket() as taken:  # so that the good one ends, too
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = metasearch("serve", bundle, f"--most-bytes={size}", "--port", str(taken.getsockname()[1]))
    place = "--host, --port: must be free" if size == "10" else "--most-bytes: "
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"metasearch: {place}")


def test_a_hang_up_before_it_serves_is_ignored_and_the_handlers_are_put_back(
    metasearch: Run, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starting(**options: int) -> AbstractContextManager[None]:
        os.kill(os.getpid(), signal.SIGHUP)
        raise KeyboardInterrupt

    monkeypatch.setattr("metasearch.serving.replicas.serve_running", starting)
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert metasearch("serve", bundle, "--port", "0") == (0, "", "")
    assert [signal.getsignal(number) for number in numbers] == before


def test_without_ray_serve_one_line_says_how_to_get_it(
    metasearch: Run, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.delitem(sys.modules, "ray.serve", raising=False)
    code, out, err = metasearch("serve", bundle, "--port", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("metasearch: serve: needs ray[serve] (")


def test_without_the_extra_one_line_says_how_to_get_it(
    metasearch: Run, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, out, err = metasearch("serve", bundle)
    assert (code, out, err) == (2, "", 'metasearch: serve: needs uvicorn: pip install "metasearch[serve]"\n')
