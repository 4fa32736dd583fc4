"""Few-shot distillation: how fast a student learns from each start, on domains that no start was learned from.

Two families: alphabets of Omniglot, and halves of the classes of data sets of digits and letters. Starts are learned
on some domains; the learning rate of each, and the one start to take, are chosen on others; a third part judges. The
answer is how many steps the chosen start needs to 99 % of random's final accuracy, as a share of random's own.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.few_shot_families import FAMILIES, SIDE, Kind, short_name
from tests.bench.job import data_root
from tests.bench.line_plot import write_panels
from tests.bench.sides import Verdict, conditions, print_table
from tests.bench.starts import (
    ALPHA,
    BATCH,
    RANDOM,
    STUDENT,
    TEACHER,
    TEACHER_SLICE,
    Learned,
    Pretrained,
    curve,
    meta_learned,
    started,
    steps_to,
)

SHOTS, SEEDS, CHOOSING_SEEDS = (5, 20), 5, 2
RATES = (0.001, 0.003, 0.01, 0.03)
AT = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""On alphabets with 20 images a class random weights end 5 points higher after 256 steps than after 128."""
META_STEPS = {"protonet": 1500, "reptile": 60, "fomaml": 100, "hypernetwork": 800}
"""With 400, ProtoNet had 80 % on the validation alphabet where 1500 give 86 %, before a student takes any step."""
STARTS = (RANDOM, TEACHER_SLICE, *META_STEPS)
REACHED, MOST_STEPS = 0.99, 0.2
QUICK_AT, QUICK_SEEDS, QUICK_META_STEPS = (0, 2, 4), 1, 2


@dataclass(frozen=True, eq=False)
class Curves:
    """Test accuracies of one start and rate on one domain: (seeds, steps)."""

    part: str
    domain: str
    shots: int
    start: str
    rate: float
    accuracies: np.ndarray


@dataclass(frozen=True)
class Judged:
    """What the start that validation chose does on the test domains, beside random weights."""

    family: str
    shots: int
    start: str
    rate: float
    random_final: float
    steps: float
    random_steps: float
    by_domain: str

    @property
    def share(self) -> float:
        """The steps to the target, as a share of random's."""
        return self.steps / self.random_steps


def run(*, quick: bool) -> Verdict:
    """Measure every start on both families; print one table, write curves and plot to METASEARCH_BENCH or a scratch."""
    root = data_root()
    if root is None:
        return Verdict("few_shot", None, "skipped: no METASEARCH_DATA")
    into = Path(os.environ.get("METASEARCH_BENCH") or tempfile.mkdtemp(prefix="few-shot-"))
    into.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    at = QUICK_AT if quick else AT
    found: dict[str, list[Curves]] = {}
    for name, kind in FAMILIES.items():
        found[name] = list(_measured(kind, root, quick=quick))
        _write_csv(into / "few_shot.csv", found, at)
    judged = [judge(name, shots, found[name], at) for name in FAMILIES for shots in SHOTS]
    panels = {
        f"{j.family}, {j.shots} images a class": {
            start: np.mean(
                [np.mean(c.accuracies, axis=0) for c in _of(found[j.family], "judge", j.shots, start)], axis=0
            )
            for start in STARTS
        }
        for j in judged
    }
    write_panels(into / "few_shot.svg", panels, ticks=at, x="training steps")
    _show(judged, panels, at, into, time.process_time() - began)
    worst = max(judged, key=lambda j: j.share)
    text = ", ".join(f"{j.family} {j.shots}-shot {j.start} {j.share:.2f}" for j in judged)
    met = None if quick else worst.share <= MOST_STEPS
    return Verdict("few_shot", met, f"share of random's steps: {text} (target: {MOST_STEPS} or less)")


def judge(family: str, shots: int, found: Sequence[Curves], at: Sequence[int]) -> Judged:
    """Return how the start that the validation domains choose does on the others."""
    target = REACHED * _final(_of(found, "choose", shots, RANDOM))

    def cost(start: str) -> tuple[float, float]:
        average = _mean(_of(found, "choose", shots, start))
        return steps_to(average, target, at), -float(average.mean())

    start = min((name for name in STARTS if name != RANDOM), key=cost)
    ours, random = (_of(found, "judge", shots, name) for name in (start, RANDOM))
    ending = REACHED * _final(random)
    domains = [f"{short_name(o.domain)} {_share(o, r, at)}" for o, r in zip(ours, random, strict=True)]
    return Judged(
        family,
        shots,
        start,
        ours[0].rate,
        _final(random),
        steps_to(_mean(ours), ending, at),
        steps_to(_mean(random), ending, at),
        ", ".join(domains),
    )


def _share(ours: Curves, random: Curves, at: Sequence[int]) -> str:
    ending = REACHED * _final([random])
    return f"{steps_to(_mean([ours]), ending, at):.0f}/{steps_to(_mean([random]), ending, at):.0f}"


