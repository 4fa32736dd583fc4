"""Studies with all that a report shows: stages, curves, controls, latencies, failures; made up by rule, in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState, create_trial

from metasearch.records import EpochReport, StageResult, TrialResult
from metasearch.search.names import FAILURE, LATENCY, RESULT, ROLE, RUN, TEACHER
from metasearch.search.space import load_space
from metasearch.search.store import CONTROLS, create_study
from tests.fakes import describe, new_storage

TEACHER_FOUND = {"spec": "convnet:width=24,depth=6", "metrics": {"val_accuracy": 0.97, "parameters": 9e4, "macs": 1e6}}


def reported_study(
    url: str,
    folder: Path,
    name: str = "ten",
    *,
    trials: int = 30,
    message: str = "loss nan",
    with_controls: bool = True,
    **changes: Any,
) -> str:
    """Make a study over `quick` whose every fifth trial fails with a message, with a companion; return its name."""
    storage = new_storage(url)
    description = describe(folder, trials=trials, **changes)
    study = create_study(storage, name, description)
    study.set_user_attr(TEACHER, TEACHER_FOUND)
    space, rng = load_space("quick"), np.random.default_rng(0)
    for number in range(trials):
        run = {"node": "here", "pid": number % 2, "started": 3.0 * number, "ended": 3.0 * number + 2, "seed": number}
        values = space.sample(rng)
        parameters = {
            "params": values,
            "distributions": {k: v for k, v in space.distributions().items() if k in values},
        }
        if number % 5 == 4:
            failure = {RUN: run, FAILURE: {"reason": "diverged", "message": message}}
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=failure, **parameters))  # type: ignore[arg-type]  # one dict for both
            continue
        result = made_up_result(space.configuration(values), number, rng)
        objectives = [result.metrics[objective] for objective in description.objectives]
        attributes = {RUN: run, RESULT: result.to_json(), "note": message}
        study.add_trial(create_trial(values=objectives, user_attrs=attributes, **parameters))  # type: ignore[arg-type]
    if with_controls:
        companion = create_study(storage, name + CONTROLS, replace(description, trials=0))
        for role, seed in (("final", 1), ("final", 2), ("direct", 1), ("alone", 1)):
            result = made_up_result(space.configuration(space.sample(rng)), seed, rng, test=True)
            values_of = [result.metrics[objective] for objective in description.objectives]
            role_of = {"role": role, "of": 0, "seed": seed, "config": dict(result.config)}
            attributes = {ROLE: role_of, RESULT: result.to_json()}
            companion.add_trial(create_trial(values=values_of, user_attrs=attributes))
        latencies = {str(number): {"median_ms": 0.5 + number, "spread_ms": 0.1} for number in range(trials)}
        companion.set_user_attr(LATENCY, latencies)
    return name


def made_up_result(config: dict[str, Any], seed: int, rng: np.random.Generator, *, test: bool = False) -> TrialResult:
    """Return a result whose accuracy grows with its bytes, with noise; it trained for two epochs and was quantized."""
    size = round(300 * config["student.width"] * (1 + rng.random()))
    accuracy = float(1 - 0.5 * np.exp(-size / 2000) - 0.05 * rng.random())
    metrics: dict[str, float] = {"val_accuracy": accuracy, "model_bytes": size, "macs": 10 * size, "parameters": size}
    metrics |= {"train_seconds": 2.0} | ({"test_accuracy": accuracy - 0.01} if test else {})
    curve = tuple(
        EpochReport("distill", epoch, 2, 1.0 / epoch, accuracy * epoch / 2, 10 * size, 0.01, 4.0, 0.5)
        for epoch in (1, 2)
    )
    stages = (
        StageResult("distill", 1.5, {"val_accuracy": accuracy + 0.01, "parameters": size, "macs": 10 * size}),
        StageResult("quantize", 0.5, {"val_accuracy": accuracy, "model_bytes": size, "float_bytes": 4 * size}),
    )
    return TrialResult(config, seed, metrics, stages, curve)


def strings_of(record: Any) -> Sequence[str]:
    """Return every text in a nest of lists and mappings, keys left out."""
    if isinstance(record, str):
        return [record]
    values = record.values() if isinstance(record, dict) else record if isinstance(record, (list, tuple)) else ()
    return [text for value in values for text in strings_of(value)]
