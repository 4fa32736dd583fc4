"""What the nodes of a cluster have: one tiny task looks around on each, before the first trial runs there.

A search whose nodes differ in metasearch, torch or optuna would mix results that cannot be compared; one whose nodes
do not see the artefact folder would lose weights. Both are refused with a line that names the node.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from metasearch.errors import MetasearchError
from metasearch.search.artefacts import KeptFile, fetch_all, is_there, joined, probed
from metasearch.search.placement import memory_line, memory_share, slots
from metasearch.search.versions import unlike, versions_here
from metasearch.tasks import TaskSource

WAIT_S = 60.0
"""A node that has not answered by then is said to be silent; its first worker process starts within seconds."""


@dataclass(frozen=True)
class NodeReport:
    """What was found on a node.

    node: its address. problems: by the names of a Reach's fields, of what it does not reach. devices: name and bytes of
    each GPU. token: whether its Ray asks for one. clock_s: by how much its clock is ahead of the driver's, at least.
    silent: why it has not answered, "" if it has.
    """

    node: str
    versions: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[tuple[str, int], ...] = ()
    token: bool = False
    clock_s: float = 0.0
    silent: str = ""


@dataclass(frozen=True)
class Reach:
    """What a node is to reach; a problem has the name of the field that it is about.

    source: the task of a joint training. initial: what students start from. artefacts: a folder, or a URL. storage:
    host and port of a database server.
    """

    task: TaskSource | None = None
    source: TaskSource | None = None
    initial: Mapping[str, KeptFile] = field(default_factory=dict)
    data_root: str | None = None
    artefacts: str | None = None
    storage: tuple[str, int] | None = None


def examine(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a NodeReport says of the machine that this runs on, as plain values; the problems alone raise not.

    wanted: the fields of a Reach as plain values, and `probe`, a file that the driver has put there. A driver of
    another version may ask for less: that it is of another one is what it is to hear.
    """
    wanted = {**asdict(Reach()), **wanted}
    checks: dict[str, Callable[[], object]] = {}
    if wanted["task"] is not None:
        checks["task"] = lambda: locate_data(TaskSource(**wanted["task"]))
    if wanted["source"] is not None:
        checks["source"] = lambda: locate_data(TaskSource(**wanted["source"]))
    if wanted["initial"]:
        checks["initial"] = lambda: fetch_all({init: KeptFile(**file) for init, file in wanted["initial"].items()})
    if wanted["data_root"] is not None:
        checks["data_root"] = lambda: os.scandir(wanted["data_root"]).close()
    if wanted["artefacts"] is not None:
        checks["artefacts"] = lambda: write_beside(wanted["artefacts"], wanted["probe"])
    if wanted["storage"] is not None:
        checks["storage"] = lambda: socket.create_connection(wanted["storage"], timeout=5).close()
    problems = {}
    for name, check in checks.items():
        try:
            check()
        except (OSError, MetasearchError) as error:
            problems[name] = " ".join(str(error).split())
    token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    devices = gpu_devices() if wanted.get("devices", True) else []
    return {"versions": versions_here(), "problems": problems, "devices": devices, "token": token}


def locate_data(source: TaskSource) -> None:
    """Raise NotFoundError or InputError where a task's files are not to be read here; no data set is fetched."""
    from metasearch.tasks.families import is_domain
    from metasearch.tasks.raw import Request
    from metasearch.tasks.sources import PYTHON_PREFIX, find_source

    if source.download or source.text.startswith(PYTHON_PREFIX) or is_domain(source.text):
        return
    kind, argument = find_source(source.text)
    kind.locate(Request(argument, source.root(), source.image_size, skip_corrupt=source.skip_corrupt))


def write_beside(folder: str, probe: str) -> None:
    """Raise OSError unless a file can be written to the folder, and the driver's `probe` is seen there."""
    if not is_there(joined(folder, probe)):
        raise FileNotFoundError(f"{folder}: is not the folder that the driver sees; it must be shared")
    with probed(folder):
        pass


