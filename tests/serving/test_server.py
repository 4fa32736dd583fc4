from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metasearch.errors import InputError
from metasearch.serving.answers import Answer
from metasearch.serving.app import Service
from metasearch.serving.batching import Predict
from metasearch.serving.replicas import Checked
from metasearch.serving.server import bound, is_loopback, own_names, reload, reloader
from tests.serving.asking import PNG, ask, make_bundle, make_service, open_app

FOLDER = Path("somewhere")


@dataclass
class Models:
    """Models that answer with their own name; bad ones are refused."""

    offered: list[str]
    number: int = 1
    removed: list[str] = field(default_factory=list)

    async def check(self, folder: Path) -> Checked:
        await asyncio.sleep(0.001)
        name = self.offered.pop(0)
        if name == "failing":
            raise RuntimeError("a bug\nwith much to say")
        if name == "bad":
            raise InputError(str(folder / "model.onnx"), "must be good")
        return Checked(make_bundle(name), b"", 0)

    async def deploy(self, checked: Checked) -> tuple[str, Predict]:
        async def predict(bodies: list[bytes]) -> list[Answer]:
            await asyncio.sleep(0.001)
            if checked.bundle.name in self.removed:
                raise RuntimeError("these replicas are gone")
            return [[[(checked.bundle.name, 1.0)]] for _ in bodies]

        return checked.bundle.name, predict

    async def remove(self, name: str) -> None:
        self.removed.append(name)


def reloads(service: Service, result: str) -> float:
    return float(service.metrics.reloads.labels(result)._value.get())


def test_a_newer_bundle_takes_over_once_it_is_checked() -> None:
    service, models, said = make_service(), Models(["newer"]), list[str]()
    old = service.served
    asyncio.run(reload(service, models, FOLDER, said.append))
    assert service.served.bundle.name == "newer"
    assert models.removed == [old.name]
    assert len(said) == 1
    assert said[0].startswith("serving newer (")
    assert reloads(service, "taken") == 1
    assert b'name="newer"' in service.metrics.text()
    assert b'name="pets-trial-3"' not in service.metrics.text()


def test_a_bad_bundle_leaves_the_old_one_in_service_with_one_line() -> None:
    service, models, said = make_service(), Models(["bad"]), list[str]()
    old = service.served
    asyncio.run(reload(service, models, FOLDER, said.append))
    assert service.served is old
    assert models.removed == []
    assert len(said) == 1
    assert said[0].endswith(") stays in service: somewhere/model.onnx: must be good")
    assert "\n" not in said[0]
    assert (reloads(service, "refused"), reloads(service, "taken")) == (1, 0)


def test_the_same_bundle_is_left_as_it_is() -> None:
    service, models, said = make_service(), Models(["pets-trial-3"]), list[str]()
    old = service.served
    asyncio.run(reload(service, models, FOLDER, said.append))
    assert service.served is old
    assert reloads(service, "unchanged") == 1


def test_reloads_under_load_drop_no_request_and_come_in_their_order() -> None:
    names = [f"model {number}" for number in range(8)]

    async def run() -> None:
        service, models, said = make_service(), Models(list(names)), list[str]()
        app, seen = open_app(service), set[str]()

        async def client() -> None:
            while len(models.removed) < len(names):
                told = await ask(app, "/predict", method="POST", body=[b"pixels"], headers=PNG)
                assert told.status == 200
                seen.add(told.json()["class"])

        start = reloader(service, models, FOLDER, said.append)
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for _ in names:  # all at once
            start()
        await asyncio.wait_for(asyncio.gather(*clients), 30)
        assert models.removed == ["model-0", *names[:-1]]
        assert service.served.bundle.name == names[-1]
        assert len(seen) > 3

    asyncio.run(run())


def test_a_reload_that_fails_is_told_in_one_line_and_the_next_one_succeeds() -> None:
    async def run() -> None:
        service, models, said = make_service(), Models(["failing", "newer"]), list[str]()
        start = reloader(service, models, FOLDER, said.append)
        start()
        start()
        while not models.removed:
            await asyncio.sleep(0.001)
        assert said[0] == "the reload failed: RuntimeError: a bug"
        assert service.served.bundle.name == "newer"
        assert (reloads(service, "refused"), reloads(service, "taken")) == (1, 1)

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_the_loopback_is_this_machine_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


def test_a_browser_may_use_the_services_own_names_and_no_others() -> None:
    assert own_names("127.0.0.1", 8000) == {"127.0.0.1:8000", "localhost:8000"}
    assert own_names("::1", 8000) - own_names("127.0.0.1", 8000) == {"[::1]:8000"}
    assert own_names("127.0.0.9", 80) >= {"127.0.0.9", "127.0.0.9:80"}  # the port of HTTP goes without saying


def test_a_bound_port_is_taken_at_once() -> None:
    with bound("127.0.0.1", 0) as listening:
        with pytest.raises(InputError, match=r"must be free .*in use") as refused:
            bound("127.0.0.1", listening.getsockname()[1])
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["192.0.2.7", "a..b", "2001:db8::1", "1:2"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=r"^--host: must be an address of this machine, got "):
        bound(host, 0)
