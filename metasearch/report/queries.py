"""Questions to a store, answered as pandas frames. Imports neither torch nor ray."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import InfeasibleError, InputError
from metasearch.records import METRICS, TrialResult
from metasearch.search.lease import holder_of
from metasearch.search.objectives import Constraint
from metasearch.search.pareto import Front
from metasearch.search.store import (
    CONTROLS,
    CURVE,
    DESCRIPTION,
    FAILURE,
    PRIOR,
    RESULT,
    ROLE,
    RUN,
    description_of,
    is_finished,
    load_study,
    study_exists,
    study_names,
)
from metasearch.spelling import hint


def studies_frame(storage: RDBStorage) -> pd.DataFrame:
    """Return a row a study: name, task, objectives, finished, running, created. Studies of others have no task.

    Imported priors are left out: they have no trials here.
    """
    rows = []
    for name in study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        attributes = study.user_attrs
        if PRIOR in attributes:
            continue
        described = attributes.get(DESCRIPTION, {})
        trials = study.get_trials(deepcopy=False)
        rows.append(
            {
                "name": name,
                "task": described.get("task", {}).get("text"),
                "objectives": described.get("objectives", study.metric_names),
                "finished": sum(is_finished(trial) for trial in trials),
                "running": sum(trial.state == TrialState.RUNNING for trial in trials),
                "created": described.get("created"),
            }
        )
    return pd.DataFrame(rows, columns=["name", "task", "objectives", "finished", "running", "created"])


def trials_frame(study: Study) -> pd.DataFrame:
    """Return a row a trial: number, state, every metric, every parameter, seed, node, started, seconds, failure."""
    return pd.DataFrame([_trial_row(trial) for trial in study.get_trials(deepcopy=False)])


def best_frame(
    storage: RDBStorage,
    name: str,
    *,
    where: Sequence[Constraint] = (),
    sort: str | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Return the Pareto front of the complete trials that satisfy the study's constraints and `where`, a row a trial.

    sort: a metric, best first; by default the first objective. Where the final runs are done, test_accuracy is their
    mean over seeds, with test_std and test_seeds, and latency_ms the serial measurement; start_gain is by how much it is
    above that from random weights, all else equal, in the mean of start_pairs seeds, in start_better of them above it.
    Raises InfeasibleError naming the nearest trials if none satisfies the constraints, InputError for an unknown metric.
    """
    study = load_study(storage, name)
    description = description_of(study)
    sort = sort or description.objectives[0]
    if sort not in METRICS:
        raise InputError("--sort", f"must be a metric {hint(sort, METRICS)}", sort)
    rows = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if RESULT in trial.user_attrs:
            rows[trial.number] = _trial_row(trial)
    for number, extra in _final_results(storage, name).items():
        if number in rows:
            rows[number] |= extra
    limits = [*map(Constraint.parse, description.constraints), *where]
    feasible = [n for n, row in rows.items() if all(_violation(limit, row) <= 0 for limit in limits)]
    if rows and not feasible:
        raise InfeasibleError(_nearest(study, rows, limits))
    front = Front.of([METRICS[metric] for metric in description.objectives])
    for number in feasible:
        front.add(number, [rows[number][metric] for metric in description.objectives])
    frame = pd.DataFrame([rows[number] for number in front.in_order()])
    if frame.empty:
        return frame
    if sort not in frame:
        raise InputError("--sort", "is not known for any trial of this study", sort)
    ordered = frame.sort_values(sort, ascending=METRICS[sort] == "minimize", kind="stable").reset_index(drop=True)
    return ordered if top is None else ordered.head(top)


def controls_frame(storage: RDBStorage, name: str) -> pd.DataFrame:
    """Return a row a final run or control: role, of (the trial it belongs to), seed, and its metrics."""
    rows: list[dict[str, Any]] = []
    for trial in _companion_trials(storage, name):
        if trial.state == TrialState.COMPLETE:
            role = trial.user_attrs[ROLE]
            rows.append({"role": role["role"], "of": role["of"], "seed": role["seed"], **_result(trial).metrics})
    return pd.DataFrame(rows)


