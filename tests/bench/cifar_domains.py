"""Small photographs cut into tasks of two classes: a pretrained teacher, a meta-trained student, tasks held out.

The four steps of `metasearch meta-train FAMILY --teacher SPEC --target TASK`, by its own functions: a teacher is
trained on all ten classes of CIFAR-10, students are meta-trained with its logits on three of five tasks, the method
and the learning rates of the target are chosen on the fourth, and on the fifth the student is distilled from its
meta-learned weights and from random ones, over the same batches. Every seed deals the classes out anew.
"""

from __future__ import annotations

import csv
import os
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean

import torch

from metasearch.meta.artefacts import Artefact
from metasearch.meta.fine_tuning import FineTuning, fine_tune_on
from metasearch.meta.making import MetaRequest, make_artefact, taught_domains
from metasearch.tasks import TaskSource
from metasearch.tasks.domains import Domain
from metasearch.tasks.families import parse_family
from metasearch.tasks.splits import SPLITS
from metasearch.teachers import Teacher
from tests.bench.job import data_root
from tests.bench.line_plot import write_panels
from tests.bench.sides import Verdict, conditions, print_table
from tests.bench.starts import task_of

ARCHIVE, FOLDER = "CIFAR10-jpeg.tar.xz", "CIFAR10-jpeg"
RULE, WAYS, SIDE = "random:5", 2, 16
STUDENT, TEACHER = "convnet:width=8,depth=3", "convnet:width=16,depth=4"
METHODS, RANDOM = ("protonet", "hypernetwork"), "random"
STARTS = (RANDOM, *METHODS)
RATES = (0.001, 0.003, 0.01)


@dataclass(frozen=True)
class Size:
    """How much is done. train, test: images a class. shots: those of the target that the student learns from."""

    train: int = 200
    test: int = 300
    shots: tuple[int, ...] = (16, 64)
    seeds: int = 3
    draws: int = 3
    steps: int = 200
    judged: int = 30
    epochs: int = 30


QUICK = Size(train=30, test=10, shots=(8,), seeds=1, draws=1, steps=2, judged=2, epochs=2)


@dataclass(frozen=True)
class Draw:
    """Which images a student learns from: of a seed's task to choose by or to judge by, so many of each class."""

    seed: int
    part: str
    shots: int
    draw: int


@dataclass(frozen=True)
class Curve:
    """Test accuracies before training and after each epoch, of one start at one rate. domain: its classes."""

    draw: Draw
    domain: str
    start: str
    rate: float
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """The chosen start and random weights on a seed's held-out task, each at its best rate of the validation task."""

    seed: int
    domain: str
    shots: int
    start: str
    rate: float
    random_rate: float
    ours: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def final(self) -> float:
        """What the start gains after all steps."""
        return self.ours[-1] - self.random[-1]

    @property
    def on_the_way(self) -> float:
        """What it gains in the mean over the epochs."""
        return mean(self.ours) - mean(self.random)


def run(*, quick: bool) -> Verdict:
    """Measure every seed; print the gains, write curves and plot to METASEARCH_BENCH or a scratch folder."""
    torch.set_num_threads(1)
    root = data_root()
    if root is None or not (root / ARCHIVE).is_file():
        return Verdict("cifar_domains", None, f"skipped: no {ARCHIVE} in METASEARCH_DATA")
    size = QUICK if quick else Size()
    into = Path(os.environ.get("METASEARCH_BENCH") or tempfile.mkdtemp(prefix="cifar-domains-"))
    into.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory() as scratch:
        _unpack(root / ARCHIVE, Path(scratch), size)
        for seed in range(size.seeds):
            curves += _measured(f"folder:{Path(scratch) / FOLDER}@{RULE}", seed, size)
            _write_csv(into / "cifar_domains.csv", curves)
    judged = [judge(curves, seed, shots) for shots in size.shots for seed in range(size.seeds)]
    panels = {f"{shots} images a class": _lines(curves, shots) for shots in size.shots}
    write_panels(into / "cifar_domains.svg", panels, ticks=_ticks(size.epochs), x="epochs")
    _show(judged, panels, size, into, time.process_time() - began)
    of = {shots: [j for j in judged if j.shots == shots] for shots in size.shots}
    text = "; ".join(
        f"{shots} images a class {100 * mean(j.final for j in own):+.1f} points at the end and "
        f"{100 * mean(j.on_the_way for j in own):+.1f} over all epochs"
        for shots, own in of.items()
    )
    return Verdict("cifar_domains", None, f"gain over random weights: {text} (no target is stated)")


