"""A report: one or several studies, each with its parts, and what they have together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.report.database import Database
from metasearch.report.importance import importances
from metasearch.report.page.facts import MOST_DRAWN, Facts, drawn_rows, study_facts
from metasearch.report.page.figure import IN_TURN, AnyFigure, Figure, Series, TextTable, metric_axis, words
from metasearch.report.page.front import front_figures
from metasearch.report.page.origin import (
    belief_figure,
    front_table,
    launch_command,
    reproduction_table,
    searched_table,
    space_table,
    transfer_tables,
)
from metasearch.report.page.parameters import (
    MOST_FOR_IMPORTANCE,
    configuration_table,
    importance_figure,
    parallel_figure,
    searched_parameters,
)
from metasearch.report.page.predictions import Predictions, predictions
from metasearch.report.page.progress import progress_figures
from metasearch.report.page.slices import Slice, slices
from metasearch.report.page.trials import failures_figure, failures_table, timeline_figure
from metasearch.report.page.winner import Winner, winner
from metasearch.search.names import CONTROLS

MOST_FOR_TRANSFER = 64
"""Trials beyond which the models of what was transferred take more than the seconds that a page may take."""

LEAST_FOR_IMPORTANCE = 4

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Everything that a report says of one study. seen: the winner's predictions, or why there are none.

    transfer_note: what stands in place of what was transferred where that is not shown.
    """

    facts: Facts
    searched: TextTable
    space: TextTable | None
    front: tuple[Figure, ...]
    front_table: TextTable
    winner: Winner | None
    seen: Predictions | str
    progress: tuple[Figure, ...]
    importance: Figure | None
    parallel: AnyFigure | None
    slices: tuple[Slice, ...]
    timeline: Figure | None
    failures: Figure | None
    failures_table: TextTable
    belief: Figure | None
    transfer: tuple[TextTable, ...]
    transfer_note: str
    reproduction: TextTable | None
    command: str
    space_text: str
    configurations: dict[str, Any]

    @property
    def figures(self) -> list[AnyFigure]:
        """All figures, in the order of the page."""
        card = [self.winner.curve] if self.winner else []
        confusion = [self.seen.confusion] if isinstance(self.seen, Predictions) else []
        sliced = [figure for one in self.slices for figure in (one.curves, *one.figures)]
        found: list[AnyFigure | None] = [*self.front, *card, *confusion, *self.progress, self.importance, self.parallel]
        found += [*sliced, self.timeline, self.failures, self.belief]
        return [figure for figure in found if figure is not None]


@dataclass(frozen=True)
class Report:
    """Studies and what they have together: fronts and progress of those with the same task and objectives."""

    parts: tuple[Part, ...]
    together: tuple[Figure, ...] = field(default=())

    @property
    def title(self) -> str:
        """What the page is called."""
        return ", ".join(part.facts.name for part in self.parts)

    @property
    def figures(self) -> list[AnyFigure]:
        """All figures, in the order of the page."""
        return [*self.together, *(figure for part in self.parts for figure in part.figures)]


