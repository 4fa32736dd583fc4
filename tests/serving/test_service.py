"""The real service on the loopback, over Ray Serve."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metasearch.bundle.predict import read_image
from metasearch.bundle.runtime import open_bundle
from tests.bundle.stand_ins import write_stand_in
from tests.serving.running import Connection, Program, command_of, listening_addresses, serving, tree_of

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-a-test"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, and the same as an address of version 6, as /proc writes them."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("first", "second"):
        write_stand_in(folder / name, name=f"{name}-trial-1", family="resnet" if name == "second" else "convnet")
    return folder


@pytest.fixture(scope="module")
def service(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    scratch = tmp_path_factory.mktemp("service")
    (scratch / "current").symlink_to(bundles / "first")
    environment = {"METASEARCH_SERVE_TOKEN": TOKEN}
    with serving(scratch / "current", scratch, "--most-bytes", "100kB", environment=environment) as program:
        yield program


def current(service: Program) -> Path:
    return service.errors.parent / "current"


def point_to(service: Program, bundle: Path) -> None:
    """Let the link lead to another bundle, at once."""
    newer = current(service).with_name("newer")
    newer.symlink_to(bundle)
    newer.replace(current(service))


def replicas_of(service: Program) -> list[int]:
    return [pid for pid in tree_of(service.process.pid) if "ServeReplica" in command_of(pid)]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """Return a small PNG of 25 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (160_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def test_many_clients_get_the_answers_of_the_bundle_and_are_counted(service: Program, bundles: Path) -> None:
    classifier = open_bundle(bundles / "first")

    async def client(seed: int) -> None:
        async with Connection(service.address, token=TOKEN) as connection:
            for number in range(10):
                body = picture(100 * seed + number)
                status, answer = await connection.predict(body)
                [(name, probability)] = classifier.classify(read_image(io.BytesIO(body), (1, 8, 8))[None])
                assert (status, answer["class"]) == (200, name)
                assert answer["probability"] == pytest.approx(probability, abs=1e-4)
                assert answer["model"] == {"name": "first-trial-1", "digest": classifier.bundle.digest}

    async def run() -> None:
        await asyncio.gather(*(client(seed) for seed in range(16)))
        async with Connection(service.address, token=TOKEN) as connection:
            _, metrics = await connection.get("/metrics")
            assert b'metasearch_requests_total{path="/predict",status="200"} 160.0\n' in metrics
            assert b"metasearch_batch_size_sum 160.0\n" in metrics

    asyncio.run(run())


def test_every_kind_of_bad_body_gets_a_reason_and_the_service_lives(service: Program) -> None:
    good = picture(0)
    form = "multipart/form-data; boundary=xyz"
    head = b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    bodies = [
        (b"", "image/png", 400),
        (b"noise", "image/png", 400),
        (good[: len(good) // 2], "image/png", 400),
        (bomb(), "image/png", 400),
        (b"x" * 100_001, "image/png", 413),
        (good, "text/plain", 415),
        (good, form, 400),
        (head + good, form, 400),
        (head + b"noise\r\n--xyz--", form, 400),
        (b'{"rows": [[1]]}', "application/json", 415),
    ]

    async def run() -> None:
        async with Connection(service.address, token=TOKEN) as connection:
            for body, content_type, status in bodies:
                found, answer = await connection.predict(body, content_type)
                assert (found, list(answer)) == (status, ["error"])
            assert (await connection.predict(head + good + b"\r\n--xyz--", form))[0] == 200
            assert (await connection.get("/readyz"))[0] == 200

    asyncio.run(run())


def test_all_of_it_listens_on_the_loopback_alone(service: Program) -> None:
    pids = tree_of(service.process.pid)
    assert replicas_of(service)
    assert listening_addresses(pids) <= LOOPBACK


def test_the_token_is_asked_for_and_nowhere_to_be_found(service: Program) -> None:
    async def run() -> None:
        for token in (None, "another-token-of-a-test"):
            async with Connection(service.address, token=token) as connection:
                assert (await connection.predict(picture(0)))[0] == 401

    asyncio.run(run())
    own, *others = tree_of(service.process.pid)
    assert TOKEN not in command_of(own)
    for pid in others:
        assert TOKEN not in command_of(pid)
        assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert TOKEN not in service.said()


def test_a_reload_under_load_drops_no_request_and_a_bad_bundle_changes_nothing(
    service: Program, bundles: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundles / "first", broken)
    with (broken / "model.onnx").open("ab") as file:
        file.write(b"more")
    seen: list[str] = []

    async def run() -> None:
        ended = asyncio.Event()

        async def client(seed: int) -> None:
            async with Connection(service.address, token=TOKEN) as connection:
                while not ended.is_set():
                    status, answer = await connection.predict(picture(seed))
                    assert status == 200
                    seen.append(answer["model"]["name"])

        clients = [asyncio.create_task(client(seed)) for seed in range(8)]
        await asyncio.sleep(0.5)
        for bundle, says in (
            (bundles / "second", "serving second-trial-1 ("),
            (broken, "stays in service: "),
            (bundles / "first", "instead of second-trial-1 ("),
        ):
            point_to(service, bundle)
            service.reload()
            await asyncio.to_thread(service.wait_until_said, says)
            if bundle == broken:
                assert seen[-1] == "second-trial-1"
        await asyncio.sleep(1)
        ended.set()
        await asyncio.gather(*clients)

    asyncio.run(run())
    assert seen[0] == seen[-1] == "first-trial-1"
    assert "second-trial-1" in seen
    assert len(service.said().splitlines()) == 4


def test_a_replica_that_is_killed_comes_back(service: Program) -> None:
    for replica in replicas_of(service):
        os.kill(replica, signal.SIGKILL)

    async def run() -> None:
        end = time.monotonic() + 60
        answered = 0
        async with Connection(service.address, token=TOKEN) as connection:
            while answered < 20:
                status, answer = await connection.predict(picture(0))
                assert status in (200, 503), answer
                answered += status == 200
                assert time.monotonic() < end
                await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.parametrize("interrupt", ["terminated", "Ctrl-C"])
def test_it_answers_what_it_was_asked_and_ends_whole(interrupt: str, bundles: Path, tmp_path: Path) -> None:
    async def run(program: Program) -> None:
        async with Connection(program.address) as connection:
            head = b'--xyz\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
            form = 3 * (head + picture(0) + b"\r\n") + b"--xyz--"
            assert (await connection.predict(form, "multipart/form-data; boundary=xyz"))[0] == 200
            asked = asyncio.create_task(connection.predict(picture(0)))  # waits for two more to come along
            await asyncio.sleep(0.5)
            assert not asked.done()
            if interrupt == "Ctrl-C":
                os.killpg(program.process.pid, signal.SIGINT)  # a terminal tells every process of the group
            else:
                program.process.terminate()
            assert (await asked)[0] == 200
        with pytest.raises(ConnectionRefusedError):
            await Connection(program.address).__aenter__()

    with serving(bundles / "first", tmp_path, "--batch-wait-ms", "2000") as program:
        pids = tree_of(program.process.pid)
        folders = {part for pid in pids for part in command_of(pid).split() if "/metasearch-serve-" in part}
        asyncio.run(run(program))
        assert program.process.wait(60) == 0
        assert program.said().count("\n") == 1
    assert [command_of(pid) for pid in pids if "ray" in command_of(pid)] == []
    assert folders
    assert not any(Path(folder.partition("=")[2] or folder).exists() for folder in folders)
