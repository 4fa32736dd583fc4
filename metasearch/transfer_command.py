"""`metasearch transfer`: what a study took from its prior studies, and what that saved. Loads neither torch nor ray."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from metasearch.completion import complete_study
from metasearch.flags import AsJson, StorageUrl, StudyName
from metasearch.messages import tell


def transfer(
    study: StudyName,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Of the same task, searched without priors. Default: simulated searches.",
            autocompletion=complete_study,
        ),
    ] = None,
    as_json: AsJson = False,
    storage: StorageUrl = None,
) -> None:
    """Show what a study took from its prior studies: which were right, which regions are shared, and trials saved.

    Example: metasearch transfer STUDY --against COLD_STUDY
    """
    from metasearch.report.transferred import print_transferred, transferred
    from metasearch.search.store import open_storage, storage_url

    found = transferred(
        open_storage(storage_url(storage)),
        study,
        against=against,
        tell=tell,
    )
    if as_json:
        typer.echo(json.dumps(found.record()))
    else:
        print_transferred(found)
