"""The regret curves of the samplers that are not ours, kept in `curves/TABLE.csv` because GPSampler takes its time.

    python -m tests.bench.transfer.curves [--seeds N] [TABLE ...]

makes those that are missing, one line a search, written to disk as each ends: started again after an interruption it
goes on where it was. Lines of other data than today's (their label says so) are left out.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.transfer.contenders import IN_PARALLEL
from tests.bench.transfer.replay import TRIALS, Run, replay
from tests.bench.transfer.tables import NAMES, Table, load_table

FOLDER = Path(__file__).with_name("curves")
HEADER = ["table", "task", "seed", "contender", "priors", *(f"r{n}" for n in range(1, TRIALS + 1))]
SEEDS = 10
OPPONENTS = [
    ("random", "none"),
    ("tpe", "none"),
    ("tpe", "good"),
    ("tpe" + IN_PARALLEL, "none"),
    ("gp", "good"),
    ("gp", "none"),
]
"""Contenders and the kind of their priors, the quick ones first."""

Curves = Mapping[Run, NDArray[np.float64]]


def searches(table: Table, contender: str, priors: str, *, seeds: int) -> list[Run]:
    """Return a contender's searches of every task, seed by seed."""
    return [Run(table.name, task, seed, contender, priors) for seed in range(seeds) for task in table.tasks]


def read_curves(table: Table, folder: Path = FOLDER) -> Curves:
    """Return the curves that are kept of a table, none if there is no file. A line that was cut off does not count."""
    path = folder / f"{table.name}.csv"
    if not path.is_file():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        label, *fields = next(csv.reader([line]))
        if line.endswith("\n") and label == table.label and len(fields) == len(HEADER) - 1:
            task, seed, contender, priors, *regrets = fields
            found[Run(table.name, task, int(seed), contender, priors)] = np.array(regrets, float)
    return found


def make_curves(table: Table, runs: Iterable[Run], folder: Path = FOLDER) -> int:
    """Replay those of the runs that are missing and append each to the table's file; return how many they were."""
    kept = read_curves(table, folder)
    path = folder / f"{table.name}.csv"
    folder.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    lines = [_line(table, run, curve) for run, curve in kept.items()]
    temporary.write_text("".join([",".join(HEADER) + "\n", *lines]), encoding="utf-8")
    os.replace(temporary, path)  # without what was cut off or is of other data
    made = 0
    with path.open("a", encoding="utf-8") as file:
        for run in runs:
            if run in kept:
                continue
            file.write(_line(table, run, replay(run, table)))
            file.flush()
            os.fsync(file.fileno())
            made += 1
    return made


def _line(table: Table, run: Run, curve: NDArray[np.float64]) -> str:
    text = io.StringIO()
    named = [table.label, run.task, run.seed, run.contender, run.priors]
    csv.writer(text, lineterminator="\n").writerow([*named, *(f"{regret:.4f}" for regret in curve)])
    return text.getvalue()


def main() -> None:
    """Make the missing curves of the tables that the command line names, of all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.transfer.curves", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"{SEEDS} by default")
    arguments = parser.parse_args()
    for name in arguments.tables:
        if name not in NAMES:
            parser.error(f"{name}: must be one of {', '.join(NAMES)}")
    for contender, priors in OPPONENTS:
        for name in arguments.tables or NAMES:
            table = load_table(name)
            if table is not None:
                made = make_curves(table, searches(table, contender, priors, seeds=arguments.seeds))
                print(f"{name}: {contender}, priors {priors}: {made} curves made", flush=True)


if __name__ == "__main__":
    main()
