"""A study of 20,000 trials in Optuna's own tables, by bulk insertion: a trial at a time would take ten minutes.

10 searched parameters, 2 objectives and 3 attributes a trial: the result with its stages and a learning curve of 10
epochs, the run, and a note of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState

from metasearch.records import EpochReport, StageResult, TrialResult
from metasearch.search.space import load_space
from metasearch.search.store import FAILURE, RESULT, RUN, create_study, open_storage
from tests.fakes import describe

TRIALS = 20_000
EPOCHS = 10
FAILED_EVERY = 50
SEARCHED = (
    "student.family",
    "student.depth",
    "batch_size",
    "optimizer",
    "weight_decay",
    "alpha",
    "temperature",
    "student.width",
    "learning_rate.peak",
    "pruning_ratio.final",
)
FIXED = {"learning_rate.kind": "one_cycle", "pruning_ratio.kind": "cubic", "quantize": "int8", "loss": "kd"}
REPORTS = [
    asdict(EpochReport("distill", epoch, EPOCHS, 2.0 / epoch, 0.7 * epoch / EPOCHS, 400_000, 0.01, 4.0, 0.3))
    for epoch in range(1, EPOCHS + 1)
]
CURVE = f'"curve": {json.dumps(REPORTS)}'
"""One for all: making 20,000 of them takes longer than all else."""
BATCH = 5000
STARTED = datetime(2026, 1, 2, 3, 4, 5)


def make_study(url: str, name: str = "large", *, trials: int = TRIALS, seed: int = 0) -> RDBStorage:
    """Make a study of many finished trials, one in FAILED_EVERY failed; accuracy grows with bytes, with noise."""
    storage = open_storage(url, create=True)
    description = replace(describe(Path("/nowhere"), trials=trials), space=load_space("distill_compress").text)
    study = create_study(storage, name, description)
    rng = np.random.default_rng(seed)
    distributions = load_space("distill_compress").distributions()
    texts = {path: distribution_to_json(distributions[path]) for path in SEARCHED}
    columns = {path: _sample(distributions[path], trials, rng) for path in SEARCHED}
    noise = rng.random((trials, 3))
    with storage.engine.begin() as connection:
        first = connection.execute(sqlalchemy.select(sqlalchemy.func.max(models.TrialModel.trial_id))).scalar() or 0
        for start in range(0, trials, BATCH):
            rows: dict[Any, list[dict[str, Any]]] = {}
            for number in range(start, min(start + BATCH, trials)):
                config = {path: values[number] for path, values in columns.items()}
                for model, row in _rows(
                    study._study_id, first + 1 + number, number, config, distributions, texts, noise
                ):
                    rows.setdefault(model, []).append(row)
            for model, batch in rows.items():
                connection.execute(model.__table__.insert(), batch)
        if connection.dialect.name == "postgresql":
            connection.execute(
                sqlalchemy.text("SELECT setval('trials_trial_id_seq', (SELECT max(trial_id) FROM trials))")
            )
    return storage


def _sample(distribution: BaseDistribution, count: int, rng: np.random.Generator) -> list[Any]:
    """Return values as a trial has them."""
    if isinstance(distribution, CategoricalDistribution):
        return [distribution.choices[index] for index in rng.integers(len(distribution.choices), size=count)]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.log:
        return [
            float(value) for value in np.exp(rng.uniform(np.log(distribution.low), np.log(distribution.high), count))
        ]
    if distribution.step is None:
        return [float(value) for value in rng.uniform(distribution.low, distribution.high, count)]
    steps = rng.integers(round((distribution.high - distribution.low) / distribution.step) + 1, size=count)
    kind = type(distribution.low)
    return [kind(round(distribution.low + step * distribution.step, 9)) for step in steps.tolist()]


def _rows(
    study: int,
    each: int,
    number: int,
    config: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    texts: dict[str, str],
    noise: NDArray[np.float64],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the rows of one trial, each with the table that it belongs in."""
    started = STARTED + timedelta(seconds=3 * number)
    failed = number % FAILED_EVERY == FAILED_EVERY - 1
    state = TrialState.FAIL if failed else TrialState.COMPLETE
    yield (
        models.TrialModel,
        {
            "trial_id": each,
            "number": number,
            "study_id": study,
            "state": state,
            "datetime_start": started,
            "datetime_complete": started + timedelta(seconds=5),
        },
    )
    for path, value in config.items():
        distribution = distributions[path]
        row = {"trial_id": each, "param_name": path, "param_value": distribution.to_internal_repr(value)}
        yield models.TrialParamModel, row | {"distribution_json": texts[path]}
    run = {"node": f"node-{number % 4}", "pid": 1, "started": 3.0 * number, "ended": 3.0 * number + 4.5, "seed": number}
    attributes: dict[str, Any] = {RUN: run, "note": f"batch {number // 1000}"}
    if failed:
        attributes[FAILURE] = {"reason": "diverged", "message": "loss nan"}
    else:
        result = _result({**FIXED, **config}, number, noise[number])
        attributes[RESULT] = result.to_json().replace('"curve": []', CURVE)
        for index, metric in enumerate(("val_accuracy", "model_bytes")):
            row = {"trial_id": each, "objective": index, "value": result.metrics[metric]}
            yield models.TrialValueModel, row | {"value_type": models.TrialValueModel.TrialValueType.FINITE}
    for key, attribute in attributes.items():
        yield models.TrialUserAttributeModel, {"trial_id": each, "key": key, "value_json": json.dumps(attribute)}


def _result(config: dict[str, Any], number: int, noise: NDArray[np.float64]) -> TrialResult:
    size = 300.0 * config["student.width"] ** 2 * config["student.depth"] * (1.2 - config["pruning_ratio.final"])
    accuracy = float(1 - 1 / (1 + np.log1p(size) / 4) - 0.1 * noise[0])
    metrics = {
        "val_accuracy": accuracy,
        "val_ece": float(0.1 * noise[1]),
        "teacher_agreement": accuracy,
        "parameters": round(size),
        "macs": round(40 * size),
        "model_bytes": round(1.1 * size),
        "train_seconds": float(3 + noise[2]),
    }
    stages = tuple(
        StageResult(stage, 1.0 + float(noise[2]), {"val_accuracy": accuracy - loss, "model_bytes": 4.0 * round(size)})
        for stage, loss in (("distill", 0.0), ("prune", 0.02), ("quantize", 0.005))
    )
    return TrialResult(config, number, metrics, stages, (), {"width": config["student.width"]})
