from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from metasearch import doctor_cluster
from metasearch.doctor_cluster import access, cluster_findings, database, node_findings, storage_place, summary
from metasearch.errors import MetasearchError
from metasearch.findings import FAILURE, OK, WARNING
from metasearch.search.nodes import NodeReport, Reach

HERE = {"python": "3.11", "torch": "2.15.0"}
FINE = NodeReport("10.0.0.2", HERE, token=True)


def test_an_open_cluster_is_flagged_twice_where_its_dashboard_can_be_reached() -> None:
    token, dashboard = access([FINE, NodeReport("10.0.0.3", HERE)], "10.0.0.2:8265")
    assert (token.level, dashboard.level) == (FAILURE, FAILURE)
    assert "10.0.0.3: the cluster is open" in token.text
    assert "RAY_AUTH_MODE=token" in token.remedy
    assert "--dashboard-host=127.0.0.1" in dashboard.remedy


@pytest.mark.parametrize(
    ("dashboard", "level"),
    [("127.0.0.1:8265", OK), ("localhost:8265", OK), ("[::1]:8265", OK), ("", OK), ("10.0.0.2:8265", WARNING)],
)
def test_with_a_token_only_a_dashboard_beyond_loopback_is_warned_of(dashboard: str, level: str) -> None:
    token, found = access([FINE, NodeReport("10.0.0.4", silent="no answer")], dashboard)
    assert (token.level, found.level) == (OK, level)


def test_each_thing_that_is_wrong_with_a_node_has_a_line_and_a_remedy() -> None:
    report = NodeReport("10.0.0.3", {**HERE, "torch": "2.11.0"}, {"artefacts": "/shared: not there"}, clock_s=-40.0)
    versions, artefacts, clock = node_findings(report, HERE)
    assert {each.what for each in (versions, artefacts, clock)} == {"node 10.0.0.3"}
    assert {each.level for each in (versions, artefacts, clock)} == {FAILURE}
    assert versions.text == "torch 2.11.0, the driver's 2.15.0"
    assert artefacts.text == "artefacts: /shared: not there"
    assert "40.0 s behind" in clock.text
    assert all(each.remedy for each in (versions, artefacts, clock))


def test_a_node_with_nothing_wrong_and_a_silent_one_have_one_line() -> None:
    (fine,) = node_findings(FINE, HERE)
    (silent,) = node_findings(NodeReport("10.0.0.4", silent="no answer in 60 s"), HERE)
    (late,) = node_findings(NodeReport("10.0.0.5", HERE, clock_s=6.0), HERE)
    assert (fine.level, silent.level, late.level) == (OK, FAILURE, WARNING)
    assert "no GPU" in fine.text


def test_artefacts_that_no_search_could_have_are_one_finding_before_the_cluster_is_joined() -> None:
    (found,) = cluster_findings("auto", data_root=None, storage=None, artefacts="badproto://x")
    assert (found.level, found.text.partition(":")[0]) == (FAILURE, "--artefacts")


def test_relative_paths_are_those_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reaches: list[Reach] = []

    def look(reach: Reach) -> list[NodeReport]:
        reaches.append(reach)
        raise MetasearchError("enough seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metasearch.search.runner.ray_running", lambda resources: nullcontext())
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr(doctor_cluster, "look_around", look)
    (found,) = cluster_findings("auto", data_root="data", storage=None, artefacts="a")
    assert found.text == "enough seen"
    assert reaches == [Reach(data_root=str(tmp_path / "data"), artefacts=str(tmp_path / "a"))]


def test_a_cluster_without_a_cpu_can_run_no_trial() -> None:
    head = {"Alive": True, "Resources": {"memory": 1.0}}
    gone = {"Alive": False, "Resources": {}}
    assert summary([head]).level == FAILURE
    assert summary([head, gone, {"Alive": True, "Resources": {"CPU": 4.0}}]).text == (
        "2 nodes, 4 CPUs, 0 GPUs; 1 have gone"
    )


def test_only_the_databases_place_goes_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_STORAGE", "postgresql://u:canary@db.example/studies")
    assert storage_place(None) == ("db.example", 5432)
    assert storage_place("sqlite:////tmp/studies.db") is None
    away = NodeReport("10.0.0.3", HERE, {"storage": "refused"})
    assert database(None, ("db.example", 5432), [FINE, away]).text == "db.example:5432: 1 nodes reach it"
    assert [finding.level for finding in node_findings(away, HERE)] == [WARNING]  # only a driver opens it
    assert database("sqlite:////tmp/studies.db", None, []).level == WARNING
    assert storage_place("postgresql:///studies") is None
    assert "without a host" in database("postgresql:///studies", None, []).text
