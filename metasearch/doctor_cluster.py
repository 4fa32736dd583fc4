"""`metasearch doctor --address`: whether every node of a Ray cluster can run trials, and who else may use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from metasearch.errors import MetasearchError, StorageError
from metasearch.findings import FAILURE, OK, WARNING, Finding
from metasearch.search.nodes import NodeReport, Reach, look_around
from metasearch.search.versions import unlike, versions_here

CLOCK_WARNING_S, CLOCK_FAILURE_S = 5.0, 30.0
"""A driver that has not renewed its lease for 60 s counts as dead, by the clock of whoever looks."""
TOKEN = "start every node with RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate` makes it)"
LOOPBACK = ("127.", "localhost", "[::1]")
REMEDIES = {
    "data_root": "put the data at this path on every node, or --data-root names one that all see",
    "artefacts": "--artefacts names a folder that all nodes see, or a URL",
    "storage": "trials need none; before a driver runs there, open the database's port to this node",
}


def cluster_findings(
    address: str, *, data_root: str | None, storage: str | None, artefacts: str | None
) -> Iterator[Finding]:
    """Yield what the nodes of the cluster at `address` have and reach.

    artefacts: the folder of searches there, None for the one in this machine's home folder, as `launch` has it.
    """
    import ray

    from metasearch.folders import artefact_folder
    from metasearch.search.artefacts import location
    from metasearch.search.runner import Resources, ray_running

    try:
        place = storage_place(storage)
        reach = Reach(
            data_root=None if data_root is None else location(data_root, flag="--data-root"),
            artefacts=location(artefacts or str(artefact_folder())),
            storage=place,
        )
        with ray_running(Resources(address=address)):
            nodes, reports = ray.nodes(), look_around(reach)
            dashboard = ray._private.worker.get_dashboard_url()
    except StorageError as error:
        yield Finding("cluster", FAILURE, str(error), REMEDIES["artefacts"])
        return
    except MetasearchError as error:
        yield Finding("cluster", FAILURE, str(error))
        return
    yield summary(nodes)
    yield from access(reports, dashboard or "")
    here = versions_here()
    for report in reports:
        yield from node_findings(report, here)
    yield database(storage, place, reports)


def storage_place(flag: str | None) -> tuple[str, int] | None:
    """Return host and port of the storage's server, None where it has none. No password goes to the nodes."""
    from metasearch.search.names import SQLITE, storage_url

    url = storage_url(flag)
    if url.startswith(SQLITE):
        return None
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    return (parsed.host, parsed.port or 5432) if parsed.host else None


def summary(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    """Return how many nodes there are, and what they have together."""
    alive = [node for node in nodes if node["Alive"]]
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in alive) for name in ("CPU", "GPU"))
    text = f"{len(alive)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    if not cpus:
        return Finding("cluster", FAILURE, f"{text}: no trial can run", "ray start --address=HEAD:6379 joins a node")
    gone = f"; {len(nodes) - len(alive)} have gone" if len(nodes) > len(alive) else ""
    return Finding("cluster", OK, text + gone)


def access(reports: Sequence[NodeReport], dashboard: str) -> Iterator[Finding]:
    """Yield whether strangers are kept out: whoever reaches an open cluster's ports runs what he likes on it.

    dashboard: its host and port, the job server's too; "" for none.
    """
    open_nodes = [report.node for report in reports if not report.token and not report.silent]
    if open_nodes:
        yield Finding("token", FAILURE, f"none is asked for on {', '.join(open_nodes)}: the cluster is open", TOKEN)
    else:
        yield Finding("token", OK, "asked for on every node")
    host = urlsplit(f"//{dashboard}").netloc
    if not dashboard:
        yield Finding("dashboard", OK, "not running; --submit needs it")
    elif host.startswith(LOOPBACK):
        yield Finding("dashboard", OK, f"{dashboard}, for its own machine alone")
    else:
        level = FAILURE if open_nodes else WARNING
        remedy = "--dashboard-host=127.0.0.1 of `ray start`, and an SSH tunnel to it"
        yield Finding(
            "dashboard", level, f"{dashboard} can be reached from other machines, jobs submitted there", remedy
        )


def node_findings(report: NodeReport, here: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with a node, or in one line that nothing is. here: the versions of this machine."""
    what = f"node {report.node}"
    if report.silent:
        yield Finding(what, FAILURE, report.silent, "look at `ray status`, and the node's logs in /tmp/ray")
        return
    wrong = unlike(report.versions, here)
    if wrong:
        yield Finding(what, FAILURE, "; ".join(wrong), "install with one constraints.txt on all nodes, from one commit")
    for name, problem in report.problems.items():
        level = WARNING if name == "storage" else FAILURE  # only a driver opens it
        yield Finding(what, level, f"{name.replace('_', ' ')}: {problem}", REMEDIES[name])
    off = abs(report.clock_s)
    if off >= CLOCK_WARNING_S:
        level = FAILURE if off >= CLOCK_FAILURE_S else WARNING
        ahead = "ahead of" if report.clock_s > 0 else "behind"
        yield Finding(
            what, level, f"its clock is {off:.1f} s {ahead} this machine's", "run a time service such as chrony"
        )
    if not wrong and not report.problems and off < CLOCK_WARNING_S:
        devices = ", ".join(f"{name}, {size / 1e9:.0f} GB" for name, size in report.devices) or "no GPU"
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        yield Finding(what, OK, f"{versions}; {devices}; clock within {max(off, 0.1):.1f} s")


def database(flag: str | None, place: tuple[str, int] | None, reports: Sequence[NodeReport]) -> Finding:
    """Return what kind of storage a cluster's searches would use. place: as `storage_place` gives it."""
    from metasearch.search.names import SQLITE, storage_url

    if place is not None:
        reached = sum("storage" not in report.problems and not report.silent for report in reports)
        return Finding("storage of all", OK, f"{place[0]}:{place[1]}: {reached} nodes reach it")
    kind = "SQLite" if storage_url(flag).startswith(SQLITE) else "a server without a host"
    remedy = "METASEARCH_STORAGE=postgresql://USER@HOST/NAME, for studies that outlive the head"
    return Finding("storage of all", WARNING, f"{kind}: drivers on this machine alone, gone with its disk", remedy)
