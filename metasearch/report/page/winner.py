"""The winner's card: the feasible trial that is best in the first objective, and all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from metasearch.records import Config, TrialResult
from metasearch.report.database import Database, trial_attributes
from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import IN_TURN, Axis, Figure, Series, TextTable, words
from metasearch.report.page.front import ROLES
from metasearch.report.tables import HEADINGS, metric_text, student_text
from metasearch.search.names import MEASURED_MS, RESULT
from metasearch.search.space import parse_space

STAGE_COLUMNS = ("val_accuracy", "parameters", "macs", "model_bytes")


@dataclass(frozen=True)
class Winner:
    """number: of the trial. student: in a few words. yaml: its configuration as the readers of files take it.

    artefacts: SHA-256 of its files, by name.
    """

    number: int
    student: str
    yaml: str
    metrics: TextTable
    curve: Figure | None
    stages: TextTable | None
    controls: TextTable | None
    artefacts: Mapping[str, str] = field(default_factory=dict)


def winner(database: Database, facts: Facts) -> Winner | None:
    """Return the card of the front's first trial, None where nothing is feasible."""
    if not facts.front:
        return None
    row = facts.front[0]
    number = facts.table.cells["number"][row]
    record = facts.table.take([row]).records()[0]
    result = whole_result(database, facts, facts.table.ids[row])
    config = result.config if result else record["params"]
    known = "student.family" in config and "student.depth" in config and "quantize" in config
    return Winner(
        number=number,
        student=student_text(dict(config)) if known else "",
        yaml=configuration_yaml(config, facts),
        metrics=metrics_table(facts, record["metrics"]),
        curve=curve_figure(facts, result) if result and result.curve else None,
        stages=stages_table(result) if result and result.stages else None,
        controls=controls_table(facts, number),
        artefacts=result.artefacts if result else {},
    )


def whole_result(database: Database, facts: Facts, trial: int) -> TrialResult | None:
    """Return a trial's result with its curve, which tables of trials leave out. trial: Optuna's id."""
    if not facts.head.description:
        return None
    found = trial_attributes(database, [trial], RESULT)
    return TrialResult.from_json(found[0][2]) if found else None


def configuration_yaml(config: Config, facts: Facts) -> str:
    """Return a configuration as the YAML that `metasearch run --config` and `launch --enqueue` take.

    What the study's space does not name is left out: it has its default, and a search would refuse it.
    """
    if space := facts.head.description.get("space"):
        named = {setting.path for setting in parse_space(space, place="the study's space").settings}
        config = {path: value for path, value in config.items() if path in named}
    text: str = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    return text


def metrics_table(facts: Facts, metrics: Mapping[str, Any]) -> TextTable:
    """Return the winner's metrics beside the teacher's, the test accuracy with its spread over seeds."""
    teacher = facts.teacher["metrics"] if facts.teacher else {}
    rows = []
    for name, value in metrics.items():
        if name not in HEADINGS:
            continue
        text = metric_text(name, value)
        if name == "test_accuracy" and metrics.get("test_seeds"):
            spread = f" ± {metrics['test_std']:.4f}" if metrics.get("test_std") is not None else ""
            text += f"{spread}, {metrics['test_seeds']} seeds"
        latency = facts.latencies.get(facts.table.cells["number"][facts.front[0]])
        if name == (MEASURED_MS if facts.head.description.get("latency") else "latency_ms") and latency:
            text = f"{latency[0]:.4f} ± {latency[1] / 2:.4f} ms"
        rows.append((words(name), text, metric_text(name, teacher.get(name))))
    return TextTable(("", "winner", "teacher"), tuple(rows), numeric=frozenset({1, 2}))


def curve_figure(facts: Facts, result: TrialResult) -> Figure:
    """Return the winner's validation accuracy, epoch by epoch, a line a stage that goes on from the one before."""
    stages = list(dict.fromkeys(report.stage for report in result.curve))
    series = []
    last: tuple[float, float] | None = None
    for place, stage in enumerate(stages):
        own = [(report.epoch, report.val_accuracy) for report in result.curve if report.stage == stage]
        points = [last, *own] if last else own
        style = IN_TURN[place % len(IN_TURN)]
        series.append(Series(stage, "line", style, tuple(p[0] for p in points), tuple(p[1] for p in points)))
        last = own[-1]
    final = result.curve[-1].val_accuracy
    return Figure(
        id=f"curve-{facts.index}",
        title="Learning curve",
        alt=f"Validation accuracy over {len(result.curve)} epochs of {', '.join(stages)}; the last is {final:.4f}",
        x=Axis("epoch"),
        y=Axis(words("val_accuracy"), unit="share"),
        series=tuple(series),
    )


def stages_table(result: TrialResult) -> TextTable:
    """Return what each stage took, cost and saved against the stage before it."""
    names = [name for name in STAGE_COLUMNS if any(name in stage.metrics for stage in result.stages)]
    before: dict[str, float] = {}
    rows = []
    for stage in result.stages:
        cells = [stage.stage.replace("_", " "), f"{stage.seconds:.1f}"]
        metrics = dict(stage.metrics)
        if "model_bytes" in metrics and "float_bytes" in metrics:
            before.setdefault("model_bytes", metrics["float_bytes"])
        for name in names:
            cells.append(_changed(name, metrics.get(name), before.get(name)))
            if name in metrics:
                before[name] = metrics[name]
        rows.append(tuple(cells))
    headings = ("stage", "seconds", *(words(name) for name in names))
    return TextTable(headings, tuple(rows), numeric=frozenset(range(1, len(headings))))


def _changed(name: str, value: float | None, before: float | None) -> str:
    """Return a value, and what became of it since the stage before: points of accuracy, a share of anything else."""
    if value is None:
        return ""
    text = metric_text(name, value)
    if before is None or before == value:
        return text
    if name == "val_accuracy":
        return f"{text} ({100 * (value - before):+.1f} points)"
    return f"{text} ({value / before - 1:+.0%})" if before else text


def controls_table(facts: Facts, number: int) -> TextTable | None:
    """Return the test accuracy of a trial's final runs beside its controls; None before they are run."""
    rows = []
    for role, label in ROLES.items():
        runs = [run for run in facts.controls if run["role"] == role and run["of"] == number]
        if not runs:
            continue
        values = [run["test_accuracy"] for run in runs]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
        accuracy = metric_text("test_accuracy", mean) + (f" ± {spread:.4f}" if spread is not None else "")
        sizes = (metric_text(name, sum(r[name] for r in runs) / len(runs)) for name in ("macs", "model_bytes"))
        rows.append((label, str(len(runs)), accuracy, *sizes))
    if not rows:
        return None
    headings = ("run", "seeds", words("test_accuracy"), words("macs"), words("model_bytes"))
    return TextTable(headings, tuple(rows), "on the test split, read for the final runs alone", frozenset({1, 2, 3, 4}))
