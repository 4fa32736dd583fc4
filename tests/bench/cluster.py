"""How busy a search keeps a cluster: a head and three nodes as real processes, PostgreSQL, job submission, token on.

The share is of the slots' time between the first trial's start and the last's: before, workers start, and after, they
run out of trials. Inside the pipeline is what a worker counts around its own steps, without the way to the driver.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna

from metasearch.search.store import RUN, open_storage
from tests import postgresql
from tests.bench.sides import Verdict, conditions, print_table
from tests.cluster import Cluster, has_job_server, network, ray_cluster
from tests.repository import REPOSITORY

TRIALS, QUICK_TRIALS, NODES = 40, 6, 3
SPACE, QUICK_SPACE = "distill_compress", "quick"
"""The default, whose trials take some seconds on the digits; those of the other one a second or two."""
TARGET = 0.9
COLUMNS = 100
"""Of the timeline."""


@dataclass(frozen=True)
class Span:
    """One trial. worker: host and process. started, ended: Unix time. inside_s: of that, in the pipeline."""

    number: int
    worker: tuple[str, int]
    started: float
    ended: float
    inside_s: float


def run(*, quick: bool) -> Verdict:
    """Run the search and print what kept its slots busy."""
    binaries = postgresql.programs()
    if binaries is None or not has_job_server():
        missing = "PostgreSQL" if binaries is None else "the extra `cluster`"
        return Verdict("cluster", None, f"skipped: {missing} is not installed")
    trials = QUICK_TRIALS if quick else TRIALS
    before = conditions()
    with cluster_with_database(binaries, nodes=NODES) as (cluster, url):
        space = QUICK_SPACE if quick else SPACE
        done = submit(cluster, "launch", "digits", "--space", space, "--trials", str(trials), "--name", "bench")
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, done.args)
        spans = spans_of(url, "bench")
    share = busy_share(spans, slots=NODES)
    window = max(each.started for each in spans) - min(each.started for each in spans)
    rows = [
        ("trials", str(len(spans))),
        ("slots, one a node", str(NODES)),
        ("seconds from first start to last", f"{window:.1f}"),
        ("share of the slots' time inside the pipeline", f"{share:.1%}"),
        ("trials a slot", ", ".join(str(len(lane)) for lane in lanes(spans).values())),
    ]
    namespaces = "each in a network namespace" if cluster.nodes[0].namespace else "on loopback"
    notes = [f"head and {NODES} nodes {namespaces}, token on, PostgreSQL, submitted as a job", before]
    print_table("A search on a cluster", ("", ""), rows, notes)
    print("\n".join(timeline(spans)))
    met = None if quick else share > TARGET
    return Verdict("cluster", met, f"{share:.1%} of the slots' time inside the pipeline (target: above {TARGET:.0%})")


@contextmanager
def cluster_with_database(binaries: Path, *, nodes: int) -> Iterator[tuple[Cluster, str]]:
    """Run a cluster whose head knows a PostgreSQL server beside it; give the cluster and the server's URL."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as home,
        tempfile.TemporaryDirectory(prefix="postgresql-") as folder,
        network() as joined,
        postgresql.serving(Path(folder), binaries, address=joined.gateway) as server,
        ray_cluster(
            nodes=nodes,
            on=joined,
            environment={"METASEARCH_STORAGE": server.url, "METASEARCH_HOME": home, "OMP_NUM_THREADS": "1"},
        ) as cluster,
    ):
        yield cluster, server.url


def submit(cluster: Cluster, *arguments: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line with `--submit`, from a machine that knows the cluster's token and not its database."""
    environment = {name: value for name, value in cluster.environment.items() if name != "METASEARCH_STORAGE"}
    command = [sys.executable, "-m", "metasearch", *arguments, "--submit", cluster.job_server]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
    )


def spans_of(url: str, study: str) -> list[Span]:
    """Return where and when the trials of a study ran, in the order of their numbers."""
    loaded = optuna.load_study(study_name=study, storage=open_storage(url))
    spans = []
    for trial in loaded.get_trials(deepcopy=False):
        ran: Mapping[str, float] = trial.user_attrs[RUN]
        worker = str(ran["node"]), int(ran["pid"])
        spans.append(Span(trial.number, worker, ran["started"], ran["ended"], ran["inside_s"]))
    return spans


def busy_share(spans: Sequence[Span], *, slots: int) -> float:
    """Return the share of the slots' time, from the first start to the last, that trials spent inside the pipeline.

    A trial that runs beyond the last start counts with the part of its time that lies before.
    """
    first, last = (pick(each.started for each in spans) for pick in (min, max))
    inside = sum(each.inside_s * (min(each.ended, last) - each.started) / (each.ended - each.started) for each in spans)
    return inside / (slots * (last - first))


def lanes(spans: Sequence[Span]) -> dict[tuple[str, int], list[Span]]:
    """Return the trials of each worker, by their start."""
    found: dict[tuple[str, int], list[Span]] = {}
    for each in sorted(spans, key=lambda each: each.started):
        found.setdefault(each.worker, []).append(each)
    return found


def timeline(spans: Sequence[Span], *, columns: int = COLUMNS) -> list[str]:
    """Return a line a worker: its trials as turns of # and =, and dots where it had none."""
    first, last = min(each.started for each in spans), max(each.ended for each in spans)
    scale = columns / (last - first)
    lines = []
    for (node, pid), ran in lanes(spans).items():
        cells = ["."] * columns
        for turn, each in enumerate(ran):
            begin, end = (round((moment - first) * scale) for moment in (each.started, each.ended))
            cells[begin:end] = ["#="[turn % 2]] * (end - begin)
        lines.append(f"  {node} {pid:>7} {''.join(cells)}")
    return [*lines, f"  one column is {1 / scale:.1f} s"]