def judge(curves: Sequence[Curve], seed: int, shots: int) -> Judged:
    """Return how the start and the rates that a seed's validation task chose do on its test task."""
    own = [c for c in curves if (c.draw.seed, c.draw.shots) == (seed, shots)]
    rates = {start: best_rate(own, start) for start in STARTS}
    start = max(METHODS, key=lambda name: mean(average(own, "choose", name, rate=rates[name])))
    ours, random = (average(own, "judge", name) for name in (start, RANDOM))
    domain = next(c.domain for c in own if c.draw.part == "judge")
    return Judged(seed, domain, shots, start, rates[start], rates[RANDOM], ours, random)


def best_rate(curves: Sequence[Curve], start: str) -> float:
    """Return the best rate of a start on the validation tasks: over all epochs; of random weights, in the end."""

    def worth(rate: float) -> float:
        found = average(curves, "choose", start, rate=rate)
        return found[-1] if start == RANDOM else mean(found)

    return max(RATES, key=worth)


def average(curves: Sequence[Curve], part: str, start: str, *, rate: float | None = None) -> tuple[float, ...]:
    """Return the mean accuracies of a start over all tasks of a part and draws of them, by epoch. rate: all if None."""
    rows = [c.accuracies for c in curves if (c.draw.part, c.start) == (part, start) and rate in (None, c.rate)]
    return tuple(mean(column) for column in zip(*rows, strict=True))


def _unpack(archive: Path, into: Path, size: Size) -> None:
    """Write the first images of each class."""
    taken: Counter[Path] = Counter()
    with tarfile.open(archive, "r|xz") as file:
        for member in file:
            folder = Path(member.name).parent
            most = size.train if "train" in folder.parts else size.test
            if member.isfile() and taken[folder] < most:
                taken[folder] += 1
                file.extract(member, into, filter="data")


def _measured(family: str, seed: int, size: Size) -> Iterator[Curve]:
    """Yield the curves of one seed: its teacher, its tasks, its meta-training, and both targets at every rate."""
    source = TaskSource("", image_size=SIDE, seed=seed)
    requests = [
        MetaRequest(
            family,
            method,
            student=STUDENT,
            source=source,
            ways=WAYS,
            steps=size.steps,
            seed=seed,
            judged=size.judged,
            teacher=TEACHER,
        )
        for method in METHODS
    ]
    learned = []
    for request in requests:
        began = time.process_time()
        learned.append(make_artefact(request, tell=print))
        print(f"seed {seed}: {request.method}: {time.process_time() - began:.0f} CPU seconds", flush=True)
    (member,) = parse_family(family).members
    by_group = {_group(domain.name): domain for domain in taught_domains(member, requests[0], tell=print)}
    choose, judge_by = (by_group[_group(learned[0].record["domains"][part][0])] for part in ("validation", "test"))
    for shots in size.shots:
        tried = list(_targets(choose, learned, dict.fromkeys(STARTS, RATES), Draw(seed, "choose", shots, 0), size))
        yield from tried
        best = {start: (best_rate(tried, start),) for start in STARTS}
        for draw in range(size.draws):
            yield from _targets(judge_by, learned, best, Draw(seed, "judge", shots, draw), size)


def _group(name: str) -> str:
    """Return what tells a task from the others of its family; what the cache holds names another scratch folder."""
    return name.rpartition("#")[2]


