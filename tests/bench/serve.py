"""`metasearch serve` under load beside a plain loop over onnxruntime; for long, while it reloads, fed with rubbish.

The service, its replica and the client share this machine. Each body is a small PNG, which the replica decodes.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from metasearch.bundle.contents import MODEL
from metasearch.bundle.predict import logits_of, open_session, read_image
from tests.bench.malformed import Body, malformed_images, malformed_rows
from tests.bench.serve_client import Job, Outcome
from tests.bench.sides import Verdict, conditions, print_table, tree_cpu_seconds
from tests.bundles import make_bundle
from tests.repository import REPOSITORY
from tests.serving.running import Program, command_of, serving, tree_of
from tests.synthetic import synthetic_task

CLIENTS = (1, 16, 64)
SHAPE, FEATURES = (1, 28, 28), 6
LOAD_S, QUICK_LOAD_S = 15.0, 3.0
LONG_S, QUICK_LONG_S, WARM_S, QUICK_WARM_S = 600.0, 30.0, 60.0, 5.0
SHARE = 0.8
"""Of the rate at the most clients: what the service has to stand for long."""
GROWTH = 0.03
"""The most by which the memory of all its processes may grow meanwhile."""
BODIES, QUICK_BODIES = 10_000, 600
RELOADS, QUICK_RELOADS = 5, 2
SEED = 0
Row = tuple[str, ...]


def run(*, quick: bool) -> Verdict:
    """Measure all of it and print the tables."""
    before = conditions()
    load_s = QUICK_LOAD_S if quick else LOAD_S
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        bundles = _bundles(folder)
        images = _images(100)
        rows = _plain(bundles["first"], images, load_s)
        with _service(folder, bundles["first"]) as program:
            batched = {clients: _costly_load(folder, program, images, clients, load_s) for clients in CLIENTS}
            most, _ = batched[CLIENTS[-1]]
            rate = SHARE * most.answered / most.seconds
            kept, memory = _for_long(folder, program, images, rate, quick=quick)
            reloaded = _reloaded(folder, program, images, [bundles["second"], bundles["first"]], quick=quick)
            fed, died = _fed_with_rubbish(folder, program, bundles["vectors"], quick=quick)
        with _service(folder, bundles["first"], "--most-batch", "1") as program:
            alone = {clients: _costly_load(folder, program, images, clients, load_s) for clients in CLIENTS}
    for label, outcomes in (("service", batched), ("service, without batching", alone)):
        rows += [_row(f"{label}, {clients} clients", *outcome) for clients, outcome in outcomes.items()]
    notes = [before, f"{load_s:g} s each; PNG of {SHAPE[1]}x{SHAPE[2]} grey pixels, one replica with one thread"]
    header = ("", "a second", "p50 ms", "p99 ms", "most ms", "CPU ms each", "failed")
    print_table("Predictions over HTTP", header, rows, notes)
    grown = memory[-1] / memory[0] - 1
    table = [
        (f"{kept.seconds:.0f} s at {rate:.0f} a second", *_counts(kept), f"{memory[0]:.0f} -> {memory[-1]:.0f} MB"),
        (f"{QUICK_RELOADS if quick else RELOADS} reloads under load", *_counts(reloaded), ""),
        *((f"malformed {kind}", *_counts(outcome), "") for kind, outcome in fed.items()),
    ]
    print_table(
        "Under stress", ("", "answered", "p99 ms", "statuses", "memory"), table, [f"processes that died: {died}"]
    )
    wrong = _wrong(kept, "200") + _wrong(reloaded, "200") + sum(_wrong(o, "200", "4") for o in fed.values())
    text = (
        f"{wrong} requests failed that should not, {died} processes died; "
        f"memory grew by {grown:.1%} (target: 0, 0, below {GROWTH:.0%})"
    )
    return Verdict("serve", None if quick else wrong == died == 0 and grown < GROWTH, text)


def _bundles(folder: Path) -> dict[str, Path]:
    """Make bundles that the pipeline trained: two of images, one of vectors."""
    config = {"student.width": 16, "student.depth": 2}
    made = {}
    for seed, name in enumerate(("first", "second")):
        made[name] = make_bundle(folder / name, config, task=synthetic_task(shape=SHAPE), seed=seed)
    vectors = {"student.family": "mlp", "student.width": 16}
    made["vectors"] = make_bundle(folder / "vectors", vectors, task=synthetic_task(shape=(FEATURES,)))
    return made


def _images(count: int) -> list[bytes]:
    """Return PNG files of what the task's images are like."""
    found = []
    for pixels in synthetic_task(shape=SHAPE, counts=(3, 3, count)).test.inputs.numpy():
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG")
        found.append(file.getvalue())
    return found


