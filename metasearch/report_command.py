"""`metasearch report`: one page, and figures for papers, of one or several studies. Loads no ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.errors import InputError
from metasearch.flags import StorageUrl, StudyNames

if TYPE_CHECKING:
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
    storage: StorageUrl = None,
) -> None:
    """Write a page that opens offline: front, winner, progress, what mattered, what failed, how to reproduce it.

    Example: metasearch report STUDY --html report --figures figures

    While it runs: metasearch report STUDY --html report --follow
    """
    if html is None and figures is None:
        raise InputError("report", "needs --html DIR or --figures DIR")
    if follow and html is None:
        raise InputError("--follow", "needs --html DIR, the page that is renewed")
    from rich.console import Console

    from metasearch.report.database import open_database
    from metasearch.report.page.report import make_report
    from metasearch.search.names import storage_url

    messages = Console(stderr=True, highlight=False)

    def tell(line: str) -> None:
        messages.print(line, markup=False, soft_wrap=True)

    database = open_database(storage_url(storage))
    found: Report | None
    if html is not None and follow:
        from metasearch.report.page.follow import follow_page
        from metasearch.report.page.render import PAGE

        typer.echo(str(html / PAGE))  # first: it is opened while the search runs
        found = follow_page(database, studies, html, every_s=every, tell=tell)
    else:
        found = make_report(database, studies, tell=tell)
        if html is not None:
            from metasearch.report.page.render import write_page

            typer.echo(str(write_page(found, html)))
    if figures is not None and found is not None:
        from metasearch.report.page.paper import write_figures

        for path in write_figures(found.figures, figures):
            typer.echo(str(path))
