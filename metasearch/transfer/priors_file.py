"""Priors in one portable file: Parquet, a row a trial, everything about it checked when it is read.

Columns: `prior` (a name), `state`, `curve` (float32), and one for each parameter and metric of any prior, null where a
trial has none: `float:NAME`, `int:NAME`, `choice:NAME` (the JSON of a categorical value, so that 1, 1.0, true and "1"
stay apart) and `metric:NAME`. What is said of each prior is JSON in the schema's metadata (see
`priors_description.py`), under METADATA_KEY.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.priors_description import FORMAT, description_json, read_description

METADATA_KEY = b"metasearch.priors"
STATES = ("complete", "pruned", "fail")
TEXT = pa.dictionary(pa.int32(), pa.string())
TYPES = {"float": pa.float64(), "int": pa.int64(), "choice": TEXT, "metric": pa.float64()}
"""The type of a column by what stands before the colon of its name."""
FIXED_COLUMNS = {"prior": TEXT, "state": TEXT, "curve": pa.list_(pa.float32())}


def write_priors(path: Path, priors: Sequence[Prior]) -> None:
    """Write one file of priors; it appears whole or not at all. Curves are rounded to float32.

    Raises InputError for what `read_priors` would refuse, StorageError if it cannot be written.
    """
    data = encode_priors(priors, place=str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def read_priors(path: Path) -> tuple[Prior, ...]:
    """Return the priors of a file. Raises NotFoundError, and InputError naming what breaks which rule where."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_priors(data, place=str(path))


