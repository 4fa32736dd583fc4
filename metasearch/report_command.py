"""`metasearch report`: one page, and figures for papers, of one or several studies. Loads no ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metasearch.errors import InputError
from metasearch.flags import StorageUrl, StudyNames


def report(
    studies: StudyNames,
    html: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the page there, as index.html.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write its figures there, as PNG and SVG.")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write a page that opens offline: front, winner, progress, what mattered, what failed, how to reproduce it.

    Example: metasearch report STUDY --html report --figures figures
    """
    if html is None and figures is None:
        raise InputError("report", "needs --html DIR or --figures DIR")
    from rich.console import Console

    from metasearch.report.database import open_database
    from metasearch.report.page.report import make_report
    from metasearch.search.names import storage_url

    messages = Console(stderr=True, highlight=False)

    def tell(line: str) -> None:
        messages.print(line, markup=False, soft_wrap=True)

    found = make_report(open_database(storage_url(storage)), studies, tell=tell)
    if html is not None:
        from metasearch.report.page.render import write_page

        typer.echo(str(write_page(found, html)))
    if figures is not None:
        from metasearch.report.page.paper import write_figures

        for path in write_figures(found.figures, figures):
            typer.echo(str(path))
