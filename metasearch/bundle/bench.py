"""What bundles cost on this device: latency, throughput, memory and bytes, side by side, from the bundles alone.

Networks are measured in rounds, one after the other within each, so that whatever else the device does hits all alike;
a session is opened anew in every round, because where its memory comes to lie makes a difference, too.
Needs onnxruntime, numpy, pillow and the standard library: `python -m metasearch.bundle.bench BUNDLE... > FILE.json`
runs where no more is installed, and `metasearch bench FILE.json --into STUDY` takes the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from metasearch.bundle.graph import fitting_batch
from metasearch.bundle.memory import network_memory, runtime_memory
from metasearch.bundle.predict import open_session
from metasearch.bundle.subjects import Subject, subjects_of
from metasearch.errors import InputError, MetasearchError
from metasearch.functions import first_line
from metasearch.latency.profile import profiled

FORMAT = 1
SECONDS, MOST_SECONDS = 2.0, 3600.0
"""For each network and number of threads: by default, and at most."""
IMAGES, MOST_IMAGES = 64, 65_536
"""In a batch."""
MOST_THREADS = 1024
MOST_NAME = 200
"""Characters of a device's name, which is a part of a study attribute's."""
ROUNDS = 10
LEAST_RUNS, LEAST_BATCHES = 5, 1
"""Of one image, and of a batch, in each round, after as many that do not count."""
PROFILED_RUNS = 60
BATCHES = (1, 4, 16, 64, 256)

Report = dict[str, Any]


def bench(
    subjects: Sequence[Subject],
    *,
    threads: Sequence[int],
    seconds: float = SECONDS,
    images: int = IMAGES,
    device: str | None = None,
) -> Report:
    """Return what networks cost here, as JSON has it; a file that stands under several names is measured once.

    threads: of onnxruntime, each number is measured. seconds: for each network and number of threads. images: the most
    in a batch, for the throughput, fewer where so many would not fit a machine. device: its name, by default its
    processor's.
    Raises InputError for a network that onnxruntime cannot run.
    """
    about = about_device(device)
    distinct = list({subject.digest: subject for subject in subjects}.values())
    costs = {str(count): _costs(distinct, count, seconds=seconds, images=images) for count in threads}
    alone = runtime_memory()
    found = {subject.digest: _beside_times(subject, alone) for subject in distinct}
    networks = [
        {
            "name": subject.name,
            "role": subject.role,
            "digest": subject.digest,
            "study": subject.study,
            "trial": subject.trial,
            "int8": subject.int8,
            "accuracy": dict(subject.accuracy),
            "macs": subject.macs,
            "model_bytes": subject.model_bytes,
            "file_bytes": subject.path.stat().st_size,
            "threads": {count: cost[subject.digest] for count, cost in costs.items()},
            **found[subject.digest],
        }
        for subject in subjects
    ]
    about["load_after"] = _load()
    return {"format": FORMAT, "device": about, "seconds": seconds, "rounds": ROUNDS, "networks": networks}


def _beside_times(subject: Subject, alone: int) -> dict[str, Any]:
    """Return a network's memory above what onnxruntime takes alone, in bytes, and its layers' profile."""
    with _running(subject):
        return {
            "memory_bytes": max(0, network_memory(subject.path, subject.example(1)) - alone),
            "layers": [layer.plain() for layer in profiled(subject.path, subject.example(1), runs=PROFILED_RUNS)],
        }


@contextmanager
def _running(subject: Subject) -> Iterator[None]:
    """Turn what a network fails with into one line: without onnx nobody has checked whether it runs."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(str(subject.path), f"cannot be run by onnxruntime ({first_line(error)})") from error


def about_device(name: str | None) -> dict[str, Any]:
    """Return what measurements should say of the device."""
    import onnxruntime

    processor = processor_name()
    return {
        "name": name or processor,
        "processor": processor,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "load_before": _load(),
    }


def processor_name() -> str:
    """Return what the processor calls itself."""
    place = Path("/proc/cpuinfo")
    lines = place.read_text(encoding="utf-8", errors="replace").splitlines() if place.exists() else []
    names = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return names.get("model name") or names.get("Model") or platform.processor() or platform.machine()


def cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(text: str | None) -> list[int]:
    """Return what --threads asks for: 1, all, a number; by default 1 and all. Raises InputError for anything else."""
    if text is None:
        return sorted({1, cores()})
    if text == "all":
        return [cores()]
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MOST_THREADS:
        raise InputError("--threads", f"must be all or a whole number from 1 to {MOST_THREADS}", text)
    return [int(text)]


def names_device(text: str) -> bool:
    """Whether a text can be the name of a device."""
    return 0 < len(text) <= MOST_NAME and text.isprintable()