def _targets(
    domain: Domain, learned: Sequence[Artefact], rates: Mapping[str, Sequence[float]], draw: Draw, size: Size
) -> Iterator[Curve]:
    """Yield the curves of all starts, each at its rates, on one draw of a task's images."""
    task_seed = size.draws * draw.seed + draw.draw
    generator = torch.Generator().manual_seed(task_seed)
    of_class = [rows[domain.splits[rows] == SPLITS.index("train")] for rows in domain.rows_of_class]
    few = torch.cat([rows[torch.randperm(len(rows), generator=generator)[: draw.shots]] for rows in of_class])
    task = task_of(domain, few, torch.nonzero(domain.splits == SPLITS.index("test"))[:, 0])
    assert domain.teacher_logits is not None
    teacher = Teacher(TEACHER, draw.seed, {"train": domain.teacher_logits[few][None]}, {})
    names = ", ".join(domain.class_names)
    for rate in RATES:
        asked = [artefact for artefact in learned if rate in rates[artefact.record["method"]]]
        if not asked and rate in rates[RANDOM]:
            asked = [learned[0]]  # random weights are trained beside any
        for index, artefact in enumerate(asked):
            settings, method = FineTuning(size.epochs, rate=rate), artefact.record["method"]
            found = fine_tune_on(task, artefact, teacher=teacher, settings=settings, seed=task_seed)
            if rate in rates[method]:
                yield Curve(draw, names, method, rate, found.meta_learned)
            if index == 0 and rate in rates[RANDOM]:
                yield Curve(draw, names, RANDOM, rate, found.random)


def _lines(curves: Sequence[Curve], shots: int) -> dict[str, tuple[float, ...]]:
    """Return each start's mean curve on the test tasks over all seeds, each at its best rate of its validation task."""
    own = [c for c in curves if c.draw.shots == shots]
    return {start: average(own, "judge", start) for start in STARTS}


def _ticks(epochs: int) -> list[str]:
    """Return a label an epoch, every fifth shown."""
    return [str(epoch) if epoch % 5 == 0 else "" for epoch in range(epochs + 1)]


def _write_csv(path: Path, curves: Sequence[Curve]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("seed", "part", "shots", "draw", "domain", "start", "rate", "epoch", "accuracy"))
        for c in curves:
            head = (*astuple(c.draw), c.domain, c.start, c.rate)
            writer.writerows((*head, epoch, f"{value:.4f}") for epoch, value in enumerate(c.accuracies))


def _show(
    judged: Sequence[Judged], panels: dict[str, dict[str, tuple[float, ...]]], size: Size, into: Path, seconds: float
) -> None:
    shown = sorted({0, 1, size.epochs // 8, size.epochs // 4, size.epochs // 2, size.epochs})
    rows = [
        (
            f"{j.shots}, seed {j.seed}",
            j.domain,
            f"{j.start} at {j.rate:g}",
            *(f"{100 * j.ours[epoch]:.1f}" for epoch in (0, size.epochs // 4, size.epochs)),
            f"at {j.random_rate:g}",
            *(f"{100 * j.random[epoch]:.1f}" for epoch in (0, size.epochs // 4, size.epochs)),
            f"{100 * j.final:+.1f}",
            f"{100 * j.on_the_way:+.1f}",
        )
        for j in judged
    ]
    notes = [
        conditions(),
        f"CIFAR-10 as JPEG, {size.train} images a class, {SIDE}x{SIDE} pixels, cut by {RULE}; student {STUDENT}, "
        f"teacher {TEACHER} of all classes; {size.steps} steps of meta-training with its logits; "
        f"{size.epochs} epochs, rates and start chosen on a validation task, judged by {size.test} images a class, "
        f"{size.draws} draws of the student's images; {seconds:.0f} CPU seconds in all, less what the cache held",
        f"curves: {into / 'cifar_domains.csv'}, {into / 'cifar_domains.svg'}",
    ]
    parts = ("0", "a quarter", "all epochs")
    header = ("images a class", "held-out task", "start", *parts, "random", *parts, "gain", "over all epochs")
    print_table("Photographs: a meta-trained student on held-out tasks", header, rows, notes)
    lines = [
        (title, start, *(f"{100 * values[epoch]:.1f}" for epoch in shown))
        for title, starts in panels.items()
        for start, values in starts.items()
    ]
    print_table("Test accuracy, %, by epoch", ("", "start", *map(str, shown)), lines, [])
