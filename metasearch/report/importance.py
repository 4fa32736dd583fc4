"""Which parameters mattered, by Optuna's own evaluators over trials that are read by SQL."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Container, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import InputError, NotFoundError
from metasearch.report.database import Database
from metasearch.report.heads import Head, study_head
from metasearch.report.rows import Wanted, read_rows
from metasearch.spelling import hint

if TYPE_CHECKING:
    import pandas as pd

EVALUATORS = ("ped-anova", "fanova")
MOST_FOR_FANOVA = 5000
"""Complete trials beyond which fANOVA's forest would take minutes."""


class _Given(Study):
    """A study whose trials are given: reading them as Optuna does, or adding them to a study of its own, is slow."""

    def __init__(self, trials: list[FrozenTrial], directions: Sequence[StudyDirection]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.InMemoryStorage()
        super().__init__(storage.get_study_name_from_id(storage.create_new_study(directions)), storage)
        self._given = trials

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self._given if states is None or trial.state in states]


def importances(
    database: Database,
    name: str,
    *,
    objective: str | None = None,
    evaluator: str = "ped-anova",
    seed: int = 0,
    ids: Collection[int] | None = None,
) -> dict[str, float]:
    """Return each searched parameter's share of the importance for an objective, largest first; they sum to 1.

    evaluator: ped-anova (Watanabe et al., 2023: what the best tenth has in common) or fanova (Hutter et al., 2014: the
    share of the variance). seed: of fANOVA's forest. ids: Optuna's, of the trials to look at, where not at all.
    Infeasible trials count too: they were measured all the same.
    Raises InputError for an unknown objective or evaluator, NotFoundError below two complete trials.
    """
    head = study_head(database, name)
    target = objective or next(iter(head.directions))
    if target not in head.directions:
        rule = f"must be an objective of {name} {hint(target, head.directions)}"
        raise InputError("--objective", rule, target)
    if evaluator not in EVALUATORS:
        raise InputError("--evaluator", f"must be one of {', '.join(EVALUATORS)}", evaluator)
    trials = complete_trials(database, head, ids)
    if len(trials) < 2:
        raise NotFoundError(f"study {name}: {len(trials)} complete trials; importance needs two")
    if evaluator == "fanova" and len(trials) > MOST_FOR_FANOVA:
        raise InputError("--evaluator", f"must be ped-anova beyond {MOST_FOR_FANOVA} complete trials", len(trials))
    index = list(head.directions).index(target)
    # PED-ANOVA asks what low values have in common
    sign = -1.0 if head.directions[target] == "maximize" else 1.0
    study = _Given(trials, [StudyDirection[direction.upper()] for direction in head.directions.values()])
    chosen: Any = (
        optuna.importance.PedAnovaImportanceEvaluator()
        if evaluator == "ped-anova"
        else optuna.importance.FanovaImportanceEvaluator(seed=seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the target is taken to be minimized, as it is here
        found = optuna.importance.get_param_importances(
            study, evaluator=chosen, target=lambda trial: sign * trial.values[index]
        )
    return {parameter: float(share) for parameter, share in found.items()}


def importance_frame(
    database: Database, name: str, *, objective: str | None = None, evaluator: str = "ped-anova", seed: int = 0
) -> pd.DataFrame:
    """Return `importances` as a frame with the columns parameter, importance."""
    import pandas as pd

    found = importances(database, name, objective=objective, evaluator=evaluator, seed=seed)
    return pd.DataFrame(list(found.items()), columns=["parameter", "importance"])


def complete_trials(database: Database, head: Head, ids: Collection[int] | None = None) -> list[FrozenTrial]:
    """Return a study's complete trials, or those of these ids, as Optuna has them, with parameters and values alone."""
    wanted = Wanted(states=("COMPLETE",), ids=ids, attributes=(), stages=False, constraints=False)
    rows = read_rows(database, head, wanted)
    known = {text: json_to_distribution(text) for text in set(rows.distributions)}
    parameters: dict[int, dict[str, Any]] = {each: {} for each, *_ in rows.trials}
    distributions: dict[int, dict[str, Any]] = {each: {} for each, *_ in rows.trials}
    for (each, name, value), text in zip(rows.parameters, rows.distributions, strict=True):
        parameters[each][name], distributions[each][name] = value, known[text]
    values: dict[int, dict[int, float]] = {}
    for each, index, value in rows.values:
        values.setdefault(each, {})[index] = value
    return [
        FrozenTrial(
            number=number,
            state=TrialState.COMPLETE,
            value=None,
            values=[value for _, value in sorted(values[each].items())],
            datetime_start=started,
            datetime_complete=ended,
            params=parameters[each],
            distributions=distributions[each],
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=each,
        )
        for each, number, _, started, ended in rows.trials
    ]