def check_asked(*, seconds: float, images: int, device: str | None) -> None:
    """Raise InputError for --seconds, --images or --device-name that no device can be asked for, or called."""
    if not 0 <= seconds <= MOST_SECONDS:
        raise InputError("--seconds", f"must be from 0 to {MOST_SECONDS:g}", seconds)
    if not 1 <= images <= MOST_IMAGES:
        raise InputError("--images", f"must be from 1 to {MOST_IMAGES}", images)
    if device is not None:
        check_device(device)


def check_device(name: str) -> None:
    """Raise InputError for a --device-name that names no device."""
    if not names_device(name):
        raise InputError("--device-name", f"must have 1 to {MOST_NAME} printable characters", name)


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _costs(subjects: Sequence[Subject], threads: int, *, seconds: float, images: int) -> dict[str, dict[str, Any]]:
    """Return what is timed of each network, by its digest, with one number of threads."""
    batches = {subject.digest: _batches(subject, images) for subject in subjects}
    latencies: dict[str, list[np.ndarray]] = {subject.digest: [] for subject in subjects}
    rates: dict[str, list[list[float]]] = {subject.digest: [] for subject in subjects}
    slice_s = seconds / ROUNDS / 2
    for _ in range(ROUNDS):
        for subject in subjects:
            sizes = batches[subject.digest]
            with _running(subject):
                session = open_session(subject.path, threads=threads)
                times = np.array(list(_timed(session, subject.example(1), slice_s, least=LEAST_RUNS)))
                latencies[subject.digest].append(times)
                rates[subject.digest].append(
                    [_rate(session, subject.example(batch), slice_s / len(sizes)) for batch in sizes]
                )
    return {
        digest: _summary(latencies[digest], threads) | _throughput(batches[digest], np.array(rates[digest]))
        for digest in latencies
    }


def _batches(subject: Subject, images: int) -> list[int]:
    most = fitting_batch(images, subject.values, subject.input_shape)
    return [*(batch for batch in BATCHES if batch < most), most]


def _rate(session: Any, example: np.ndarray, seconds: float) -> float:
    """Return the images a second, by the median run of a batch."""
    walls = [wall for wall, _ in _timed(session, example, seconds, least=LEAST_BATCHES)]
    return len(example) / float(np.median(walls))


def _timed(session: Any, example: np.ndarray, seconds: float, *, least: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each run, by the wall clock and of this thread's CPU time, until so many have passed."""
    feed = {"input": example}
    for _ in range(least):
        session.run(["logits"], feed)
    until, runs = time.perf_counter() + seconds, 0
    while runs < least or time.perf_counter() < until:
        wall, cpu = time.perf_counter(), time.thread_time()
        session.run(["logits"], feed)
        cpu_s, wall_s = time.thread_time() - cpu, time.perf_counter() - wall
        yield wall_s, cpu_s
        runs += 1


def _summary(rounds: Sequence[np.ndarray], threads: int) -> dict[str, Any]:
    """Return the latency in ms. rounds: (runs, 2), wall clock and CPU time in seconds. spread: of the rounds' medians,
    between their quartiles. CPU time of one thread alone: of several it would be the caller's only.
    """
    every = 1000 * np.concatenate(rounds)
    medians = 1000 * np.array([np.median(times, axis=0) for times in rounds])
    low, high = np.percentile(medians, [25, 75], axis=0)
    median, p95, p99 = np.percentile(every[:, 0], [50, 95, 99])
    wall = {"ms": float(median), "spread_ms": float((high - low)[0]), "p95_ms": float(p95), "p99_ms": float(p99)}
    cpu = {"cpu_ms": float(np.median(medians[:, 1])), "cpu_spread_ms": float((high - low)[1])}
    return wall | (cpu if threads == 1 else {}) | {"runs": len(every)}


def _throughput(batches: Sequence[int], rates: np.ndarray) -> dict[str, Any]:
    """Return the best batch by its median over the rounds. rates: (rounds, batches), images a second."""
    medians = np.median(rates, axis=0)
    best = int(medians.argmax())
    return {"images_per_s": float(medians[best]), "batch": batches[best]}


def main() -> int:
    """Bench the bundles of the command line and print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m metasearch.bundle.bench", description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--threads", help="1, all or a number; 1 and all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each network and number of threads")
    parser.add_argument("--images", type=int, default=IMAGES, help="the most in a batch")
    parser.add_argument("--device-name")
    asked = parser.parse_args()
    try:
        threads = threads_of(asked.threads)
        check_asked(seconds=asked.seconds, images=asked.images, device=asked.device_name)
        subjects = subjects_of(asked.bundles)
        report = bench(subjects, threads=threads, seconds=asked.seconds, images=asked.images, device=asked.device_name)
    except MetasearchError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
