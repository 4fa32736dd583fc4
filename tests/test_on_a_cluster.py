"""Launching on a cluster of real nodes: a head and two more, PostgreSQL, a token; all processes are the tests' own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import metasearch
from tests import postgresql
from tests.bench.cluster import busy_share, cluster_with_database, spans_of, submit
from tests.cluster import Cluster, has_job_server

pytestmark = pytest.mark.slow
NODES = 2


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Cluster, str]]:
    binaries = postgresql.programs()
    if binaries is None:
        pytest.skip("no PostgreSQL: Debian's package `postgresql` is not installed")
    if not has_job_server():
        pytest.skip("no job server: the extra `cluster` is not installed")
    with cluster_with_database(binaries, nodes=NODES) as found:
        yield found


@pytest.fixture
def cluster(running: tuple[Cluster, str]) -> Cluster:
    return running[0]


def on_head(cluster: Cluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program on the head, from a folder that holds no metasearch: Ray has workers look there, too."""
    return subprocess.run(
        cluster.command(sys.executable, "-m", "metasearch", *arguments),
        cwd="/",
        env={**cluster.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_search_submitted_as_a_job_runs_on_all_nodes_and_its_output_comes_back(
    running: tuple[Cluster, str],
) -> None:
    cluster, url = running
    launch = ["launch", "digits", "--space", "quick", "--trials", "4", "--teacher", "convnet:width=8,depth=2"]
    done = submit(cluster, *launch, "--warm-start", "none", "--name", "job", timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NODES + 1} nodes of one version, {NODES} trials at once" in done.stdout
    assert "job: front of" in done.stdout
    assert "canary" not in done.stdout + done.stderr  # the password of the head's storage
    spans = spans_of(url, "job")
    assert len(spans) == 4
    assert len({each.worker for each in spans}) == NODES
    assert 0 < busy_share(spans, slots=NODES) <= 1
    assert submit(cluster, "status", "job").stdout.startswith("job: job metasearch-job-")
    assert "front of" in submit(cluster, "logs", "job").stdout


def test_a_client_without_the_token_is_refused_in_one_line(cluster: Cluster) -> None:
    for environment in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}):
        done = on_head(cluster, "status", "job", "--submit", cluster.job_server, **environment)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    done = on_head(cluster, "doctor", "--address", cluster.address, RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 1
    assert re.search(r"failure +cluster: Ray at .* refused our token", done.stdout), done.stdout


def test_a_node_of_another_version_is_named_and_no_trial_starts(cluster: Cluster, tmp_path: Path) -> None:
    package = Path(metasearch.__file__).parent
    shutil.copytree(package, tmp_path / "metasearch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "search_spaces", tmp_path / "search_spaces")
    (tmp_path / "metasearch" / "errors.py").open("a").write("# changed\n")
    other = cluster.start_node(environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(package.parent)])})
    try:
        found = on_head(cluster, "doctor", "--address", cluster.address).stdout
        assert found.count("node ") == NODES + 2
        assert re.search(rf"failure +node {cluster.nodes[other].address}: metasearch's files", found), found
        assert "token: asked for on every node" in found
        launch = ["launch", "digits", "--space", "quick", "--name", "mixed", "--trials", "1", "--warm-start", "none"]
        done = on_head(cluster, *launch, "--address", cluster.address)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"metasearch: node {cluster.nodes[other].address}: metasearch's")
        assert "teacher" not in done.stderr
    finally:
        cluster.kill(other)
