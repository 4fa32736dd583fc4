"""`metasearch priors`: what a search can start from, listed, exported, imported and made.

All but the making load neither torch nor ray.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.completion import complete_space, complete_study
from metasearch.flags import Address, AsJson, DataRoot, ImageSize, MaxTrain, Seed, StorageUrl, Workers, with_flags
from metasearch.messages import tell

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from metasearch.tasks import TaskSource

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
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Default: all of the storage.", autocompletion=complete_study),
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write priors into one portable file."""
    from metasearch.errors import NotFoundError
    from metasearch.search.priors import find_priors, portable, priors_in
    from metasearch.transfer.priors_file import write_priors

    store = _store(storage)
    found = [known.prior for known in (find_priors(store, studies) if studies else priors_in(store))]
    if not found:
        raise NotFoundError("priors: the storage has no finished study")
    write_priors(to, [portable(prior) for prior in found])
    tell(f"exported {len(found)} priors, {sum(len(prior.trials) for prior in found)} trials, to {to}")


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
        tell(f"{'imported' if new else 'was there already:'} {name}, {len(prior.trials)} trials")


@dataclass(frozen=True)
class NamedTasks:
    """The tasks of priors that are made, each under a name."""

    tasks: Annotated[list[str], typer.Argument(metavar="NAME[=TASK]...", help="Tasks, each under a name.")]
    max_train: MaxTrain = None
    image_size: ImageSize = None
    data_root: DataRoot = None

    def sources(self) -> dict[str, TaskSource]:
        """Return what each is made from, by its name."""
        from metasearch.tasks import TaskSource

        common = TaskSource("", data_root=self.data_root, max_train=self.max_train, image_size=self.image_size)
        named = (text.partition("=") for text in self.tasks)
        return {name: replace(common, text=task or name) for name, _, task in named}


@priors_app.command("make")
@with_flags
def make_priors(
    *,
    to: Annotated[Path, typer.Option(metavar="FILE", help="The Parquet file to write, again after each task.")],
    space: Annotated[
        str, typer.Option(help="A preset or a YAML file.", autocompletion=complete_space)
    ] = "distill_compress",
    size: Annotated[int, typer.Option(min=1, help="Configurations, the same ones on every task.")] = 160,
    seed: Seed = 0,
    named: NamedTasks,
    workers: Workers = None,
    address: Address = None,
    storage: StorageUrl = None,
) -> None:
    """Evaluate one pool of configurations on every task, and write what it gave as priors.

    Each task is a study of its NAME in the storage: run the command again to go on where it was interrupted.

    Example: metasearch priors make digits usps mine=folder:DIR --max-train 1000 --to FILE
    """
    from metasearch.search.launch import Watcher
    from metasearch.search.pool import evaluate_pool
    from metasearch.search.priors import find_priors, portable
    from metasearch.search.runner import Resources
    from metasearch.search.space import load_space
    from metasearch.transfer.priors_file import write_priors

    class Told(Watcher):
        def stage(self, message: str) -> None:
            tell(message)

    sources = named.sources()
    store = _store(storage, create=True)
    done: list[str] = []
    resources = Resources(workers=workers, address=address)
    for name in evaluate_pool(
        store, sources, load_space(space), size=size, resources=resources, seed=seed, watcher=Told()
    ):
        done.append(name)
        write_priors(to, [portable(known.prior) for known in find_priors(store, done)])
        tell(f"{to}: {len(done)} of {len(sources)} tasks")
    if len(done) < len(sources):
        tell("interrupted; the same command goes on")
        raise typer.Exit(130)


def _store(flag: str | None, *, create: bool = False) -> RDBStorage:
    from metasearch.search.store import open_storage, storage_url

    return open_storage(storage_url(flag), create=create)
