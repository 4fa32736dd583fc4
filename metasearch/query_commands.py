"""`best`, `trials`, `studies`, `compare` and `importance`: questions to a store. They load neither torch nor ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.completion import complete_study
from metasearch.flags import AsJson, StorageUrl, StudyName
from metasearch.messages import tell

if TYPE_CHECKING:
    import pandas as pd

    from metasearch.report.conditions import Condition
    from metasearch.report.database import Database
    from metasearch.report.queries import Best

MOST_ROWS = 1000
"""Of a table for people: laying out 20,000 takes longer than reading them."""

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXPR", help='A condition such as "model_bytes <= 50kB and not augment"; repeat to keep several.'
    ),
]
Sort = Annotated[str | None, typer.Option(metavar="NAME", help="Better values first; -NAME turns the order round.")]
Top = Annotated[int | None, typer.Option(min=1, help="Show at most so many.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Parquet = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Parquet file.")]


def best(
    study: StudyName,
    where: Where = None,
    sort: Sort = None,
    top: Top = None,
    pareto: Annotated[
        bool, typer.Option("--pareto/--all", help="Only trials that no other beats, or every feasible one.")
    ] = True,
    as_json: AsJson = False,
    csv: AsCsv = False,
    parquet: Parquet = None,
    storage: StorageUrl = None,
) -> None:
    """Show which students to ship: the front of the trials that keep the study's constraints and yours.

    Exits with 4 where none does, and says which come nearest and what they miss.

    Example: metasearch best STUDY --where "model_bytes <= 50kB and latency_ms < 2ms" --sort val_accuracy --top 3
    """
    from metasearch.report.queries import best as find_best

    database = _open(storage)
    found = find_best(database, study, where=_condition(where), sort=sort, top=top, pareto=pareto)
    if as_json:
        typer.echo(json.dumps(found.record()))
    elif not _written(found.table.frame, csv, parquet):
        print_best(database, found)


def trials(
    study: StudyName,
    where: Where = None,
    sort: Sort = None,
    top: Top = None,
    as_json: AsJson = False,
    csv: AsCsv = False,
    parquet: Parquet = None,
    storage: StorageUrl = None,
) -> None:
    """List every trial of a study, with its results, parameters, stages, attributes, state and times.

    Example: metasearch trials STUDY --where "state = 'FAIL' or seconds > 5m" --sort -seconds --top 10
    """
    from metasearch.report.queries import trials_table

    table = trials_table(_open(storage), study, where=_condition(where), sort=sort, top=top)
    if as_json:
        typer.echo(json.dumps({"study": study, "trials": table.whole_records()}))
    elif not _written(table.frame, csv, parquet):
        from metasearch.report.output import print_frame
        from metasearch.report.tables import trials_columns

        print_frame(trials_columns(table.take(range(min(len(table), MOST_ROWS))).frame()))
        if not len(table):
            tell(f"no trial of {study} is so")
        if len(table) > MOST_ROWS:
            tell(f"and {len(table) - MOST_ROWS} more; --where and --top choose, --csv and --json show all")


def studies(as_json: AsJson = False, csv: AsCsv = False, parquet: Parquet = None, storage: StorageUrl = None) -> None:
    """List the studies of the storage, with how many of their trials are finished, complete and feasible.

    Example: metasearch studies --json
    """
    from metasearch.report.studies import studies_frame, studies_records

    database = _open(storage)
    if as_json:
        typer.echo(json.dumps(studies_records(database)))
    else:
        _show(lambda: studies_frame(database), csv, parquet)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A study.", autocompletion=complete_study)],
    b: Annotated[
        str, typer.Argument(metavar="B", help="Another, with an objective in common.", autocompletion=complete_study)
    ],
    as_json: AsJson = False,
    csv: AsCsv = False,
    parquet: Parquet = None,
    storage: StorageUrl = None,
) -> None:
    """Set two studies side by side: best values, fronts, hypervolume below one reference, and what differs.

    Example: metasearch compare usps-warm usps-cold
    """
    from metasearch.report.comparison import compare as compare_studies

    found = compare_studies(_open(storage), a, b)
    if as_json:
        typer.echo(json.dumps(found.record()))
    else:
        _show(lambda: found.frame().rename(columns={} if csv or parquet else {"a": a, "b": b}), csv, parquet)


def importance(
    study: StudyName,
    objective: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Of the study. Default: its first objective.")
    ] = None,
    evaluator: Annotated[
        str, typer.Option(help="ped-anova: what the best tenth share; fanova: shares of the variance.")
    ] = "ped-anova",
    as_json: AsJson = False,
    csv: AsCsv = False,
    parquet: Parquet = None,
    storage: StorageUrl = None,
) -> None:
    """Say which parameters mattered for an objective, and so which to go on searching.

    Example: metasearch importance STUDY --objective val_accuracy
    """
    from metasearch.report.importance import importance_frame, importances

    database = _open(storage)
    if as_json:
        from metasearch.report.heads import study_head

        asked = objective or next(iter(study_head(database, study).directions))
        found = importances(database, study, objective=asked, evaluator=evaluator)
        typer.echo(json.dumps({"study": study, "objective": asked, "evaluator": evaluator, "importance": found}))
    else:
        _show(lambda: importance_frame(database, study, objective=objective, evaluator=evaluator), csv, parquet)


def print_best(database: Database, found: Best) -> None:
    """Print what was found on stdout, with the teacher and the controls of the study."""
    from metasearch.report.finals import controls_frame
    from metasearch.report.heads import study_head
    from metasearch.report.output import print_front
    from metasearch.search.names import TEACHER

    head = study_head(database, found.study)
    counts = f", {found.feasible} feasible of {found.complete} complete trials"
    controls = controls_frame(database, found.study)
    print_front(found.study, found.table.frame(), controls, head.attributes.get(TEACHER), counts=counts)
    if predicted := head.description.get("latency"):
        typer.echo(
            f"ms: predicted for {predicted['device']} from what it measured of {predicted['fit']['networks']} networks "
            f"of {predicted['study']}; ms here: measured on the search's own machine, in thread CPU time"
        )


def _open(flag: str | None) -> Database:
    from metasearch.report.database import open_database
    from metasearch.search.names import storage_url

    return open_database(storage_url(flag))


def _condition(texts: list[str] | None) -> Condition | None:
    from metasearch.report.where import parse_all

    return parse_all(texts or [])


def _show(frame: Callable[[], pd.DataFrame], csv: bool, parquet: Path | None) -> None:
    if not _written(frame, csv, parquet):
        from metasearch.report.output import print_frame

        print_frame(frame())


def _written(frame: Callable[[], pd.DataFrame], csv: bool, parquet: Path | None) -> bool:
    """Write a frame as CSV on stdout or into a Parquet file; return whether either was asked for."""
    if csv:
        typer.echo(frame().to_csv(index=False), nl=False)
    if parquet is not None:
        from metasearch.report.output import write_parquet

        write_parquet(frame(), parquet)
    return csv or parquet is not None
