"""`metasearch priors`: what a search can start from, listed, exported and imported. Loads neither torch nor ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.flags import AsJson, StorageUrl

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

priors_app = typer.Typer(invoke_without_command=True, help="Priors: what a search can start from.")


@priors_app.callback()
def priors(context: typer.Context, as_json: AsJson = False, storage: StorageUrl = None) -> None:
    """List what a search can start from: finished studies, imported priors, and those of the package.

    Example: metasearch priors export STUDY --to FILE, and elsewhere: metasearch priors import FILE
    """
    if context.invoked_subcommand is not None:
        return
    import pandas as pd

    from metasearch.report.output import print_frame
    from metasearch.search.priors import known_priors

    rows = [
        {
            "name": known.prior.name,
            "task": known.prior.task,
            "trials": len(known.prior.trials),
            "objectives": list(known.prior.directions),
            "version": known.prior.versions.get("metasearch", ""),
            "source": known.source,
        }
        for known in known_priors(_store(storage, create=True)).values()  # those of the package need no storage
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        print_frame(pd.DataFrame(rows, columns=["name", "task", "trials", "objectives", "version", "source"]))


@priors_app.command("export")
def export_priors(
    to: Annotated[Path, typer.Option(metavar="FILE", help="The Parquet file to write.")],
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]...", help="Default: all of the storage.")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write priors into one portable file."""
    from metasearch.errors import NotFoundError
    from metasearch.search.priors import find_priors, priors_in
    from metasearch.transfer.priors_file import write_priors

    store = _store(storage)
    found = [known.prior for known in (find_priors(store, studies) if studies else priors_in(store))]
    if not found:
        raise NotFoundError("priors: the storage has no finished study")
    write_priors(to, found)
    _tell(f"exported {len(found)} priors, {sum(len(prior.trials) for prior in found)} trials, to {to}")


@priors_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `priors export` wrote.")],
    storage: StorageUrl = None,
) -> None:
    """Read priors from a file into the storage, where `--warm-start auto` finds them."""
    from metasearch.search.imported import import_priors
    from metasearch.transfer.priors_file import read_priors

    found = read_priors(file)
    done = import_priors(_store(storage, create=True), found, place=str(file))
    for prior, (name, new) in zip(found, done, strict=True):
        _tell(f"{'imported' if new else 'was there already:'} {name}, {len(prior.trials)} trials")


def _store(flag: str | None, *, create: bool = False) -> RDBStorage:
    from metasearch.search.store import open_storage, storage_url

    return open_storage(storage_url(flag), create=create)


def _tell(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)
