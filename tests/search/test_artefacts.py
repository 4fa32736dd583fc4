"""Artefact folders: whole files or none, their digests, on a local disk and elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.records import TrialResult
from metasearch.search.artefacts import (
    KeptFile,
    check_writable,
    digest_of,
    fetch,
    fetch_all,
    is_there,
    joined,
    kept_files,
    location,
    publish,
    remove,
    trial_folder,
    trial_numbers,
)
from metasearch.search.launch import onnx_file


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "student.safetensors").write_bytes(b"weights" * 1000)
    (folder / "model.onnx").write_bytes(b"graph")
    return folder


@pytest.fixture(params=["folder", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, the same as a URL, and a file system without directories or renaming, as an object store is."""
    text = {"folder": str(tmp_path / "a"), "file": f"file://{tmp_path / 'a'}", "memory": "memory://bucket/a"}
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return location(text[request.param])


def test_what_is_published_is_fetched_with_its_digest(root: str, made: Path) -> None:
    folder = trial_folder(joined(root, "study"), 7)
    digests = publish(made, folder)
    assert digests == {file.name: digest_of(file) for file in made.iterdir()}
    for file in made.iterdir():
        fetched = fetch(joined(folder, file.name), digests[file.name])
        assert fetched is not None
        assert fetched.read_bytes() == file.read_bytes()
    assert trial_numbers(joined(root, "study")) == [7]


def test_a_file_that_was_changed_or_is_gone_is_known(root: str, made: Path) -> None:
    folder = trial_folder(root, 1)
    digests = publish(made, folder)
    (made / "model.onnx").write_bytes(b"another")
    (made / "student.safetensors").unlink()
    publish(made, folder)
    with pytest.raises(StorageError, match=r"model\.onnx: is not what was kept"):
        fetch(joined(folder, "model.onnx"), digests["model.onnx"])
    assert fetch(joined(folder, "student.safetensors"), digests["student.safetensors"]) is not None
    assert fetch(joined(folder, "lost"), digests["model.onnx"]) is None


def test_a_folder_removed_is_gone_and_removing_it_again_does_no_harm(root: str, made: Path) -> None:
    digests = [publish(made, trial_folder(root, number)) for number in (3, 12)]
    for _ in range(2):
        remove(trial_folder(root, 3))
    assert trial_numbers(root) == [12]
    assert fetch(joined(trial_folder(root, 3), "model.onnx"), digests[0]["model.onnx"]) is None


def test_a_study_without_artefacts_has_no_trials_there(root: str) -> None:
    assert trial_numbers(joined(root, "none")) == []


def test_what_only_looks_like_a_trials_folder_is_none(root: str, made: Path) -> None:
    for name in ("trial-00002", "trial-00001.bak", "trial-", "trial-7", "old-trial-00003"):
        publish(made, joined(root, name))
    assert trial_numbers(root) == [2]


def test_a_folder_that_can_be_written_to_stays_empty(root: str) -> None:
    check_writable(root)
    assert trial_numbers(root) == []
    files, path = fsspec.core.url_to_fs(root)
    assert not files.exists(path) or files.ls(path) == []


def test_a_file_in_the_way_is_told_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=rf"artefact folder {tmp_path}/file: must be writable"):
        check_writable(str(tmp_path / "file"))


