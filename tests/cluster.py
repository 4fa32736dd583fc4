"""A Ray cluster of the tests' own: a head and N more nodes as real processes, each in a network namespace of its own.

Where namespaces are not permitted all nodes share loopback, told apart by their ports. Nothing outside the cluster is
touched: own ports, own temporary folders, and at the end exactly the processes that it started are killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.repository import REPOSITORY

START_TIMEOUT_S = 120.0
STARTED = "Ray runtime started."
OBJECT_STORE_BYTES = 100_000_000


def has_job_server() -> bool:
    """Whether Ray's dashboard, which holds the job server, is installed (the extra `cluster`)."""
    return all(importlib.util.find_spec(name) is not None for name in ("aiohttp", "aiohttp_cors", "opencensus"))


@dataclass
class Node:
    """One node. namespace: its own, None on loopback. process: `ray start --block`, the leader of a session."""

    address: str
    namespace: str | None
    process: subprocess.Popen[bytes] | None = None
    stopped: tuple[int, ...] = ()


class Cluster:
    """A running cluster. Nodes count from 0, the head; a killed one keeps its number.

    address: for `--address`. job_server: the URL for `--submit`. gateway: where the nodes reach this process.
    environment: of every process that is to reach it, the token included. folder: of its logs.
    """

    def __init__(self, folder: Path, *, cpus: int, environment: Mapping[str, str], network: Network) -> None:
        self.folder, self.cpus, self.environment = folder, cpus, dict(environment)
        self.nodes: list[Node] = []
        self._network = network
        self.gateway = network.gateway
        self._ports = [6379, 8265] if network.name else _free_ports(2)
        self.address = self.job_server = ""

    def start_head(self, *, cpus: int, dashboard_host: str | None) -> None:
        """Start node 0. dashboard_host: None for where this process reaches it."""
        node = self._new_node()
        port, dashboard_port = self._ports
        self.address = f"{node.address}:{port}"
        host = dashboard_host or node.address
        self.job_server = f"http://{host}:{dashboard_port}"
        dashboard = ["--include-dashboard=false"]
        if has_job_server():
            dashboard = ["--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={dashboard_port}"]
        if importlib.util.find_spec("grpc") is not None:  # else Ray refuses the flag
            dashboard.append(f"--ray-client-server-port={_free_ports(1)[0]}")
        self._start(node, cpus, ["--head", f"--port={port}", *dashboard], environment={})
        self._wait_for(0)

    def start_node(self, *, cpus: int | None = None, environment: Mapping[str, str] | None = None) -> int:
        """Start one more node and return its number. environment: beside the cluster's own."""
        return self.start_nodes(1, cpus=cpus, environment=environment)[0]

    def start_nodes(
        self, count: int, *, cpus: int | None = None, environment: Mapping[str, str] | None = None
    ) -> list[int]:
        """Start nodes at once and return their numbers."""
        first = len(self.nodes)
        for _ in range(count):
            given = self.cpus if cpus is None else cpus
            self._start(self._new_node(), given, [f"--address={self.address}"], environment=environment or {})
        numbers = list(range(first, first + count))
        for number in numbers:
            self._wait_for(number)
        return numbers

    def command(self, *arguments: str, node: int = 0) -> list[str]:
        """Return a command as it is run on a node."""
        namespace = self.nodes[node].namespace
        return [*(("ip", "netns", "exec", namespace) if namespace else ()), *arguments]

    def pids(self, node: int) -> list[int]:
        """Return the living processes of a node; in a namespace those that a test ran there, too."""
        return self._network.pids(self.nodes[node])

    def kill(self, node: int) -> None:
        """Kill a node as a power cut does: all its processes at once."""
        for _ in range(20):  # a process may have been starting another meanwhile
            pids = self.pids(node)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                break
            time.sleep(0.05)
        process = self.nodes[node].process
        if process is not None:
            process.wait()

    def suspend(self, node: int) -> None:
        """Cut a node off: its link goes down; on loopback its raylet is stopped."""
        self._network.suspend(self.nodes[node])

    def resume(self, node: int) -> None:
        """Join a node that was cut off again."""
        self._network.resume(self.nodes[node])

    def wait_for_job_server(self) -> None:
        """Return once the job server answers, whatever it thinks of who asks."""
        place = self.job_server.removeprefix("http://")
        ask = f"import http.client as h; c = h.HTTPConnection('{place}', timeout=5); c.request('GET', '/api/version')"
        command = self.command(sys.executable, "-c", f"{ask}; c.getresponse()")  # on the head: it may be on loopback
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.job_server}: no answer in {START_TIMEOUT_S:.0f} s")
            time.sleep(0.3)

    def _new_node(self) -> Node:
        self.nodes.append(self._network.join(len(self.nodes)))
        return self.nodes[-1]

    def _start(self, node: Node, cpus: int, flags: list[str], *, environment: Mapping[str, str]) -> None:
        number = len(self.nodes) - 1
        own = [
            f"--node-ip-address={node.address}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self.folder / f'n{number}'}",
            f"--dashboard-agent-listen-port={_free_ports(1)[0]}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            "--block",
        ]
        with self._log(number).open("wb") as output:
            node.process = subprocess.Popen(
                self.command(sys.executable, "-m", "ray.scripts.scripts", "start", *flags, *own, node=number),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def _log(self, number: int) -> Path:
        return self.folder / f"n{number}.log"

    def _wait_for(self, number: int) -> None:
        process = self.nodes[number].process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while STARTED not in (text := self._log(number).read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"node {number} has not started:\n{text}")
            time.sleep(0.1)


@contextlib.contextmanager
def ray_cluster(
    *,
    nodes: int = 3,
    cpus: int = 1,
    head_cpus: int = 0,
    token: bool = True,
    on: Network | None = None,
    dashboard_host: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Run a cluster of a head and `nodes` more with `cpus` each for as long as the block lasts.

    on: a network that something else is on, too, a database for instance. dashboard_host: see `Cluster.start_head`.
    environment: of all nodes, and so of the jobs; it is this process's own with these on top.
    """
    # short: Ray puts sockets below it, whose paths have at most 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="ms-"))
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # the job's command is `python`, which must be this one
    base["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', '')}"
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    known = {"PYTHONPATH": os.pathsep.join(paths), "RAY_AUTH_MODE": "token" if token else "disabled"}
    if token:
        known["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        joined = on or stack.enter_context(network())
        cluster = Cluster(folder, cpus=cpus, environment={**base, **known, **(environment or {})}, network=joined)
        stack.callback(_end, cluster)
        cluster.start_head(cpus=head_cpus, dashboard_host=dashboard_host)
        cluster.start_nodes(nodes)
        if has_job_server():
            cluster.wait_for_job_server()
        yield cluster


def _end(cluster: Cluster) -> None:
    for number in reversed(range(len(cluster.nodes))):
        cluster.resume(number)
        cluster.kill(number)


@contextlib.contextmanager
def network(*, namespaces: bool | None = None) -> Iterator[Network]:
    """Make the network of a cluster. namespaces: None for where they are permitted."""
    made = Bridge() if (permitted() if namespaces is None else namespaces) else Network()
    try:
        yield made
    finally:
        made.close()


class Network:
    """All nodes on loopback. gateway: this process's own address, as the nodes see it."""

    name, gateway = "", "127.0.0.1"

    def join(self, number: int) -> Node:
        return Node("127.0.0.1", None)

    def pids(self, node: Node) -> list[int]:
        return [] if node.process is None else _descendants(node.process.pid)

    def suspend(self, node: Node) -> None:
        node.stopped = tuple(pid for pid in self.pids(node) if "/raylet/raylet" in first_argument(pid))
        for pid in node.stopped:
            os.kill(pid, signal.SIGSTOP)

    def resume(self, node: Node) -> None:
        for pid in node.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        node.stopped = ()

    def close(self) -> None:
        pass


class Bridge(Network):
    """Each node in a namespace of its own, 10.X.Y.2 onwards; a bridge joins them and this process, 10.X.Y.1."""

    def __init__(self) -> None:
        self.name = f"ms{secrets.token_hex(3)}"
        self._subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
        self._namespaces: list[str] = []
        self.gateway = f"{self._subnet}.1"
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    def join(self, number: int) -> Node:
        namespace, address = f"{self.name}-{number}", f"{self._subnet}.{number + 2}"
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        outer, inner = f"{self.name}o{number}", "eth0"
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
        _ip("link", "set", outer, "master", self.name, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", namespace, "link", "set", inner, "up")
        _ip("-n", namespace, "route", "add", "default", "via", self.gateway)  # Ray finds its own address by it
        return Node(address, namespace)

    def pids(self, node: Node) -> list[int]:
        assert node.namespace is not None
        return [int(pid) for pid in _ip("netns", "pids", node.namespace).split()]

    def suspend(self, node: Node) -> None:
        _ip("link", "set", self._outer(node), "down")

    def resume(self, node: Node) -> None:
        _ip("link", "set", self._outer(node), "up")

    def close(self) -> None:
        for namespace in self._namespaces:
            _ip("netns", "del", namespace)  # and the pair of links with it
        _ip("link", "del", self.name)

    def _outer(self, node: Node) -> str:
        assert node.namespace is not None
        return node.namespace.replace("-", "o")


def permitted() -> bool:
    """Whether network namespaces can be made here."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"ms{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", name, "type", "bridge")
            _ip("link", "del", name)
        finally:
            _ip("netns", "del", name)
    except subprocess.CalledProcessError:
        return False
    return True


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _descendants(leader: int) -> list[int]:
    """Return the living processes of a session, and what they started in sessions of its own."""
    parents: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1]), int(fields[3])
    found = {pid for pid, (_, session) in parents.items() if session == leader}
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def first_argument(pid: int) -> str:
    """Return what a process calls itself, "" where it has ended; Ray's workers begin with `ray::`."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return ""