def _measured(kind: Kind, root: Path, *, quick: bool) -> Iterator[Curves]:
    """Yield the curves of every start: on validation domains at the best of the rates, on test domains at that rate."""
    parts = kind.load(root)
    learned = {}
    for name, steps in META_STEPS.items():
        began = time.process_time()
        learned[name] = meta_learned(
            name,
            learn=parts["learn"],
            choose=parts["choose"],
            steps=QUICK_META_STEPS if quick else steps,
            ways=kind.ways,
            rotations=kind.rotations,
        )
        print(f"{name}: meta-trained in {time.process_time() - began:.0f} CPU seconds", flush=True)
    chosen: dict[tuple[str, int], float] = {}
    for part in ("choose", "judge"):
        for domain in parts[part]:
            known = Pretrained.on(domain, held=kind.held, most=kind.most)
            print(f"{domain.name}: teacher {100 * known.accuracy():.1f} % on held-out images", flush=True)
            for shots in SHOTS:
                for start in STARTS:
                    if part == "judge":
                        rate = chosen[start, shots]
                        yield _curves(known, part, shots, start, rate, learned, SEEDS, quick=quick)
                        continue
                    tried = [_curves(known, part, shots, start, r, learned, CHOOSING_SEEDS, quick=quick) for r in RATES]
                    # random weights are given the rate that ends best, the others the one that is best on the way
                    best = max(tried, key=lambda c: _final([c]) if c.start == RANDOM else float(c.accuracies.mean()))
                    chosen[start, shots] = best.rate
                    yield best


def _curves(
    known: Pretrained,
    part: str,
    shots: int,
    start: str,
    rate: float,
    learned: dict[str, Learned],
    seeds: int,
    *,
    quick: bool,
) -> Curves:
    rows = []
    for seed in range(QUICK_SEEDS if quick else seeds):
        data = known.data(shots=shots, seed=seed)
        model = started(start, data.task, teacher=known.teacher, learned=learned, seed=seed)
        rows.append(curve(model, data, rate=rate, at=QUICK_AT if quick else AT, seed=seed))
    return Curves(part, known.domain.name, shots, start, rate, np.array(rows))


def _of(found: Sequence[Curves], part: str, shots: int, start: str) -> list[Curves]:
    return [c for c in found if (c.part, c.shots, c.start) == (part, shots, start)]


def _mean(curves: Sequence[Curves]) -> np.ndarray:
    """Return the mean over seeds, then domains, (steps,)."""
    average: np.ndarray = np.mean([c.accuracies.mean(axis=0) for c in curves], axis=0)
    return average


def _final(curves: Sequence[Curves]) -> float:
    return float(_mean(curves)[-1])


def _write_csv(path: Path, found: dict[str, list[Curves]], at: Sequence[int]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("family", "part", "domain", "shots", "start", "rate", "seed", "step", "accuracy"))
        for family, curves in found.items():
            for c in curves:
                for seed, row in enumerate(c.accuracies):
                    head = (family, c.part, short_name(c.domain), c.shots, c.start, c.rate, seed)
                    writer.writerows((*head, step, f"{value:.4f}") for step, value in zip(at, row, strict=True))


def _show(
    judged: Sequence[Judged], panels: dict[str, dict[str, np.ndarray]], at: Sequence[int], into: Path, seconds: float
) -> None:
    rows = [
        (
            f"{j.family}, {j.shots}",
            f"{j.start} at {j.rate:g}",
            f"{100 * j.random_final:.1f}",
            f"{j.steps:.0f}",
            f"{j.random_steps:.0f}",
            f"{j.share:.2f}",
            j.by_domain,
        )
        for j in judged
    ]
    notes = [
        conditions(),
        f"student {STUDENT}, teacher {TEACHER} of all images of the domain but those held out; {SIDE}x{SIDE} pixels; "
        f"alpha {ALPHA}, AdamW, batches of {BATCH}, constant rate, the best of {len(RATES)} on validation domains; "
        f"{SEEDS} seeds; {at[-1]} steps; {seconds:.0f} CPU seconds in all; "
        f"meta-training with labels alone, steps: {META_STEPS}",
        "20 images of a character are the 15 drawings that are not held out",
        f"curves: {into / 'few_shot.csv'}, {into / 'few_shot.svg'}",
    ]
    header = (
        "family, images a class",
        "start chosen on validation",
        "random ends at %",
        "steps to 99 % of it",
        "random's steps",
        "share",
        "by domain: steps/random's steps",
    )
    print_table("Few-shot distillation on held-out domains", header, rows, notes)
    shown = [index for index, step in enumerate(at) if step in (0, 8, 32, 128, at[-1])]
    lines = [
        (title, start, *(f"{100 * values[index]:.1f}" for index in shown))
        for title, starts in panels.items()
        for start, values in starts.items()
    ]
    print_table("Test accuracy, %, by step", ("family", "start", *(str(at[index]) for index in shown)), lines, [])
