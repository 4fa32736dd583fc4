"""What became of the trials: when and where each ran, and why some failed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from metasearch.report.page.facts import Facts
from metasearch.report.page.figure import Axis, Figure, Series, TextTable

STATES = {"COMPLETE": ("complete", "one"), "PRUNED": ("stopped early", "pruned"), "FAIL": ("failed", "failed")}
MOST_WORKERS = 32
"""Rows of the timeline; with more workers than these a row is a node."""
MOST_MESSAGES = 12


def timeline_figure(facts: Facts) -> Figure | None:
    """Return when each drawn trial ran on which worker, in minutes since the first began; None where unknown."""
    spans = []
    states, numbers = facts.table.cells["state"], facts.table.cells["number"]
    for row in facts.drawn:
        run = facts.runs.get(numbers[row], {})
        if states[row] not in STATES:
            continue
        if {"started", "ended"} <= run.keys():
            worker = f"{run.get('node', '')} {run.get('pid', '')}".strip()
            spans.append((run["started"], run["ended"], worker, str(run.get("node", "")), states[row], numbers[row]))
        elif not facts.head.description:
            moments = facts.table.cells["started"][row], facts.table.cells["completed"][row]
            if None not in moments:
                begin, end = (_seconds(moment) for moment in moments)
                spans.append((begin, end, "", "", states[row], numbers[row]))
    if not spans:
        return None
    origin = min(span[0] for span in spans)
    by_worker = len({span[2] for span in spans}) <= MOST_WORKERS
    workers = sorted({span[2] if by_worker else span[3] for span in spans})
    series = []
    for state, (label, style) in STATES.items():
        own = [span for span in spans if span[4] == state]
        if own:
            series.append(
                Series(
                    label,
                    "spans",
                    style,
                    tuple((span[0] - origin) / 60 for span in own),
                    tuple(span[2] if by_worker else span[3] for span in own),
                    tuple(span[5] for span in own),
                    facts.index,
                    end=tuple((span[1] - origin) / 60 for span in own),
                )
            )
    counts = ", ".join(f"{len(one.x)} {one.name}" for one in series)
    drawn = f"{len(spans):,} of {len(facts.table):,} trials are drawn. " if len(spans) < len(facts.table) else ""
    return Figure(
        id=f"timeline-{facts.index}",
        title="Trials on their workers",
        alt=f"When each trial ran on {len(workers)} workers: {counts}",
        x=Axis("minutes since the first trial began"),
        y=Axis("worker" if by_worker else "node", "category", categories=tuple(workers)),
        series=tuple(series),
        caption=f"{drawn}A row is a {'worker, by node and process' if by_worker else 'node'}; gaps are idle time.",
        wide=True,
    )


def failures_figure(facts: Facts) -> Figure | None:
    """Return how many trials failed for which reason, None where none did."""
    counts = failure_counts(facts)
    if not counts:
        return None
    names = tuple(counts)
    return Figure(
        id=f"failures-{facts.index}",
        title="Failures by reason",
        alt="Failed trials: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()),
        x=Axis("trials", unit="count"),
        y=Axis("", "category", categories=names),
        series=(Series("failed trials", "bars", "failed", tuple(counts.values()), names),),
    )


def failure_counts(facts: Facts) -> dict[str, int]:
    """Return how many trials failed by reason, the commonest first."""
    reasons = [
        str(facts.failures.get(number, {}).get("reason", "unknown"))
        for number, state in zip(facts.table.cells["number"], facts.table.cells["state"], strict=True)
        if state == "FAIL"
    ]
    return dict(Counter(reasons).most_common())


def failures_table(facts: Facts) -> TextTable:
    """Return what the first failed trials said."""
    rows = [
        (str(number), str(found.get("reason", "unknown")), str(found.get("message", "")))
        for number, found in sorted(facts.failures.items())[:MOST_MESSAGES]
    ]
    caption = f"the first {len(rows)} of {len(facts.failures)}" if len(facts.failures) > len(rows) else ""
    return TextTable(("trial", "reason", "message"), tuple(rows), caption, frozenset({0}))


def _seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()
