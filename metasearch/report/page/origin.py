"""What was searched and on what, what was taken from prior studies, and how to search it again."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import IN_TURN, Axis, Figure, Series, TextTable, words
from metasearch.report.tables import HEADINGS, metric_text, teacher_text
from metasearch.search.space import parse_space

if TYPE_CHECKING:
    from metasearch.report.transferred import Transferred

STATE_WORDS = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def searched_table(facts: Facts) -> TextTable:
    """Return what was searched, on what and with what, a line each."""
    d = facts.head.description
    states = Counter(facts.table.cells["state"])
    counts = ", ".join(f"{states[state]:,} {text}" for state, text in STATE_WORDS.items() if states[state])
    rows = [
        ("objectives", "; ".join(f"{words(name)} ({direction})" for name, direction in facts.head.directions.items())),
        ("constraints", "; ".join(facts.head.constraints) or "none"),
        ("trials", counts or "none"),
        ("feasible", f"{len(facts.feasible()):,}, {len(facts.front):,} of them on the front"),
    ]
    if d:
        rows.insert(0, ("task", f"{d['task']['text']}{data_text(d.get('features', {}))}"))
        if facts.teacher:
            rows.insert(
                1, ("teacher", teacher_text(facts.teacher["spec"], facts.teacher["metrics"]).removeprefix("teacher "))
            )
        space = parse_space(d["space"], place="the study's space")
        rows.append(("space", f"{space.name}, {len(space.distributions())} searched parameters"))
        rows.append(("sampler", d["sampler"]))
        rows.append(("started from", ", ".join(d.get("warm_start", [])) or "no prior study"))
        rows.append(("device", d["device"]))
        rows.append(("begun", d.get("created", "")))
    hours = elapsed_hours(facts)
    if hours is not None:
        workers = len({(run.get("node"), run.get("pid")) for run in facts.runs.values()})
        on = f" on {workers} worker{'s' if workers != 1 else ''}" if workers else ""
        rows.append(("wall time", f"{duration_text(hours)} from the first trial's begin to the last one's end{on}"))
    return TextTable(("", ""), tuple(row for row in rows if row[1]))


def data_text(features: dict[str, float]) -> str:
    """Return how much data of what shape a task has, from its features; nothing where they are not known."""
    if not {"log_examples", "log_classes", "log_channels", "log_height", "log_width", "is_image"} <= features.keys():
        return ""

    def count(name: str) -> int:
        return round(math.exp(features[name]))

    shape = (
        f" of {count('log_height')} x {count('log_width')} x {count('log_channels')}" if features["is_image"] else ""
    )
    kind = "images" if features["is_image"] else "examples"
    examples = round(math.expm1(features["log_examples"]))  # log(1 + count), see features.py
    return f": {examples:,} training {kind}{shape} in {count('log_classes')} classes"


def elapsed_hours(facts: Facts) -> float | None:
    """Return the hours between the first trial's begin and the last one's end, None where no times are known."""
    starts = [moment for moment in facts.table.cells["started"] if moment is not None]
    ends = [moment for moment in facts.table.cells["completed"] if moment is not None]
    return (max(ends) - min(starts)).total_seconds() / 3600 if starts and ends else None


def duration_text(hours: float) -> str:
    """Return a duration as people say it: seconds below two minutes, minutes below two hours, else hours."""
    seconds = 3600 * hours
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def space_table(facts: Facts) -> TextTable | None:
    """Return what was searched of each parameter, None where another program's space is not known."""
    text = facts.head.description.get("space")
    if not text:
        return None
    distributions = parse_space(text, place="the study's space").distributions()
    rows = tuple((path, range_text(distribution)) for path, distribution in distributions.items())
    return TextTable(("parameter", "searched"), rows)


def range_text(distribution: BaseDistribution) -> str:
    """Return a distribution in a few words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    d: Any = distribution
    step = f", steps of {d.step:g}" if d.step not in (None, 1) else ""
    return f"{d.low:g} to {d.high:g}{step}{', logarithmic' if d.log else ''}"


def front_table(facts: Facts, *, most: int = 20) -> TextTable:
    """Return the front's trials, best in the first objective first."""
    wanted = ("test_accuracy", "parameters", "macs", "model_bytes", "latency_ms")
    rows_shown = facts.front[:most]
    others = [
        name
        for name in wanted
        if name not in facts.objectives and any(v is not None for v in facts.column(name, rows_shown))
    ]
    names = [*facts.objectives, *others]
    columns = [facts.column(name, rows_shown) for name in names]
    rows = [
        (str(number), *(cell_text(name, value) for name, value in zip(names, values, strict=True)))
        for number, *values in zip(facts.numbers(rows_shown), *columns, strict=True)
    ]
    caption = f"the first {most} of {len(facts.front)}" if len(facts.front) > most else ""
    headings = ("trial", *(words(name) for name in names))
    return TextTable(headings, tuple(rows), caption, frozenset(range(len(headings))))