@contextmanager
def _service(folder: Path, bundle: Path, *arguments: str) -> Iterator[Program]:
    _point(folder, bundle)
    with serving(folder / "current", folder, *arguments) as program:
        yield program


def _point(folder: Path, bundle: Path) -> None:
    """Let the link that is served lead to a bundle, at once."""
    newer = folder / "newer"
    newer.symlink_to(bundle)
    newer.replace(folder / "current")


def _plain(bundle: Path, images: Sequence[bytes], seconds: float) -> list[Row]:
    """Return the rows of loops in this process: decode and run one by one, and run alone, one by one and 32 at once."""
    session = open_session(bundle / MODEL)
    inputs = np.stack([read_image(io.BytesIO(image), SHAPE) for image in images])
    loops: dict[str, tuple[int, Callable[[int], object]]] = {
        "plain loop, decode and run": (
            1,
            lambda n: logits_of(session, read_image(io.BytesIO(images[n % len(images)]), SHAPE)[None]),
        ),
        "plain loop, run": (1, lambda n: logits_of(session, inputs[n % len(images)][None])),
        "plain loop, run 32 at once": (32, lambda n: logits_of(session, inputs[:32])),
    }
    rows: list[Row] = []
    for name, (size, step) in loops.items():
        latencies: list[float] = []
        started, cpu = time.perf_counter(), time.process_time()
        while (begun := time.perf_counter()) - started < seconds:
            step(len(latencies))
            latencies.append(time.perf_counter() - begun)
        p50, p99, most = 1000 * np.quantile(latencies, [0.5, 0.99, 1.0])
        answered = size * len(latencies)
        rate, cpu_ms = answered / (time.perf_counter() - started), 1000 * (time.process_time() - cpu) / answered
        rows.append((name, f"{rate:.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{most:.1f}", f"{cpu_ms:.2f}", ""))
    return rows


def _request(program: Program, body: Body) -> bytes:
    netloc = urlsplit(program.address).netloc
    head = f"POST /predict HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: {body.content_type}\r\n"
    return f"{head}Content-Length: {len(body.content)}\r\n\r\n".encode("latin-1") + body.content


