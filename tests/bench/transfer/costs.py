"""What a proposal costs in seconds of CPU: one core, everything in one thread, studies in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import optuna

from metasearch.transfer.sampler import TransferSampler
from tests.bench.transfer.priors import prior_study
from tests.bench.transfer.replay import study_of
from tests.bench.transfer.tables import Table

CASES = {
    "100 trials, 10 priors": (100, 10, 200),
    "1000 trials, 10 priors": (1_000, 10, 200),
    "100 trials, 100 priors": (100, 100, 500),
}
"""Own trials, prior studies, trials of each."""
ASKED = 9
"""Proposals of which the median is taken."""
BATCH_CASE, BATCH = "100 trials, 10 priors", 8


@dataclass(frozen=True)
class Costs:
    """medians, before: seconds of CPU by case, of one proposal and of what is fitted once before the first.

    batch: of batch_size proposals of which none is told; one_by_one: of as many, each told before the next.
    """

    medians: Mapping[str, float]
    before: Mapping[str, float]
    batch: float
    one_by_one: float
    batch_size: int = BATCH


def measure_costs(table: Table) -> Costs:
    """Measure all cases; the studies are random configurations of a table. Call it where libraries have one thread."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    medians, before = {}, {}
    for case, (own, priors, trials) in CASES.items():
        search = _Search(table, own=own, priors=priors, trials=trials)
        first = search.seconds(search.propose_and_tell)
        times = [search.seconds(search.propose_and_tell) for _ in range(ASKED)]
        medians[case] = float(np.median(times))
        before[case] = max(first - medians[case], 0.0)
    own, priors, trials = CASES[BATCH_CASE]
    totals = []
    for told in (True, False):
        search = _Search(table, own=own, priors=priors, trials=trials)
        search.propose_and_tell()
        totals.append(sum(search.seconds(search.propose_and_tell if told else search.propose) for _ in range(BATCH)))
    return Costs(medians, before, batch=totals[1], one_by_one=totals[0])


class _Search:
    """A study of `own` random trials that goes on with prior studies."""

    def __init__(self, table: Table, *, own: int, priors: int, trials: int) -> None:
        rng = np.random.default_rng(0)
        others = table.tasks[1:]
        studies = [prior_study(table, others[i % len(others)], trials, rng) for i in range(priors)]
        rows = rng.choice(len(table.values(table.tasks[0])), own, replace=False)
        self.table = table
        self.rows = [int(row) for row in rows]
        self.study = study_of(table, table.tasks[0], self.rows, TransferSampler(studies, seed=0))

    def propose(self) -> optuna.Trial:
        trial = self.study.ask()
        self.table.suggest(trial)
        return trial

    def propose_and_tell(self) -> None:
        trial = self.propose()
        row = self.table.answer(self.table.tasks[0], trial.params, self.rows)
        self.study.tell(trial, [float(value) for value in self.table.values(self.table.tasks[0])[row]])

    @staticmethod
    def seconds(call: Callable[[], object]) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started
