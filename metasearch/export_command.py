"""`metasearch export`: a trial of a study as a bundle, a folder that can be shipped, checked, run and served."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.bundle.schema import TEXT_RULE, is_text
from metasearch.errors import InputError
from metasearch.flags import AsJson, DataRoot, StorageUrl, StudyName, with_flags
from metasearch.messages import tell

if TYPE_CHECKING:
    from metasearch.bundle.choosing import Chosen
    from metasearch.bundle.contents import Bundle
    from metasearch.tasks import Task


@dataclass(frozen=True)
class ExportFlags:
    """What a command is told of the bundle that it writes. Raises InputError for what no bundle can hold."""

    references: Annotated[
        bool,
        typer.Option(
            "--references", help="Add the teacher, the uncompressed student (trained for it), the network before int8."
        ),
    ] = False
    executorch: Annotated[bool, typer.Option("--executorch", help="Add model.pte for phones (extra `executorch`).")] = (
        False
    )
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Run the trial's pipeline again for its files.")] = False
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the data; into the model card.")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False

    def __post_init__(self) -> None:
        if self.licence is not None and not is_text(self.licence):
            raise InputError("--licence", f"must be {TEXT_RULE}", self.licence)


@with_flags
def export(
    study: StudyName,
    to: Annotated[Path, typer.Option(metavar="DIR", help="The new folder of the bundle.")],
    flags: ExportFlags,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Instead of the front's best one.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="EXPR", help="As of `best`: the best trial that keeps it; repeat.")
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    storage: StorageUrl = None,
) -> None:
    """Write a trial as a bundle: ONNX file, torch program, weights, model card, predict.py.

    Without --trial it is the best of the front by the first objective. Nothing is written unless the ONNX file gives
    the logits of the trained network on the validation data, and the accuracy that the trial recorded.

    Example: metasearch export STUDY --where "model_bytes <= 25kB" --to bundle
    """
    if trial is not None and where:
        raise InputError("--where", "cannot stand beside --trial", where[0])
    from metasearch.bundle.choosing import choose_trial
    from metasearch.bundle.writing import check_target, write_bundle
    from metasearch.report.database import open_database
    from metasearch.report.where import parse_all
    from metasearch.search.store import open_storage, storage_url
    from metasearch.tasks import TaskSource, load_task

    check_target(to, force=flags.force)
    url = storage_url(storage)
    database = open_database(url)
    chosen = choose_trial(open_storage(url), database, study, number=trial, where=parse_all(where or []))
    tell(f"{chosen.place}: {chosen.why}")
    source = TaskSource(**chosen.description.task)
    task = load_task(source if data_root is None else replace(source, data_root=data_root))
    with _files_of(chosen, task, rebuild=flags.rebuild) as (made, files):
        bundle = write_bundle(
            made,
            files,
            task,
            to,
            licence=flags.licence,
            force=flags.force,
            references=flags.references,
            portable=flags.executorch,
            tell=tell,
        )
    if as_json:
        typer.echo(json.dumps(_record(bundle, chosen.why)))
    else:
        tell(_parity_line(bundle))
        typer.echo(str(to))


@contextmanager
def _files_of(chosen: Chosen, task: Task, *, rebuild: bool) -> Iterator[tuple[Chosen, dict[str, Path]]]:
    """Give a trial and the files that it left; where it is rebuilt, what its pipeline makes of it now."""
    from metasearch.bundle.choosing import trial_files

    if not rebuild:
        yield chosen, trial_files(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="metasearch-rebuilt-") as folder:
        rebuilt = _rebuilt(chosen, task, Path(folder))
        yield rebuilt, {file.name: file for file in Path(folder).iterdir()}


def _rebuilt(chosen: Chosen, task: Task, made: Path) -> Chosen:
    """Return the trial with the result of its pipeline run again, whose files are in `made`."""
    from metasearch.bundle.again import run_again

    tell("its pipeline is run again")
    result = run_again(chosen.description, task, chosen.result.config, seed=chosen.result.seed, save_to=made)
    before, now = (each.metrics["val_accuracy"] for each in (chosen.result, result))
    if before != now:
        tell(
            f"validation accuracy {now:.4f}, {before:.4f} in the search: another machine or version computes otherwise"
        )
    return replace(chosen, result=result, rebuilt=True)


def _parity_line(bundle: Bundle) -> str:
    p = bundle.parity
    text = (
        f"{p['images']:,} validation inputs: accuracy {p['val_accuracy']:.4f}, class of the trained network for "
        f"{p['top1_agreement']:.2%}, logits {p['largest_difference']:.2g} apart at most"
    )
    return text + (f", class of the float network for {p['float_agreement']:.2%}" if bundle.int8 else "")


def _record(bundle: Bundle, why: str) -> dict[str, Any]:
    return {
        "bundle": str(bundle.folder),
        "name": bundle.name,
        "why": why,
        "int8": bundle.int8,
        "opset": bundle.opset,
        "metrics": dict(bundle.metrics),
        "final": dict(bundle.final),
        "parity": dict(bundle.parity),
        "files": dict(bundle.files),
        "digest": bundle.digest,
    }
