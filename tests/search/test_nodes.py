"""What is asked of nodes, and what is refused; with real nodes in `tests/test_on_a_cluster.py`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import metasearch
from metasearch.errors import MetasearchError
from metasearch.search import nodes
from metasearch.search.artefacts import probed
from metasearch.search.connect import check_reachable
from metasearch.search.nodes import NodeReport, Reach, check_versions, examine, refusals, unlike, versions_here
from metasearch.search.pipeline_worker import PipelineWorker, run_request
from metasearch.search.worker import TrialRequest, TrialWorker
from metasearch.tasks import TaskSource
from metasearch.teachers import Teacher

NO_TEACHER = Teacher("none", seed=0, logits={}, metrics={})
HERE = {"python": "3.11", "metasearch": "0.1.0", "torch": "2.15.0", "package": "aaaa"}


def test_versions_name_what_must_be_alike_on_all_nodes() -> None:
    here = versions_here()
    assert set(here) == {"python", "metasearch", "ray", "torch", "optuna", "package"}
    assert "+" not in here["torch"]
    assert here == versions_here()


def test_the_package_hash_changes_with_a_file_and_not_with_its_place(tmp_path: Path) -> None:
    copy = tmp_path / "metasearch"
    shutil.copytree(Path(metasearch.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def digest() -> str:
        program = "from metasearch.search.nodes import package_digest; print(package_digest())"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.check_output([sys.executable, "-c", program], env=environment, cwd=tmp_path, text=True)

    assert digest().strip() == nodes.package_digest()
    (copy / "errors.py").open("a").write("\n")
    assert digest().strip() != nodes.package_digest()


def test_a_difference_names_what_is_there_and_what_the_driver_has() -> None:
    assert unlike(HERE, HERE) == []
    assert unlike({**HERE, "torch": "2.11.0"}, HERE) == ["torch 2.11.0, the driver's 2.15.0"]
    assert unlike({**HERE, "package": "bbbb"}, HERE) == ["metasearch's files bbbb, the driver's aaaa"]
    older = {**HERE, "metasearch": "0.0.9", "package": "bbbb"}
    assert unlike(older, HERE) == ["metasearch 0.0.9, the driver's 0.1.0"]
    assert unlike({}, {"optuna": "5"}) == ["optuna not there, the driver's 5"]


def test_a_node_that_is_silent_differs_or_does_not_reach_something_is_refused_by_name() -> None:
    reports = [
        NodeReport("10.0.0.2", HERE),
        NodeReport("10.0.0.3", {**HERE, "torch": "2.11.0"}, {"artefacts": "/shared: not there"}),
        NodeReport("10.0.0.4", silent="no answer in 60 s"),
    ]
    assert refusals(reports, HERE) == [
        "node 10.0.0.3: torch 2.11.0, the driver's 2.15.0; /shared: not there",
        "node 10.0.0.4: no answer in 60 s",
    ]


def problems(reach: Reach, probe: str = "probe") -> dict[str, str]:
    found: dict[str, str] = examine({**asdict(reach), "probe": probe})["problems"]
    return found


def test_an_artefact_folder_that_is_not_the_drivers_is_a_problem_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    reach = Reach(artefacts=str(tmp_path))
    assert "must be shared" in problems(reach)["artefacts"]
    (tmp_path / "probe").touch()
    assert problems(reach) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_an_artefact_url_is_looked_at_through_fsspec(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    assert "must be shared" in problems(Reach(artefacts=url))["artefacts"]
    with probed(url) as probe:
        assert problems(Reach(artefacts=url), probe) == {}
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there_is_a_problem_only_for_a_task_that_needs_it(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert problems(Reach(task=TaskSource("digits", data_root=nowhere))) == {}
    assert "not found in" in problems(Reach(task=TaskSource("fashion_mnist", data_root=nowhere)))["data"]
    assert "nowhere" in problems(Reach(data_root=nowhere))["data"]


def test_a_database_is_reached_where_its_port_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()[:2]
        assert problems(Reach(storage=place)) == {}
    assert "refused" in problems(Reach(storage=place))["storage"].lower()


@pytest.mark.parametrize("devices", [True, False])
def test_devices_are_looked_for_only_where_they_are_asked_for(devices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "gpu_devices", lambda: [("a GPU", 8)])
    assert examine({**asdict(Reach()), "probe": "", "devices": devices})["devices"] == ([("a GPU", 8)] * devices)


@pytest.mark.parametrize(("gpus", "devices"), [(0.0, False), (0.25, True), (1.0, False)])
def test_a_launch_asks_nodes_for_no_more_than_it_needs(
    gpus: float, devices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, bool]] = []

    def look(reach: Reach, **what: bool) -> list[NodeReport]:
        asked.append(what)
        return [NodeReport("10.0.0.2", versions_here())]

    monkeypatch.setattr(nodes, "look_around", look)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    told: list[str] = []
    nodes.check_nodes(Reach(), cpus=1, gpus=gpus, tell=told.append)
    assert asked == [{"devices": devices, "clocks": False}]
    assert told


# A worker process


def test_a_worker_on_a_node_of_another_version_loses_its_trial_with_the_cause() -> None:
    check_versions({})
    worker = TrialWorker.__new__(TrialWorker)
    versions = {**versions_here(), "optuna": "4.0.0"}
    prepare = PipelineWorker(TaskSource("digits"), NO_TEACHER, {}, {}, "cpu", 1, versions=versions)
    worker.setup({"request": TrialRequest(0, {}, seed=0)}, prepare, run_request, threads=1)
    outcome = worker.step()["outcome"]
    assert outcome.failure["reason"] == "lost"
    assert "the driver's 4.0.0" in outcome.failure["message"]
    assert f"node {socket.gethostname()}" in outcome.failure["message"]


@pytest.mark.parametrize(("device", "set_to"), [("cuda", [0.25]), ("cpu", [])])
def test_a_worker_bounds_its_gpu_memory_before_anything_is_loaded(
    device: str, set_to: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", calls.append)

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(torch, "set_num_threads", stop)
    worker = PipelineWorker(TaskSource("digits"), NO_TEACHER, {}, {}, device, 1, gpu_memory=0.25)
    with pytest.raises(InterruptedError):
        worker()
    assert calls == set_to


# The address


@pytest.mark.slow
def test_an_address_where_no_ray_answers_is_refused_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MetasearchError, match=rf"Ray at 127\.0\.0\.1:{port}: no answer; `ray status` on the head"):
        check_reachable(f"127.0.0.1:{port}")