def _ask(folder: Path, program: Program, bodies: Sequence[Body], *, clients: int, **job: object) -> Outcome:
    """Send the bodies by a client in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = [Path(name) / str(number) for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(_request(program, body))
        url = urlsplit(program.address)
        asked = Job(host=str(url.hostname), port=url.port or 80, requests=[str(f) for f in files], clients=clients)
        (Path(name) / "job").write_text(json.dumps(asdict(asked) | job), encoding="utf-8")
        command = [sys.executable, "-m", "tests.bench.serve_client", f"{name}/job", f"{name}/result"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        return Outcome(**json.loads((Path(name) / "result").read_text("utf-8")))


def _load(folder: Path, program: Program, images: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    bodies = [Body(image, "image/png") for image in images]
    return _ask(folder, program, bodies, clients=clients, seconds=seconds)


def _costly_load(
    folder: Path, program: Program, images: Sequence[bytes], clients: int, seconds: float
) -> tuple[Outcome, float]:
    """Ask as fast as they answer; return what came of it and the CPU milliseconds of an answer, of all processes."""
    before = sum(tree_cpu_seconds(program.process.pid).values())
    outcome = _load(folder, program, images, clients, seconds)
    return outcome, 1000 * (sum(tree_cpu_seconds(program.process.pid).values()) - before) / outcome.answered


def _for_long(
    folder: Path, program: Program, images: Sequence[bytes], rate: float, *, quick: bool
) -> tuple[Outcome, list[float]]:
    """Ask at a rate for long; return what came of it, and the MB of all processes once they are warm and at the end."""
    seconds, warm_s = (QUICK_LONG_S, QUICK_WARM_S) if quick else (LONG_S, WARM_S)
    memory: list[float] = []
    warm = threading.Timer(warm_s, lambda: memory.append(_resident_mb(program)))
    warm.start()
    bodies = [Body(image, "image/png") for image in images]
    outcome = _ask(folder, program, bodies, clients=CLIENTS[-1], seconds=seconds, rate=rate)
    warm.join()
    return outcome, [*memory, _resident_mb(program)]


def _reloaded(
    folder: Path, program: Program, images: Sequence[bytes], bundles: Sequence[Path], *, quick: bool
) -> Outcome:
    """Reload in turn while 16 clients ask as fast as they can; return what they got."""
    reloads = QUICK_RELOADS if quick else RELOADS
    outcomes: list[Outcome] = []
    ended = threading.Event()

    def asking() -> None:
        while not ended.is_set():
            outcomes.append(_load(folder, program, images, 16, 5.0))

    client = threading.Thread(target=asking)
    client.start()
    try:
        for number in range(reloads):
            _reload(folder, program, bundles[number % len(bundles)])
    finally:
        ended.set()
        client.join()
    return _together(outcomes)


def _fed_with_rubbish(folder: Path, program: Program, vectors: Path, *, quick: bool) -> tuple[dict[str, Outcome], int]:
    """Send malformed bodies, first to a network of images, then to one of vectors; return answers and deaths."""
    count = QUICK_BODIES if quick else BODIES
    rng = np.random.default_rng(SEED)
    halves = {"images": list(malformed_images(rng, count * 3 // 4))}
    halves["rows"] = list(malformed_rows(rng, count - count * 3 // 4, features=FEATURES))
    fed, died = {}, 0
    for kind, bodies in halves.items():
        if kind == "rows":
            _reload(folder, program, vectors)
        before = _serving_processes(program)
        fed[kind] = _ask(folder, program, bodies, clients=16, once=True)
        died += len(before - _serving_processes(program))
    return fed, died


def _reload(folder: Path, program: Program, bundle: Path) -> None:
    """Put another bundle into service, and wait until the replicas of the earlier one have ended."""
    _point(folder, bundle)
    told = program.said().count("instead of")
    program.reload()
    while program.said().count("instead of") == told or len(_serving_processes(program)) > 2:
        time.sleep(0.1)


def _serving_processes(program: Program) -> set[int]:
    """Return the process that takes requests, and the replicas that answer them."""
    replicas = {pid for pid in tree_of(program.process.pid) if "ServeReplica" in command_of(pid)}
    return replicas | ({program.process.pid} if program.process.poll() is None else set())


def _resident_mb(program: Program) -> float:
    """Return the resident memory of all the service's processes together."""
    total = 0
    for pid in tree_of(program.process.pid):
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total / 1000


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return several outcomes as one; of the percentiles the worst."""
    statuses: dict[str, int] = {}
    for outcome in outcomes:
        for status, count in outcome.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    worst = max(outcomes, key=lambda outcome: outcome.p99_ms)
    answered = sum(outcome.answered for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    return Outcome(**(asdict(worst) | {"statuses": statuses, "answered": answered, "seconds": seconds}))


def _row(name: str, outcome: Outcome, cpu_ms: float) -> Row:
    rate = outcome.answered / outcome.seconds
    times = (f"{value:.1f}" for value in (outcome.p50_ms, outcome.p99_ms, outcome.most_ms))
    return (name, f"{rate:.0f}", *times, f"{cpu_ms:.2f}", str(_wrong(outcome, "200")))


def _counts(outcome: Outcome) -> Row:
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items()))
    return (str(outcome.answered), f"{outcome.p99_ms:.0f}", statuses)


def _wrong(outcome: Outcome, *starts: str) -> int:
    """Return how many answers have a status that begins otherwise."""
    return sum(count for status, count in outcome.statuses.items() if not status.startswith(starts))
