"""The two sides of a comparison, each in a process of its own, and the conditions under which they ran."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from tests.repository import REPOSITORY

SLOTS = 2
"""Trials at once, on as many CPUs."""

SAMPLED_EVERY_S = 0.5
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

Measured = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether a benchmark met its target; None where none was judged, and `text` says why."""

    name: str
    met: bool | None
    text: str


def start_ray() -> None:
    """Start Ray as both sides do: as many CPUs as slots, no dashboard, everything else as it comes."""
    ray.init(num_cpus=SLOTS, include_dashboard=False)


def run_side(module: str, *arguments: str) -> Measured:
    """Run `python -m module arguments... FILE` from the repository's root; return the JSON that it wrote to FILE.

    Added are `cpu_seconds`, of all its processes from their start, and `others_busy`, how many CPUs other processes
    kept busy meanwhile. What it prints (Ray Tune prints a lot) is shown only where it fails, with
    subprocess.CalledProcessError.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        result, log = Path(scratch) / "result.json", Path(scratch) / "log"
        command = [sys.executable, "-m", module, *arguments, str(result)]
        cpu_seconds: dict[int, float] = {}
        started, busy_before = time.time(), _machine_busy_seconds()
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None:
                    cpu_seconds |= tree_cpu_seconds(process.pid)  # a process that ends keeps what it had last
                    time.sleep(SAMPLED_EVERY_S)
            finally:
                process.terminate()  # where we are interrupted; nothing happens to one that has ended
        own = sum(cpu_seconds.values())
        others = (_machine_busy_seconds() - busy_before - own) / (time.time() - started)
        if process.returncode:
            print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command)
        measured: Measured = json.loads(result.read_text(encoding="utf-8"))
        return measured | {"cpu_seconds": own, "others_busy": max(others, 0.0)}


def common_rows(*sides: Measured) -> list[tuple[str, ...]]:
    """Return the rows on CPU time, which busy neighbours change less than the wall clock."""
    return [
        ("CPU seconds, imports and ray.init included", *(f"{side['cpu_seconds']:.1f}" for side in sides)),
        ("CPUs that others kept busy meanwhile", *(f"{side['others_busy']:.2f}" for side in sides)),
    ]


def conditions() -> str:
    """Return the machine, its load, versions and commit, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "torch", "torchvision"))
    return (
        f"{len(os.sched_getaffinity(0))} CPUs, load before {os.getloadavg()[0]:.2f} (mean of 1 min); "
        f"Python {platform.python_version()}, {versions}; commit {_commit()}"
    )


def _machine_busy_seconds() -> float:
    """Return the seconds that all CPUs together were busy since the machine's start (/proc/stat, its first line)."""
    line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _waiting, *interrupts = (int(ticks) for ticks in line.split()[1:8])
    return (user + nice + system + sum(interrupts)) / TICKS_A_SECOND


def tree_cpu_seconds(root: int) -> dict[int, float]:
    """Return the CPU seconds so far of each living process among `root` and its descendants, by process id."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
    tree = {root}
    while new := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= new
    return {pid: seconds[pid] for pid in tree & seconds.keys()}


def _commit() -> str:
    commands = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain"])
    commit, changes = (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
        for command in commands
    )
    return f"{commit or 'unknown'}{' with changes' if changes else ''}"


def print_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]], notes: list[str]) -> None:
    """Print a table with aligned columns, the first to the left, and the notes below it."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, tuple("-" * width for width in widths), *rows]:
        cells = [
            text.rjust(width) if index else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    print()
    for note in notes:
        print(f"  {note}")