def gpu_devices() -> list[tuple[str, int]]:
    """Return name and bytes of each GPU of this machine, whatever of them Ray gives the process that asks."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver: no device
        return []
    rows = [line.rsplit(",", 1) for line in said.splitlines() if "," in line]
    return [(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in rows if mebibytes.strip().isdigit()]


def look_around(reach: Reach, *, devices: bool = True, clocks: bool = True) -> list[NodeReport]:
    """Return what every living node has and reaches. Ray must be running.

    devices: whether its GPUs are looked for, with a program of their maker's. clocks: whether each node is asked again
    for its clock alone: its first process takes seconds to start, which would hide a clock that is wrong by as much.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    look, clock = (ray.remote(num_cpus=0, max_retries=0)(function) for function in _by_value())
    on = {node["NodeID"]: NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive}
    with nullcontext("") if reach.artefacts is None else probed(reach.artefacts) as probe:
        wanted = {**asdict(reach), "probe": probe, "devices": devices}
        asked = {node: look.options(scheduling_strategy=place).remote(wanted) for node, place in on.items()}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=WAIT_S)
        reports = []
        for node in alive:
            address, answer = node["NodeManagerAddress"], asked[node["NodeID"]]
            try:
                found = ray.get(answer, timeout=0)
                before = there = time.time()
                if clocks:
                    there = ray.get(clock.options(scheduling_strategy=on[node["NodeID"]]).remote(), timeout=WAIT_S)
            except ray.exceptions.GetTimeoutError:
                reports.append(NodeReport(address, silent=f"no answer in {WAIT_S:.0f} s"))
            except ray.exceptions.RayError as error:
                reports.append(NodeReport(address, silent=" ".join(str(error).split())[-200:]))
            else:
                ahead = there - min(max(there, before), time.time())  # 0 where it may as well be right
                found["devices"] = tuple(map(tuple, found.get("devices", ())))
                reports.append(NodeReport(address, clock_s=ahead, **found))
    return reports


def _by_value() -> tuple[Callable[[Mapping[str, Any]], dict[str, Any]], Callable[[], float]]:
    """Return `examine` and a clock as functions that Ray sends whole: they run where metasearch is missing or older."""

    def look(wanted: Mapping[str, Any]) -> dict[str, Any]:
        from importlib import metadata

        try:
            from metasearch.search.nodes import examine
        except ImportError:
            try:
                return {"versions": {"metasearch": metadata.version("metasearch")}}
            except metadata.PackageNotFoundError:
                return {"versions": {}}
        return examine(wanted)

    def clock() -> float:
        import time

        return time.time()

    return look, clock


def refusals(reports: Sequence[NodeReport], here: Mapping[str, str]) -> list[str]:
    """Return a text for each node that trials must not run on: it is silent, differs, or does not reach something."""
    lines = []
    for report in reports:
        wrong = [report.silent] if report.silent else [*unlike(report.versions, here), *report.problems.values()]
        lines += [f"node {report.node}: {'; '.join(wrong)}"] if wrong else []
    return lines


def check_nodes(reach: Reach, *, cpus: float, gpus: float, tell: Callable[[str], None]) -> None:
    """Look around on all nodes and say how many trials fit; raise MetasearchError where a node must not run any."""
    import ray

    reports = look_around(reach, devices=memory_share(gpus) is not None, clocks=False)  # `doctor` looks for all
    if lines := refusals(reports, versions_here()):
        raise MetasearchError(f"{'; '.join(lines)}; `metasearch doctor --address` shows all")
    fitting = slots(ray.nodes(), cpus=cpus, gpus=gpus)
    tell(f"{len(reports)} nodes of one version, {fitting} trials at once")
    if not fitting:
        tell(f"none fits now: the search waits for a node with {cpus:g} CPUs and {gpus:g} GPUs")
    if line := memory_line([device for report in reports for device in report.devices], gpus):
        tell(line)
