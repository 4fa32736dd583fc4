"""A search of 200 short trials under faults: what must be whole at its end is checked, and faults are counted."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.sides import Verdict, conditions, print_table
from tests.cluster import ray_cluster
from tests.fault_run import FaultRun, Plan, small_disk
from tests.postgresql import programs, serving

FULL = Plan(trials=200, seed=1, epochs=90)
QUICK = Plan(trials=24, seed=1, gap_s=(2.0, 4.0), cut_s=5.0, full_s=3.0, again=5, epochs=3)
LEAST_FAULTS = 30


def run(*, quick: bool) -> Verdict:
    """Run the search on a head and three nodes with PostgreSQL; judge its books."""
    binaries = programs()
    if binaries is None:
        return Verdict("faults", None, "skipped: needs PostgreSQL (Debian's package postgresql)")
    with tempfile.TemporaryDirectory(prefix="metasearch-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # the database server is another user
        (folder / "postgresql").mkdir()
        with (
            small_disk(folder / "disk") as disk,  # before the nodes, whose namespaces see what is mounted then
            ray_cluster(nodes=3, cpus=1) as cluster,
            serving(folder / "postgresql", binaries, address=cluster.gateway) as server,
        ):
            books = FaultRun(cluster, server, folder, QUICK if quick else FULL, disk=disk).run()
    rows = [(kind, str(count)) for kind, count in sorted(books.faults.items())]
    notes = [
        conditions(),
        f"{books.seconds:.0f} s; trials {dict(books.states)}, failures {dict(books.failures)}, lost and run again "
        f"{books.lost} times; drivers that ended by themselves, by exit code: {dict(books.exits)}",
        f"{books.compared} trials computed again, {books.front} of the front with their artefacts",
        *books.wrong,
    ]
    print_table("Faults survived, by kind", ("kind", "count"), rows, notes)
    total = books.faults.total()
    met = None if quick else not books.wrong and total >= LEAST_FAULTS
    wrong = f"; wrong: {'; '.join(books.wrong)}" if books.wrong else ""
    return Verdict("faults", met, f"{total} faults survived (target: {LEAST_FAULTS}){wrong}")
