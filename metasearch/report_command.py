"""`metasearch report`: one page, figures for papers and event files of one or several studies. Loads no ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.errors import InputError
from metasearch.flags import StorageUrl, StudyNames
from metasearch.messages import tell

if TYPE_CHECKING:
    from metasearch.report.database import Database
    from metasearch.report.page.report import Report


def report(
    studies: StudyNames,
    html: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the page there, as index.html.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write its figures there, as PNG and SVG.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Write the page anew until the search ends; an open page renews itself.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Between two pages of --follow.")] = 5.0,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Add event files of trials that are not there yet.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Add trials that are not there yet as runs (extra `mlflow`).")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write a page that opens offline: front, winner, progress, what mattered, what failed, how to reproduce it.

    Example: metasearch report STUDY --html report --figures figures

    While it runs: metasearch report STUDY --html report --follow

    For other programs: metasearch report STUDY --tensorboard events --mlflow sqlite:///mlflow.db
    """
    if html is None and figures is None and tensorboard is None and mlflow is None:
        raise InputError("report", "needs --html DIR, --figures DIR, --tensorboard DIR or --mlflow URI")
    if follow and html is None:
        raise InputError("--follow", "needs --html DIR, the page that is renewed")
    from metasearch.report.database import open_database
    from metasearch.search.names import storage_url

    database = open_database(storage_url(storage))
    if html is not None or figures is not None:
        found = _with_page(database, studies, html, every if follow else None, tell)
        if figures is not None and found is not None:
            from metasearch.report.page.paper import write_figures

            for path in write_figures(found.figures, figures):
                typer.echo(str(path))
    if tensorboard is not None:
        from metasearch.report.event_files import folder_name, write_event_files

        for name, new in write_event_files(database, studies, tensorboard).items():
            typer.echo(str(tensorboard / folder_name(name)))
            tell(f"{name}: {new} new trials; `tensorboard --logdir {tensorboard}` shows them")
    if mlflow is not None:
        from metasearch.report.mlflow_runs import write_runs

        for name, new in write_runs(database, studies, mlflow).items():
            tell(f"{name}: {new} new runs in the experiment of this name")


def _with_page(
    database: Database, studies: list[str], html: Path | None, every_s: float | None, tell: Callable[[str], None]
) -> Report | None:
    """Write the page where one is asked for, again while the search runs if `every_s` is given; return its report."""
    from metasearch.report.page.render import PAGE, write_page
    from metasearch.report.page.report import make_report

    if html is not None and every_s is not None:
        from metasearch.report.page.follow import follow_page

        typer.echo(str(html / PAGE))  # first: it is opened while the search runs
        return follow_page(database, studies, html, every_s=every_s, tell=tell)
    found = make_report(database, studies, tell=tell)
    if html is not None:
        typer.echo(str(write_page(found, html)))
    return found
