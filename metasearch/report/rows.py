"""The trials of a study as a storage holds them: rows of its tables, by a few SQL statements or by Optuna's classes.

`get_trials` takes half a minute for 20,000 trials; the statements here a second, because nothing is decoded twice and
a result's text is cut off before what is not asked for.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from metasearch.report.database import Database, Select
from metasearch.report.heads import Head
from metasearch.search.names import RESULT

STAGES_MARK, CURVE_MARK, DETAILS_MARK = (f', \\"{key}\\": ' for key in ("stages", "curve", "details"))
"""Where these keys of a TrialResult begin in an attribute's text, JSON inside JSON. Inside a string of either a quote
has more backslashes, so that the marks stand nowhere else before them."""
EPOCH_MARK = '\\"epochs\\": '
INFINITE = {"INF_POS": float("inf"), "INF_NEG": float("-inf")}


@dataclass(frozen=True)
class Wanted:
    """What to read of a study's trials. None stands for everything.

    states: of the trials. ids: Optuna's ids of the trials. parameters: names. attributes: keys. stages: whether results
    are read with their stages and epochs. constraints: whether what Optuna's samplers were told of constraints is read.
    """

    states: Collection[str] | None = None
    ids: Collection[int] | None = None
    parameters: Collection[str] | None = None
    attributes: Collection[str] | None = None
    stages: bool = True
    constraints: bool = True


@dataclass(frozen=True)
class Rows:
    """trials: id, number, state, started, completed (UTC). The others: id, then name and value, decoded.

    distributions: of each row of parameters, as Optuna's JSON. A result's value is its record, read as far as it was
    wanted, with the number of its epochs under "epochs_run".
    """

    trials: list[tuple[int, int, str, datetime | None, datetime | None]]
    values: list[tuple[int, int, float]] = field(default_factory=list)
    parameters: list[tuple[int, str, Any]] = field(default_factory=list)
    distributions: list[str] = field(default_factory=list)
    attributes: list[tuple[int, str, Any]] = field(default_factory=list)
    violations: list[tuple[int, float]] = field(default_factory=list)


def read_rows(database: Database, head: Head, wanted: Wanted) -> Rows:
    """Return the trials of a study in the order of their numbers."""
    if not database.known:
        return _by_optuna(database, head, wanted)
    collecting = gc.isenabled()
    gc.disable()  # it would walk over a growing million of objects, none of them garbage, for a third of the time
    try:
        return _by_sql(database, head, wanted)
    finally:
        if collecting:
            gc.enable()


def _by_sql(database: Database, head: Head, wanted: Wanted) -> Rows:
    chosen = f"t.study_id = {head.id}"
    if wanted.states is not None:
        chosen += f" AND t.state IN {_texts(wanted.states)}"
    if wanted.ids is not None:
        chosen += f" AND t.trial_id IN ({', '.join(str(int(each)) for each in wanted.ids)})"
    with database.snapshot() as select:
        trials = select(
            "SELECT t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete FROM trials t"
            f" WHERE {chosen} ORDER BY t.number"
        )
        values = select(
            "SELECT v.trial_id, v.objective, v.value, v.value_type FROM trial_values v"
            f" JOIN trials t ON t.trial_id = v.trial_id WHERE {chosen}"
        )
        parameters = _parameters(select, chosen, wanted.parameters)
        attributes = _attributes(select, chosen, wanted, database.position)
        violations = (
            select(
                "SELECT a.trial_id, a.value_json FROM trial_system_attributes a JOIN trials t"
                f" ON t.trial_id = a.trial_id WHERE {chosen} AND (a.key = 'constraints' OR a.key LIKE 'constraints:%')"
            )
            if wanted.constraints
            else []
        )
    decoded = {
        RESULT: (_whole_results if wanted.stages else _results_before_stages)
        if head.description  # a study of another program may call anything a result
        else _each
    }
    keyed: dict[str, tuple[list[int], list[str]]] = {}
    for each, key, value in attributes:
        ids, texts = keyed.setdefault(key, ([], []))
        ids.append(each)
        texts.append(value)
    return Rows(
        [(each, number, state, _utc(started), _utc(ended)) for each, number, state, started, ended in trials],
        [(each, index, INFINITE.get(kind, value)) for each, index, value, kind in values],
        _decoded_parameters(parameters),
        [distribution for *_, distribution in parameters],
        [
            (each, key, value)
            for key, (ids, texts) in keyed.items()
            for each, value in zip(ids, decoded.get(key, _each)(texts), strict=True)
        ],
        [(each, violation) for each, value in violations for violation in _violations(json.loads(value))],
    )


def _parameters(select: Select, chosen: str, names: Collection[str] | None) -> list[Any]:
    if names is not None and not names:
        return []
    statement = (
        "SELECT p.trial_id, p.param_name, p.param_value, p.distribution_json FROM trial_params p"
        f" JOIN trials t ON t.trial_id = p.trial_id WHERE {chosen}"
    )
    if names is None:
        return select(statement)
    bound = {f"name_{index}": name for index, name in enumerate(names)}
    return select(f"{statement} AND p.param_name IN ({', '.join(f':{key}' for key in bound)})", **bound)


def _attributes(select: Select, chosen: str, wanted: Wanted, position: str) -> list[Any]:
    if wanted.attributes is not None and not wanted.attributes:
        return []
    value = "a.value_json"
    if not wanted.stages:
        cut = f"{position}(a.value_json, :mark)"
        value = f"CASE WHEN a.key = '{RESULT}' AND {cut} > 0 THEN substr(a.value_json, 1, {cut} - 1) ELSE {value} END"
    statement = (
        f"SELECT a.trial_id, a.key, {value} FROM trial_user_attributes a"
        f" JOIN trials t ON t.trial_id = a.trial_id WHERE {chosen}"
    )
    bound = {} if wanted.stages else {"mark": STAGES_MARK}
    if wanted.attributes is not None:
        keys = {f"key_{index}": key for index, key in enumerate(wanted.attributes)}
        statement += f" AND a.key IN ({', '.join(f':{key}' for key in keys)})"
        bound |= keys
    return select(statement, **bound)


def _texts(words: Collection[str]) -> str:
    return "(" + ", ".join(f"'{word}'" for word in words) + ")"


def _utc(value: Any) -> datetime | None:
    """Return a moment as SQLite (text) or PostgreSQL (datetime) gives it; Optuna stores UTC without saying so."""
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    moment: datetime | None = value
    return moment


def _decoded_parameters(rows: Sequence[Any]) -> list[tuple[int, str, Any]]:
    """Return the values that users know; each distribution's JSON is read once."""
    decoders: dict[str, Callable[[float], Any]] = {}
    found = []
    for each, name, value, distribution in rows:
        decode = decoders.get(distribution)
        if decode is None:
            decode = decoders[distribution] = _decoder(json.loads(distribution))
        found.append((each, name, decode(value)))
    return found


