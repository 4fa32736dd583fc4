"""What is asked of nodes, and what is refused; with real nodes in `tests/test_on_a_cluster.py`."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from metasearch.errors import InputError, MetasearchError
from metasearch.search import launch, nodes
from metasearch.search.artefacts import KeptFile, probed
from metasearch.search.connect import check_reachable
from metasearch.search.nodes import NodeReport, Reach, examine, refusals
from metasearch.search.pipeline_worker import PipelineWorker, run_request
from metasearch.search.runner import Resources
from metasearch.search.versions import check_versions, versions_here
from metasearch.search.worker import TrialRequest, TrialWorker
from metasearch.tasks import TaskSource
from metasearch.teachers import Teacher
from tests.fakes import describe

NO_TEACHER = Teacher("none", seed=0, logits={}, metrics={})
HERE = {"python": "3.11", "metasearch": "0.1.0", "torch": "2.15.0", "package": "aaaa"}


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
    assert "not found in" in problems(Reach(task=TaskSource("fashion_mnist", data_root=nowhere)))["task"]
    assert "nowhere" in problems(Reach(data_root=nowhere))["data_root"]


def test_the_source_and_the_files_that_students_start_from_are_asked_for_beside_the_task(tmp_path: Path) -> None:
    nowhere, weights = str(tmp_path / "nowhere"), tmp_path / "weights"
    weights.write_bytes(b"weights")
    reach = Reach(
        task=TaskSource("digits"),
        source=TaskSource("fashion_mnist", data_root=nowhere),
        initial={"prior_student": KeptFile.at(str(weights))},
        data_root=nowhere,
    )
    assert problems(reach).keys() == {"source", "data_root"}
    weights.write_bytes(b"others")
    assert problems(reach)["initial"].startswith(f"{weights}: is not what was kept")
    weights.unlink()
    assert problems(reach)["initial"] == f"{weights}: no such file"


def test_a_driver_of_another_version_may_ask_for_less() -> None:
    assert examine({"probe": ""})["problems"] == {}


def test_a_search_on_a_cluster_asks_for_all_that_its_trials_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.touch()
    asked: list[Reach] = []
    monkeypatch.setattr(launch, "ray_running", lambda resources: nullcontext())
    monkeypatch.setattr(launch, "check_nodes", lambda reach, **_: asked.append(reach))
    kept = {"place": str(weights), "digest": KeptFile.at(str(weights)).digest}
    description = describe(tmp_path, source={"text": "usps"}, initial={"maml": kept, "prior_student": str(weights)})
    with launch._cluster_checked(description, Resources(address="auto"), print):
        file = KeptFile(**kept)
        files = {"maml": file, "prior_student": file}
        assert asked == [Reach(TaskSource("digits"), TaskSource("usps"), files, artefacts=description.artefacts)]


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
    assert ("none fits now" in " ".join(told)) == (gpus > 0)


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


@pytest.mark.parametrize(
    ("address", "environment", "place"),
    [
        ("ray://head:10001", None, "--address"),
        ("ray://head:10001", "head:6379", "--address"),
        ("auto", "ray://head:10001", "RAY_ADDRESS"),
    ],
)
def test_no_search_joins_a_cluster_by_rays_client(
    address: str, environment: str | None, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []
    monkeypatch.setattr("ray.init", lambda address, **_: joined.append(address))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    refused = pytest.raises(
        InputError, match=f"^{place}: must be auto or HOST:PORT; outside .* use --submit, got 'ray:"
    )
    with refused, launch._cluster_checked(describe(tmp_path), Resources(address=address), print):
        pass
    assert joined == []


@pytest.mark.slow
def test_an_address_where_no_ray_answers_is_refused_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MetasearchError, match=rf"Ray at 127\.0\.0\.1:{port}: no answer; `ray status` on the head"):
        check_reachable(f"127.0.0.1:{port}")
