"""`metasearch dashboard`: optuna-dashboard over a copy of the storage, for this machine alone. Loads no ray.

Optuna's dashboard can rename and delete studies; here it has a copy, and may only read that.
"""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from metasearch.completion import complete_study
from metasearch.errors import InputError
from metasearch.flags import StorageUrl


def dashboard(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="The one to show first. Default: all.", autocompletion=complete_study),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0: any that is free.")] = 8080,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Show the studies in optuna-dashboard, as they are now, until Ctrl-C; it sees a copy and changes nothing.

    Needs the extra `dashboard`.

    Example: metasearch dashboard STUDY --open
    """
    try:
        from optuna_dashboard import wsgi
    except ModuleNotFoundError as error:
        raise InputError("dashboard", f'needs {error.name}: pip install "metasearch[dashboard]"') from error
    from metasearch.report.copied import copy_storage
    from metasearch.report.database import open_database
    from metasearch.report.heads import study_head
    from metasearch.report.loopback import listening
    from metasearch.search.names import storage_url
    from metasearch.search.store import open_storage

    database = open_database(storage_url(storage))
    if study is not None:
        study_head(database, study)
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copy goes, too
    try:
        with tempfile.TemporaryDirectory(prefix="metasearch-") as folder, listening(port) as server:
            copy = copy_storage(database, Path(folder) / "studies.db")
            page = "dashboard" if study is None else f"dashboard/studies/{study_head(open_database(copy), study).id}"
            address = f"{server.show(wsgi(open_storage(copy)))}/{page}"
            typer.echo(address)
            if browser:
                import webbrowser

                webbrowser.open(address)
            server.serve_forever()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, terminated)
