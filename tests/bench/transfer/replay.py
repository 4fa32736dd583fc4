"""One search replayed against a table, in seconds: what it proposes is looked up, never trained.

After every answer the study is written anew with the configurations that were evaluated. Where a proposal is answered
by another configuration, the nearest of a pool, the sampler thereby learns what that one gave, under that one's
parameters: Optuna cannot change those of a trial that was asked for, and a value under the wrong parameters would
mislead a sharp model more than a blunt one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from tests.bench.transfer.contenders import CONTENDERS
from tests.bench.transfer.measure import regret_curve
from tests.bench.transfer.priors import prior_studies
from tests.bench.transfer.tables import Table

TRIALS = 30

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One search. table: its name. contender: of CONTENDERS. priors: the kind of the prior studies, of KINDS."""

    table: str
    task: str
    seed: int
    contender: str
    priors: str


def replay(run: Run, table: Table, *, trials: int = TRIALS) -> Array:
    """Return the regret after each trial, (trials,)."""
    return regret_curve(table.values(run.task)[rows_of(run, table, trials=trials)], table.values(run.task))


def rows_of(run: Run, table: Table, *, trials: int) -> list[int]:
    """Return the rows of the table that a search evaluates, in order."""
    contender = CONTENDERS[run.contender]
    priors = prior_studies(table, run.task, seed=run.seed, kind=run.priors)
    # every task has draws of its own, or their errors would not average out
    seed = int(np.random.SeedSequence([run.seed, table.tasks.index(run.task)]).generate_state(1)[0])
    rows: list[int] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler, points = contender.start(priors, seed)
        while len(rows) < trials:
            asked = min(contender.workers, trials - len(rows))
            study = study_of(table, run.task, rows, sampler)
            proposals = []
            for number in range(len(rows), len(rows) + asked):
                if number < len(points):
                    study.enqueue_trial(points[number])
                trial = study.ask()
                table.suggest(trial)
                proposals.append(trial.params)
            for proposal in proposals:
                rows.append(table.answer(run.task, proposal, rows))
    return rows


def study_of(table: Table, task: str, rows: Sequence[int], sampler: BaseSampler) -> optuna.Study:
    """Return a study in memory whose trials are rows of a table; of one name, by which a sampler knows it again."""
    study = optuna.create_study(study_name=f"{table.name}-{task}", directions=["minimize", "minimize"], sampler=sampler)
    for row in rows:
        params = table.params(task, row)
        distributions = {name: table.distributions[name] for name in params}
        values = [float(value) for value in table.values(task)[row]]
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, values=values))
    return study