def encode_priors(priors: Sequence[Prior], *, place: str) -> bytes:
    """Return the content of a file of priors. place: how an error names it."""
    table = _table(priors)
    _priors(table, place)  # so that nothing is written that cannot be read
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decode_priors(data: bytes, *, place: str) -> tuple[Prior, ...]:
    """Return the priors of a file's content. place: how an error names it."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)  # UTF-8 and indices, which nothing checks before they are used
    except (pa.ArrowException, OSError) as error:
        raise InputError(place, "must be a whole Parquet file", str(error).partition("\n")[0]) from error
    return _priors(table, place)


def _table(priors: Sequence[Prior]) -> pa.Table:
    rows = [(prior, trial) for prior in priors for trial in prior.trials]
    columns: dict[str, list[Any]] = {
        "prior": [prior.name for prior, _ in rows],
        "state": [trial.state for _, trial in rows],
        "curve": [list(trial.curve) for _, trial in rows],
    }

    def column(name: str) -> list[Any]:
        if name not in columns:
            columns[name] = [None] * len(rows)
        return columns[name]

    row = 0
    for prior in priors:
        kinds = {name: _kind(distribution) for name, distribution in prior.distributions.items()}
        own = {name: column(f"{kind}:{name}") for name, kind in kinds.items()}
        for trial in prior.trials:
            for name, value in trial.params.items():
                if name not in own:
                    raise InputError(f"prior {prior.name}, trial {row}: {name}", "has no distribution", value)
                own[name][row] = json.dumps(value) if kinds[name] == "choice" else value
            for name, value in trial.metrics.items():
                column(f"metric:{name}")[row] = value
            row += 1
    types = {name: FIXED_COLUMNS.get(name) or TYPES[name.partition(":")[0]] for name in columns}
    try:
        arrays = {name: _array(values, types[name]) for name, values in columns.items()}
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise InputError("priors", "must hold values of their distributions' types", str(error)) from error
    return pa.table(arrays).replace_schema_metadata({METADATA_KEY: description_json(priors).encode()})


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode() if kind == TEXT else pa.array(values, kind)


def _kind(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "choice"
    return "int" if isinstance(distribution, IntDistribution) else "float"


def _priors(table: pa.Table, place: str) -> tuple[Prior, ...]:
    """Return the priors of a table, checked."""
    priors = read_description((table.schema.metadata or {}).get(METADATA_KEY), place)
    _check_columns(table.schema, priors, place)
    positions = {prior.name: position for position, prior in enumerate(priors)}
    owners = table["prior"].to_pylist()
    for row, name in enumerate(owners):
        if name not in positions:
            raise InputError(f"{place}: row {row}, column prior", "must be a prior that the file describes", name)
    params: list[dict[str, Any]] = [{} for _ in owners]
    metrics: list[dict[str, float]] = [{} for _ in owners]
    for column in table.column_names:
        kind, _, name = column.partition(":")
        if column in FIXED_COLUMNS:
            continue
        readers = {prior.name: _reader(prior, kind, name) for prior in priors}
        into = metrics if kind == "metric" else params
        for row, value in enumerate(table[column].to_pylist()):
            if value is not None:
                try:
                    into[row][name] = readers[owners[row]](value)
                except ValueError as error:
                    where = f"{place}: prior {owners[row]}, row {row}, column {column}"
                    raise InputError(where, str(error), value) from error
    trials: dict[str, list[PriorTrial]] = {prior.name: [] for prior in priors}
    for row, (state, curve) in enumerate(zip(table["state"].to_pylist(), table["curve"].to_pylist(), strict=True)):
        where = f"{place}: prior {owners[row]}, row {row}"
        if state not in STATES:
            raise InputError(f"{where}, column state", f"must be one of {', '.join(STATES)}", state)
        points = tuple(curve or ())
        if not all(point is not None and math.isfinite(point) for point in points):
            raise InputError(f"{where}, column curve", "must hold finite numbers", list(points))
        if state == "complete":
            for objective in priors[positions[owners[row]]].directions:
                if objective not in metrics[row]:
                    raise InputError(f"{where}, column metric:{objective}", "must be there: the trial is complete")
        trials[owners[row]].append(PriorTrial(params[row], metrics[row], state, points))
    return tuple(replace(prior, trials=tuple(trials[prior.name])) for prior in priors)


def _check_columns(schema: pa.Schema, priors: Sequence[Prior], place: str) -> None:
    searched = {f"{_kind(d)}:{name}" for prior in priors for name, d in prior.distributions.items()}
    for column in [*FIXED_COLUMNS, *sorted(searched)]:
        if column not in schema.names:
            raise InputError(f"{place}: column {column}", "is missing")
    if len(set(schema.names)) < len(schema.names):
        raise InputError(place, "must have every column once", ", ".join(schema.names))
    for field in schema:
        kind = field.name.partition(":")[0]
        if field.name not in FIXED_COLUMNS and kind not in TYPES:
            raise InputError(f"{place}: column {field.name}", f"is no column of format {FORMAT}")
        wanted = FIXED_COLUMNS.get(field.name) or TYPES[kind]
        found = pa.dictionary(pa.int32(), field.type) if pa.types.is_string(field.type) else field.type
        if found != wanted:
            raise InputError(f"{place}: column {field.name}", f"must be of the type {wanted}", str(field.type))


def _reader(prior: Prior, kind: str, name: str) -> Callable[[Any], Any]:
    """Return what turns a value of a column into one of the prior's. It raises ValueError with the rule it breaks."""
    if kind == "metric":
        return _finite
    distribution = prior.distributions.get(name)
    if distribution is None or _kind(distribution) != kind:
        return _refuse
    if isinstance(distribution, CategoricalDistribution):
        choices = {json.dumps(choice): choice for choice in distribution.choices}
        return lambda text: _chosen(text, choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    rule = f"must be in [{low:.12g}, {high:.12g}]" + (f" in steps of {step:.12g}" if step not in (None, 1) else "")

    def check(value: float) -> float:
        # 1e-8 of a step is Optuna's own tolerance
        if low <= value <= high and (not step or abs((value - low) / step - round((value - low) / step)) < 1e-8):
            return value
        raise ValueError(rule)

    return check


def _finite(value: float) -> float:
    if math.isfinite(value):
        return value
    raise ValueError("must be a finite number")


def _refuse(value: object) -> object:
    raise ValueError("must be empty: the prior did not search it, or not with this type")


def _chosen(text: str, choices: Mapping[str, Any]) -> Any:
    if text in choices:
        return choices[text]
    raise ValueError(f"must be one of {', '.join(choices)}")