def _decoder(distribution: dict[str, Any]) -> Callable[[float], Any]:
    kind = distribution.get("name") or distribution["type"]
    if kind in ("CategoricalDistribution", "categorical"):
        choices = distribution.get("attributes", distribution)["choices"]
        return lambda value: choices[int(value)]
    return int if kind.lower().startswith("int") else float


def _each(texts: Sequence[str]) -> list[Any]:
    """Return JSON texts decoded; as one text, which is a third faster."""
    found: list[Any] = json.loads(f"[{','.join(texts)}]")
    return found


def _results_before_stages(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return config, seed and metrics of results whose attributes were cut off before their stages."""
    whole = [text if text.endswith('}"') else text + '}"' for text in texts]
    return _each(_each(whole))


def _whole_results(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return results without their curves and details, their epochs counted."""
    places = [(text.find(CURVE_MARK), text.rfind(DETAILS_MARK)) for text in texts]
    cut = [
        text[:curve] + '}"' if 0 < curve < details else text
        for text, (curve, details) in zip(texts, places, strict=True)
    ]
    found: list[dict[str, Any]] = _each(_each(cut))
    for result, text, (curve, details) in zip(found, texts, places, strict=True):
        known = "curve" not in result
        result["epochs_run"] = text.count(EPOCH_MARK, curve, details) if known else len(result["curve"])
    return found


def _plain_result(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads(text))
    found["epochs_run"] = len(found.get("curve", []))
    return found


def _violations(value: Any) -> list[float]:
    """Return what one system attribute holds: a number, or the list that Optuna kept before its version 5."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _by_optuna(database: Database, head: Head, wanted: Wanted) -> Rows:
    import optuna
    from optuna.distributions import distribution_to_json

    from metasearch.search.store import open_storage

    study = optuna.load_study(study_name=head.name, storage=open_storage(database.url))
    found = Rows([])
    for trial in study.get_trials(deepcopy=False):
        each = trial._trial_id
        if wanted.states is not None and trial.state.name not in wanted.states:
            continue
        if wanted.ids is not None and each not in wanted.ids:
            continue
        started, ended = (
            None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
            for moment in (trial.datetime_start, trial.datetime_complete)
        )
        found.trials.append((each, trial.number, trial.state.name, started, ended))
        found.values.extend((each, index, value) for index, value in enumerate(trial.values or []))
        names = trial.params if wanted.parameters is None else wanted.parameters
        for name in names:
            if name in trial.params:
                found.parameters.append((each, name, trial.params[name]))
                found.distributions.append(distribution_to_json(trial.distributions[name]))
        for key, value in trial.user_attrs.items():
            if wanted.attributes is None or key in wanted.attributes:
                read = _plain_result(json.dumps(value)) if key == RESULT and head.description else value
                found.attributes.append((each, key, read))
        if wanted.constraints:
            found.violations.extend((each, value) for value in trial.constraints.values())
    return found