def status_of(study: Study) -> dict[str, Any]:
    """Return where a study stands: counts by state, failures by reason, target, its driver, and the rate."""
    description = description_of(study)
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if is_finished(trial)]
    failures: dict[str, int] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL:
            reason = trial.user_attrs.get(FAILURE, {}).get("reason", "unknown")
            failures[reason] = failures.get(reason, 0) + 1
    return {
        "study": study.study_name,
        "task": description.task["text"],
        "trials": description.trials,
        "finished": len(finished),
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trials),
        "failures": failures,
        "driver": holder_of(study),
        "teacher": study.user_attrs.get("teacher"),
    }


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    run = trial.user_attrs.get(RUN, {})
    result = _result(trial) if RESULT in trial.user_attrs else None
    curve = trial.user_attrs.get(CURVE, [])
    row: dict[str, Any] = {"number": trial.number, "state": trial.state.name}
    row |= {name: result.metrics[name] for name in METRICS if name in result.metrics} if result else {}
    row |= result.config if result else trial.params
    if result and "initialised" in result.details:
        row["initialised"] = result.details["initialised"]
    row["seed"], row["node"] = run.get("seed"), run.get("node")
    row["started"] = trial.datetime_start
    row["seconds"] = run["ended"] - run["started"] if "ended" in run else None
    row["epochs_run"] = len(result.curve) if result else len(curve)
    row["failure"] = trial.user_attrs.get(FAILURE, {}).get("reason")
    return row


def _result(trial: FrozenTrial) -> TrialResult:
    return TrialResult.from_json(trial.user_attrs[RESULT])


def _companion_trials(storage: RDBStorage, name: str) -> list[FrozenTrial]:
    if not study_exists(storage, name + CONTROLS):
        return []
    return load_study(storage, name + CONTROLS).get_trials(deepcopy=False)


def _final_results(storage: RDBStorage, name: str) -> dict[int, dict[str, Any]]:
    """Return, for each trial with final runs, mean and spread of its test accuracy, its start's gain; and latencies."""
    found: dict[str, dict[int, dict[int, float]]] = {"final": {}, "random": {}}
    for trial in _companion_trials(storage, name):
        if trial.state == TrialState.COMPLETE and (role := trial.user_attrs[ROLE])["role"] in found:
            by_seed = found[role["role"]].setdefault(role["of"], {})
            by_seed[role["seed"]] = _result(trial).metrics["test_accuracy"]
    results: dict[int, dict[str, Any]] = {}
    for number, accuracies in found["final"].items():
        values = list(accuracies.values())
        results[number] = {
            "test_accuracy": statistics.mean(values),
            "test_std": statistics.stdev(values) if len(values) > 1 else None,
            "test_seeds": len(values),
            **start_gain(accuracies, found["random"].get(number, {})),
        }
    if study_exists(storage, name + CONTROLS):
        measured = load_study(storage, name + CONTROLS).user_attrs.get("latency", {})
        for number, latency in measured.items():
            results.setdefault(int(number), {})["latency_ms"] = latency["median_ms"]
    return results


def start_gain(learned: Mapping[int, float], random: Mapping[int, float]) -> dict[str, float | int]:
    """Return what a start gains over random weights on the seeds that both have, nothing where there is none.

    learned, random: test accuracy by seed.
    """
    gains = [accuracy - random[seed] for seed, accuracy in learned.items() if seed in random]
    if not gains:
        return {}
    better = sum(gain > 0 for gain in gains)
    return {"start_gain": statistics.mean(gains), "start_better": better, "start_pairs": len(gains)}


def _violation(limit: Constraint, row: dict[str, Any]) -> float:
    return limit.violation(row) if limit.metric in row else 0.0


def _nearest(study: Study, rows: dict[int, dict[str, Any]], limits: Sequence[Constraint]) -> str:
    """Say which three trials come nearest, and what each misses by; misses are compared relative to the bounds."""

    def miss(row: dict[str, Any]) -> float:
        return sum(max(_violation(limit, row), 0) / max(abs(limit.bound), 1e-12) for limit in limits)

    lines = []
    for row in sorted(rows.values(), key=miss)[:3]:
        misses = [
            f"{limit.metric}={row[limit.metric]:g} misses {limit} by {_violation(limit, row):g}"
            for limit in limits
            if _violation(limit, row) > 0
        ]
        lines.append(f"trial {row['number']}: {'; '.join(misses)}")
    return f"study {study.study_name}: no trial satisfies {', '.join(map(str, limits))}; nearest: " + " | ".join(lines)
