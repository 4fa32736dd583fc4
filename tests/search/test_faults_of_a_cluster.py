"""A short form of `python -m tests.bench faults`: a real search, whose cluster and database fail under it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.cluster import ray_cluster
from tests.fault_run import FaultRun, Plan, small_disk
from tests.postgresql import programs, serving

pytestmark = pytest.mark.slow


def test_a_search_comes_to_exactly_n_trials_whatever_fails_under_it(tmp_path: Path) -> None:
    binaries = programs()
    if binaries is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    plan = Plan(
        trials=12,
        seed=3,
        kinds=("worker", "driver", "database", "disk"),
        gap_s=(1.0, 2.0),
        most=4,
        full_s=1.0,
        again=3,
        epochs=2,
        timeout_s=400,
    )
    with (
        tempfile.TemporaryDirectory(prefix="postgresql-") as data,  # not in pytest's own, which it closes to others
        small_disk(tmp_path / "disk") as disk,
        ray_cluster(nodes=2, cpus=1) as cluster,
        serving(Path(data), binaries, address=cluster.gateway) as server,
    ):
        books = FaultRun(cluster, server, tmp_path, plan, disk=disk).run()
    assert books.wrong == []
    assert books.faults.total() >= 2  # the search may be done before the last
    assert books.compared == 3
    assert books.front >= 1