def test_a_full_disk_is_waited_for_and_leaves_no_half_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def full(source: Path, target: str) -> None:
        Path(target).write_bytes(b"half")
        attempts.append(target)
        raise OSError(28, "No space left on device")

    folder = str(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            publish(made, folder, waits_s=(0.0, 0.0))
    assert len(attempts) == 3
    assert list(Path(folder).iterdir()) == []
    assert set(publish(made, folder)) == {"student.safetensors", "model.onnx"}


class PayloadError(Exception):
    """As `aiohttp.ClientPayloadError` and `botocore.exceptions.BotoCoreError`: no OSError, of a library's own."""


def test_what_a_remote_file_system_raises_of_its_own_is_waited_for_as_any_error_of_files(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        attempts.append(1)
        raise PayloadError("response\nis not completed")

    attempts: list[int] = []
    folder = "memory://bucket/failing"
    for method in ("put_file", "pipe_file", "get_file", "ls", "rm", "exists"):
        monkeypatch.setattr(fsspec.filesystem("memory"), method, failing)
    with pytest.raises(OSError, match=r"PayloadError: response is not completed: 'memory:.*model\.onnx'$"):
        publish(made, folder, waits_s=(0.0, 0.0))
    assert len(attempts) == 3
    with pytest.raises(StorageError, match=r"must be writable: PayloadError: response is not completed$"):
        check_writable(folder)
    with pytest.raises(OSError, match="PayloadError"):
        is_there(folder)
    for call in (trial_numbers, partial(fetch, digest="0" * 64)):
        with pytest.raises(StorageError, match=r"^memory://bucket/failing: PayloadError: response is not completed$"):
            call(folder)
    remove(folder)


def test_a_download_by_http_that_breaks_off_is_said_in_a_line(metasearch_home: Path) -> None:
    pytest.importorskip("aiohttp")

    class BreaksOff(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"the first of them")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        file = f"http://127.0.0.1:{server.server_port}/start.safetensors"
        try:
            with pytest.raises(StorageError, match=rf"^{file}: Client\w+Error: .*not completed"):
                KeptFile.at(file)
        finally:
            server.shutdown()
            thread.join()
    assert [path for path in metasearch_home.rglob("*") if path.is_file()] == []


def test_a_fault_of_the_code_is_none_of_the_files_and_is_not_tried_again(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def faulty(*_: object) -> None:
        attempts.append(1)
        raise TypeError("a fault")

    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", faulty)
    with pytest.raises(TypeError, match="a fault"):
        publish(made, "memory://bucket/faulty", waits_s=(0.0, 0.0))
    assert len(attempts) == 1


def test_a_folder_is_kept_as_an_absolute_path_and_a_url_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert location("here") == str(tmp_path / "here")
    assert location("memory://bucket/a/") == "memory://bucket/a"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("nowhere://x", "must be a path or a URL that fsspec opens: .*nowhere"),
        ("reference://x", "must be a path or a URL that fsspec opens: .*missing"),
        ("dir://x", "must be a path or a URL that fsspec opens"),
        ("http://user:canary@[::1/x", "must be a path or a URL: Invalid IPv6"),
        ("~nosuchuser/x", "must be a path of a user that there is"),
        ("a\0b", "must be a path or a URL"),
        ("s3://key:canary@bucket/a", "must hold no secret"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_line(text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        location(text)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_and_a_file_system_that_is_only_read_are_no_places_for_artefacts() -> None:
    with pytest.raises(StorageError, match=r"^ftp://127\.0\.0\.1:1/x: Connection refused$"):
        location("ftp://127.0.0.1:1/x")
    with pytest.raises(StorageError, match=r"^artefact folder data://x: must be writable: Read only"):
        check_writable(location("data://x"))


def test_a_copy_from_elsewhere_is_made_once(root: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = publish(made, trial_folder(root, 0))
    file = joined(trial_folder(root, 0), "model.onnx")
    first = fetch(file, digests["model.onnx"])
    opened, _ = fsspec.core.url_to_fs(file)
    monkeypatch.setattr(type(opened), "get_file", None)
    assert fetch(file, digests["model.onnx"]) == first


def test_a_file_is_kept_by_its_place_and_by_what_it_is(root: str, made: Path, metasearch_home: Path) -> None:
    digests = publish(made, root)
    file = KeptFile.at(joined(root, "model.onnx"))
    assert file == KeptFile(joined(root, "model.onnx"), digests["model.onnx"])
    described = {"new": asdict(file), "old": file.place}
    assert kept_files(json.loads(json.dumps(described))) == {"new": file, "old": file}
    shutil.rmtree(metasearch_home / "cache", ignore_errors=True)
    assert fetch_all({"a": file})["a"].read_bytes() == b"graph"
    (made / "model.onnx").write_bytes(b"another")
    publish(made, root)
    shutil.rmtree(metasearch_home / "cache", ignore_errors=True)
    with pytest.raises(StorageError, match=r"model\.onnx: is not what was kept"):
        file.fetch()
    remove(root)
    for read in (file.fetch, partial(KeptFile.at, file.place)):
        with pytest.raises(NotFoundError, match=r"a/model\.onnx: no such file$"):
            read()


def test_a_download_that_is_not_what_was_kept_gets_no_place_in_the_cache(
    made: Path, metasearch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish(made, "memory://bucket/broken")["model.onnx"]
    file = "memory://bucket/broken/model.onnx"

    def cut_off(path: str, local: str) -> None:
        Path(local).write_bytes(b"gra")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.filesystem("memory"), "get_file", cut_off)
        with pytest.raises(StorageError, match=r"model\.onnx: is not what was kept"):
            fetch(file, digest)
    assert [path for path in metasearch_home.rglob("*") if path.is_file()] == []
    copy = fetch(file, digest)
    assert copy is not None
    copy.write_bytes(b"gra")  # damaged in the cache
    assert fetch(file, digest) == copy
    assert copy.read_bytes() == b"graph"


def test_an_onnx_file_that_is_another_trials_is_told_and_not_measured(root: str, made: Path) -> None:
    lines: list[str] = []
    result = TrialResult({}, 0, {}, artefacts=publish(made, root))
    assert onnx_file(root, replace(result, artefacts={}), tell=lines.append) is None
    own = onnx_file(root, result, tell=lines.append)
    assert own is not None
    assert own.read_bytes() == b"graph"
    other = replace(result, artefacts={"model.onnx": digest_of(made / "student.safetensors")})
    assert lines == []
    assert onnx_file(root, other, tell=lines.append) is None
    assert lines == [
        f"latency is not measured of {root}/model.onnx: is not what was kept: its SHA-256 differs from the one in the "
        "study"
    ]