def make_report(database: Database, names: Sequence[str], *, tell: Tell = lambda line: None) -> Report:
    """Return the report of studies, in their order. tell: hears what is left out, and why.

    Raises NotFoundError for a study that is not there or has no trial, InputError for one that is named twice, a prior
    or the controls of a study.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError("STUDY", "must be named once", name)
        if name.endswith(CONTROLS):
            raise InputError("STUDY", "is shown with the study that it belongs to", name)
    most = MOST_DRAWN // len(names)
    studies = [study_facts(database, name, index=index, most=most) for index, name in enumerate(names)]
    for facts in studies:
        if not len(facts.table):
            raise NotFoundError(f"study {facts.name}: no trial yet")
    groups = same_searches(studies)
    together: list[Figure] = []
    for group in groups:
        if len(group) > 1:
            together += together_figures(group)
    alone = {group[0].index for group in groups if len(group) == 1}
    parts = []
    for facts in studies:
        group = next(group for group in groups if facts in group)
        parts.append(_part(database, facts, group, alone=facts.index in alone, tell=tell))
    return Report(tuple(parts), tuple(together))


def same_searches(studies: Sequence[Facts]) -> list[list[Facts]]:
    """Return the studies in groups with the same task (its data) and objectives, in the order of their first."""
    groups: dict[Any, list[Facts]] = {}
    for facts in studies:
        task = facts.head.description.get("fingerprint", facts.index)
        groups.setdefault((task, tuple(facts.head.directions.items())), []).append(facts)
    return list(groups.values())


def labels_of(group: Sequence[Facts]) -> list[str]:
    """Return how the studies of a group are called side by side: warm and cold where there are both."""
    warm = [bool(facts.head.description.get("warm_start")) for facts in group]
    both = len(set(warm)) > 1
    kinds = [(" (warm)" if started else " (cold)") if both else "" for started in warm]
    return [facts.name + kind for facts, kind in zip(group, kinds, strict=True)]


def together_figures(group: Sequence[Facts]) -> list[Figure]:
    """Return the fronts of studies with the same task and objectives in one figure, and their progress."""
    first, *others = group[0].objectives
    labels = labels_of(group)
    figures = []
    for other in others[:1]:
        series = []
        for place, (facts, label) in enumerate(zip(group, labels, strict=True)):
            rows = sorted(facts.front, key=lambda row: facts.table.cells[other][row])
            if rows:
                x, y = facts.column(other, rows), facts.column(first, rows)
                style = IN_TURN[place % len(IN_TURN)]
                series.append(Series(label, "points", style, x, y, facts.numbers(rows), facts.index))
        figures.append(
            Figure(
                id=f"fronts-{group[0].index}",
                title="The fronts side by side",
                alt=f"Fronts in {words(first)} against {words(other)} of {', '.join(labels)}",
                x=metric_axis(other, [value for one in series for value in one.x]),
                y=metric_axis(first, [value for one in series for value in one.y]),
                series=tuple(series),
                wide=True,
            )
        )
    return figures + progress_figures(group, labels)


def _part(database: Database, facts: Facts, group: Sequence[Facts], *, alone: bool, tell: Tell) -> Part:
    searched = searched_parameters(facts)
    card = winner(database, facts)
    seen: Predictions | str = "nothing is feasible yet"
    if card is not None:
        seen = predictions(facts, card.number, artefacts=card.artefacts)
        if isinstance(seen, str):
            tell(f"study {facts.name}: what trial {card.number} gets wrong is not shown: {seen}")
    belief, tables, note = _transfer(database, facts, group, tell=tell)
    return Part(
        facts=facts,
        searched=searched_table(facts),
        space=space_table(facts),
        front=tuple(front_figures(facts)) if facts.complete() else (),
        front_table=front_table(facts),
        winner=card,
        seen=seen,
        progress=tuple(progress_figures([facts], [facts.name])) if alone else (),
        importance=importance_figure(facts, _importances(database, facts)),
        parallel=parallel_figure(facts, searched),
        slices=tuple(slices(facts, searched)),
        timeline=timeline_figure(facts),
        failures=failures_figure(facts),
        failures_table=failures_table(facts),
        belief=belief,
        transfer=tuple(tables),
        transfer_note=note,
        reproduction=reproduction_table(facts),
        command=launch_command(facts) if facts.head.description else "",
        space_text=facts.head.description.get("space", ""),
        configurations=configuration_table(facts),
    )


def _importances(database: Database, facts: Facts) -> dict[str, dict[str, float]]:
    """Return the importances by objective, over a fair sample; nothing where trials are too few or all alike."""
    found = {}
    complete = facts.complete()
    if len(complete) >= LEAST_FOR_IMPORTANCE:
        rows = drawn_rows(len(complete), (), most=MOST_FOR_IMPORTANCE)
        ids = None if len(rows) == len(complete) else [facts.table.ids[complete[row]] for row in rows]
        for objective in facts.objectives:
            shares = importances(database, facts.name, objective=objective, ids=ids)
            if shares and any(share == share for share in shares.values()):
                found[objective] = {name: share for name, share in shares.items() if share == share}
    return found


def _transfer(
    database: Database, facts: Facts, group: Sequence[Facts], *, tell: Tell
) -> tuple[Figure | None, list[TextTable], str]:
    """Return the belief in the prior studies, tables of what they gave, and what to say in their place."""
    priors = facts.head.description.get("warm_start", [])
    if not priors:
        return None, [], "The search started without prior studies."
    cold = next(
        (other.name for other in group if other.complete() and not other.head.description.get("warm_start")), None
    )
    advice = f"metasearch transfer {facts.name}{f' --against {cold}' if cold else ''}"
    if not facts.complete() or len(facts.table) > MOST_FOR_TRANSFER:
        return None, [], f"Started from {', '.join(priors)}. What they gave: {advice}"
    from metasearch.report.transferred import transferred
    from metasearch.search.store import open_storage

    try:
        found = transferred(open_storage(database.url), facts.name, against=cold, simulate=False)
    except MetasearchError as error:
        tell(f"study {facts.name}: what was transferred is not shown: {error}")
        return None, [], f"Started from {', '.join(priors)}. What they gave: {advice}"
    return belief_figure(facts, found), transfer_tables(found), "" if found.priors else "Its prior studies are no more."
