"""What prior studies are worth: samplers beside one another on tables of real evaluations, and each demand judged.

Ours is run afresh; the others' curves are kept (`curves.py`). One setting of the sampler serves all tables.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.bench.sides import Verdict, conditions, print_table
from tests.bench.transfer import checks
from tests.bench.transfer.checks import AT, BAD, OURS, OURS_COLD, OURS_IRRELEVANT, OURS_PARALLEL, Check
from tests.bench.transfer.costs import Costs, measure_costs
from tests.bench.transfer.curves import OPPONENTS, SEEDS, Curves, read_curves, searches
from tests.bench.transfer.outcome import COLD_TPE, NEVER, Outcome, Sampler, mean_and_error
from tests.bench.transfer.priors import TRIALS
from tests.bench.transfer.replay import Run, replay
from tests.bench.transfer.tables import NAMES, load_table

QUICK_SEEDS = 2
QUICK_SAMPLERS: list[Sampler] = [OURS, OURS_COLD]
OUR_SAMPLERS: list[Sampler] = [
    OURS,
    OURS_COLD,
    *(("transfer", kind) for kind in BAD),
    OURS_IRRELEVANT,
    OURS_PARALLEL,
]


def run(*, quick: bool) -> Verdict:
    """Replay our sampler on every table that is there and print the tables. quick: two seeds, good priors and none."""
    tables = {name: table for name in NAMES if (table := load_table(name)) is not None}
    if not tables:
        text = (
            "skipped: no tables in METASEARCH_TABLES, nor in shared/tables beside the repository, nor built-in priors"
        )
        print(f"\ntransfer {text}")
        return Verdict("transfer", None, text)
    seeds, samplers = (QUICK_SEEDS, QUICK_SAMPLERS) if quick else (SEEDS, OUR_SAMPLERS)
    before = conditions()
    runs = [search for table in tables.values() for s in samplers for search in searches(table, *s, seeds=seeds)]
    ours, costs = _measure(runs, cost_table="fcnet" if "fcnet" in tables and not quick else None)
    outcomes = []
    for name, table in tables.items():
        kept = {search: curve for search, curve in read_curves(table).items() if search.seed < seeds}
        outcomes.append(Outcome(name, table.tasks, seeds, kept | dict(ours)))
    found = _check(outcomes, costs, samplers)
    absent = [f"{name}: its data are not there" for name in NAMES if name not in tables]
    absent += [
        f"{outcome.table}: curves of {', '.join(sampler)} are missing; python -m tests.bench.transfer.curves makes them"
        for outcome in outcomes
        for sampler in OPPONENTS
        if not outcome.whole(sampler)
    ]
    _show(outcomes, found, [before, f"{seeds} seeds", *absent])
    judged = [check for check in found if check.met is not None]
    met = sum(check.met is True for check in judged)
    text = f"{met} of {len(judged)} demands met, {len(found) - len(judged)} not judged"
    if quick or (met == len(judged) and absent):
        return Verdict("transfer", None, text)
    return Verdict("transfer", met == len(judged), text)


def _measure(runs: Sequence[Run], *, cost_table: str | None) -> tuple[Curves, Costs | None]:
    """Return the curves of runs, replayed in as many processes as there are CPUs, then the costs, one at a time."""
    cpus = len(os.sched_getaffinity(0))
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= dict.fromkeys(threads, "1")  # read by the processes that start now, when they import numpy
    try:
        with multiprocessing.get_context("spawn").Pool(cpus) as pool:
            curves = dict(zip(runs, pool.map(_replayed, runs, chunksize=1), strict=True))
            costs = pool.apply(_costs, (cost_table,)) if cost_table else None
    finally:
        for name, value in threads.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return curves, costs


def _replayed(run: Run) -> NDArray[np.float64]:
    table = load_table(run.table)
    assert table is not None
    return replay(run, table)


def _costs(name: str) -> Costs:
    table = load_table(name)
    assert table is not None
    return measure_costs(table)


def _check(outcomes: Sequence[Outcome], costs: Costs | None, samplers: Sequence[Sampler]) -> list[Check]:
    """Return every demand that the samplers which were run allow to look at, by its line."""
    judges = [checks.low_regret, checks.trials_saved]
    if OURS_PARALLEL in samplers:
        judges += [checks.bad_priors, checks.parallel]
    found = [check for judge in judges for outcome in outcomes for check in judge(outcome)]
    return found + (checks.costs(costs) if costs else [])


def _show(outcomes: Sequence[Outcome], found: Sequence[Check], notes: list[str]) -> None:
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    header = ("table: sampler, priors", *(f"regret after {n}" for n in AT), "trials to cold TPE's 30", "seeds")
    measure = [
        "regret: 1 - hypervolume / that of the whole table, mean over tasks ± standard error over seeds",
        f"priors: {TRIALS} random configurations of each other task; tpe and gp enqueue the 5 best points of them",
        f"trials to cold TPE's 30: median over task x seed, {NEVER} for never",
    ]
    print_table("Transfer: samplers on tables of real evaluations", header, rows, [*notes, *measure])
    words = {True: "met", False: "MISSED", None: "not judged"}
    lines = [(f"{c.line} {c.what}", c.measured, c.target, words[c.met]) for c in found]
    print_table("Transfer: what is demanded", ("line", "measured", "target", ""), lines, [])


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    rows = []
    for sampler in [*OPPONENTS, *OUR_SAMPLERS]:
        (curves,) = outcome.of(sampler)
        seeds = curves.shape[1]
        if not seeds:
            continue
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_error(curves, trial)) for trial in AT]
        cold = outcome.of(COLD_TPE)[0].size
        saved = f"{np.median(outcome.first_trials(sampler)):g}" if cold else ""
        contender, priors = sampler
        rows.append((f"{outcome.table}: {contender}, {priors}", *cells, saved, str(seeds)))
    return rows