def cell_text(name: str, value: Any) -> str:
    """Return a metric as people read it; a number of another program's with five digits."""
    if name in HEADINGS:
        return metric_text(name, value)
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def belief_figure(facts: Facts, found: Transferred) -> Figure | None:
    """Return the share of belief in the prior studies over the trials; None without any."""
    if not found.weights:
        return None
    names = list(found.weights[0].shares)
    series = tuple(
        Series(
            words(name),
            "line",
            IN_TURN[place % len(IN_TURN)],
            tuple(weights.trials for weights in found.weights),
            tuple(weights.shares[name] for weights in found.weights),
        )
        for place, name in enumerate(names)
    )
    last = ", ".join(f"{words(name)} {found.weights[-1].shares[name]:.0%}" for name in names)
    return Figure(
        id=f"belief-{facts.index}",
        title="Belief in the prior studies",
        alt=f"Share of belief in the prior studies over finished trials; at the end {last}",
        x=Axis("finished trials"),
        y=Axis("share of belief", unit="share"),
        series=series,
    )


def transfer_tables(found: Transferred) -> list[TextTable]:
    """Return which prior studies were right, where the good regions are shared, and the trials saved."""
    from metasearch.report.transferred import region_text, regions_text
    from metasearch.transfer.regions import IDLE

    tables = []
    if found.agreements:
        objectives = list(dict.fromkeys(a.objective for a in found.agreements))
        known = {(a.prior, a.objective): a.correlation for a in found.agreements}
        rows = []
        for prior, task in dict.fromkeys((a.prior, a.task) for a in found.agreements):
            values = [known.get((prior, name)) for name in objectives]
            rows.append((prior, task, *("" if value is None else f"{value:.2f}" for value in values)))
        headings = ("prior study", "task", *(words(name) for name in objectives))
        caption = "how each prior study alone ranks the configurations tried here, against their results (Spearman)"
        tables.append(TextTable(headings, tuple(rows), caption, frozenset(range(2, len(headings)))))
    told = [regions for regions in found.regions if regions.verdict not in {IDLE, ""}]
    if told:
        regions_rows = []
        for regions in told:
            here = [region_text(region) for region in regions.regions if region.study == found.study]
            there = regions_text([region for region in regions.regions if region.study != found.study], regions.verdict)
            regions_rows.append((regions.parameter, "; ".join(here), there, regions.verdict))
        caption = "where the best fifth of the trials lie: the middle half of numbers, the commonest choice"
        tables.append(TextTable(("parameter", "here", "in prior studies", "verdict"), tuple(regions_rows), caption))
    if found.saved:
        saved_rows = tuple(
            (str(s.trials), f"{s.volume:.3f}", f"> {s.limit}" if s.median is None else f"{s.median:g}")
            for s in found.saved
        )
        headings = ("trials here", "hypervolume", f"trials in {found.against}" if found.against else "trials without")
        tables.append(TextTable(headings, saved_rows, "trials for the same hypervolume", frozenset({0, 1, 2})))
    return tables


def reproduction_table(facts: Facts) -> TextTable | None:
    """Return commit, versions and seed; None of another program's study."""
    d = facts.head.description
    if not d:
        return None
    rows = [
        ("commit", d.get("commit", "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in d.get("versions", {}).items())),
        ("seed", str(d["seed"])),
        ("space digest", d["space_digest"]),
        ("data fingerprint", d["fingerprint"]),
    ]
    return TextTable(("", ""), tuple(row for row in rows if row[1]))


def launch_command(facts: Facts) -> str:
    """Return the command that searches the same again, with the study's space in space.yaml."""
    d = facts.head.description
    task = d["task"]
    flags = ["metasearch", "launch", task["text"], "--space", "space.yaml", "--trials", str(d["trials"])]
    for flag in ("data_root", "max_train", "image_size", "augment", "unlabelled"):
        if task.get(flag) is not None:
            flags += [f"--{flag.replace('_', '-')}", str(task[flag])]
    flags += [f"--{flag.replace('_', '-')}" for flag in ("download", "skip_corrupt") if task.get(flag)]
    for objective in d["objectives"]:
        flags += ["--objective", objective]
    for constraint in d["constraints"]:
        flags += ["--constraint", constraint]
    flags += ["--sampler", d["sampler"], "--warm-start", ",".join(d.get("warm_start", [])) or "none"]
    flags += ["--seed", str(d["seed"]), "--device", d["device"]]
    flags += ["--early-stopping"] if d.get("early_stopping") else []
    return shlex.join([*flags, *teacher_flags(d["teacher"])])


def teacher_flags(teacher: Any) -> list[str]:
    """Return the flags of a description's teacher: a SOURCE, or the fields of a TeacherSource."""
    if isinstance(teacher, str):
        return ["--teacher", teacher]
    members = teacher["members"]
    flags = []
    for member in members:
        share = member.get("share", 1.0)
        flags += ["--teacher", member["text"] if share == 1.0 else f"{share}*{member['text']}"]
    if any(member.get("weights") for member in members):
        flags += [part for member in members for part in ("--teacher-weights", member.get("weights") or "-")]
    if teacher.get("normalisation", "task") != "task":
        flags += ["--teacher-normalisation", teacher["normalisation"]]
    if teacher.get("mean", "probabilities") != "probabilities":
        flags += ["--teacher-mean", teacher["mean"]]
    flags += ["--teacher-labels-only"] if teacher.get("labels_only") else []
    return flags + (["--teacher-features", ",".join(teacher["features"])] if teacher.get("features") else [])
