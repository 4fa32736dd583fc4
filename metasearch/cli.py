"""The command line. Data go to stdout, messages to stderr; reading commands import neither torch nor ray.

Exit codes: 0 done; 1 the search failed; 2 usage; 3 not found; 4 nothing satisfies the constraints; 5 storage;
130 interrupted, resumable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from metasearch.bench_command import bench
from metasearch.completion import complete_space
from metasearch.dashboard_command import dashboard
from metasearch.doctor_command import doctor
from metasearch.errors import InputError, MetasearchError
from metasearch.export_command import export
from metasearch.flags import (
    AsJson,
    DataRoot,
    Device,
    Download,
    ImageSize,
    MaxTrain,
    ResourceFlags,
    Seed,
    StartFlags,
    StorageUrl,
    StudyName,
    Submit,
    TaskFlags,
    TaskText,
    TeacherFlags,
    Unlabelled,
    read_configurations,
    with_flags,
)
from metasearch.messages import tell
from metasearch.meta_command import meta_train
from metasearch.predict_command import predict
from metasearch.prior_commands import priors_app
from metasearch.query_commands import best, compare, importance, studies, trials
from metasearch.report_command import report
from metasearch.search.budget import NO_MORE, More
from metasearch.search_flags import MoreFlags, SearchFlags
from metasearch.serve_command import serve
from metasearch.store_commands import delete, gc
from metasearch.submit_command import SubmissionFlags, logs, stop_job
from metasearch.transfer_command import transfer
from metasearch.verify_command import verify
from metasearch.watch_command import status, watch

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from metasearch.search.launch import Outcome
    from metasearch.search.store import StudyDescription

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the small network to ship: search distill-then-compress pipelines for a task and its teacher.",
)
tasks_app = typer.Typer(invoke_without_command=True, help="Tasks that can be searched.")
spaces_app = typer.Typer(invoke_without_command=True, help="Search spaces.")
app.add_typer(tasks_app, name="tasks")
app.add_typer(spaces_app, name="spaces")
app.add_typer(priors_app, name="priors")
for reading in (best, studies, trials, compare, importance, transfer, report):
    app.command()(reading)
app.command()(meta_train)
app.command()(export)
app.command()(status)
app.command()(watch)
app.command()(logs)
app.command()(dashboard)
app.command()(verify)
app.command()(predict)
app.command()(doctor)
app.command()(bench)
app.command()(serve)


@app.command()
@with_flags
def launch(
    *,
    search: SearchFlags,
    submission: SubmissionFlags,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would run.")] = False,
) -> None:
    """Search the student for a task, and measure the final front with several seeds and controls.

    Example: metasearch launch fashion_mnist --data-root DIR --max-train 10000 --constraint "model_bytes<=25kB"
    """
    if submission.sent(study=search.name, stem=search.stem, tasks=search.tasks()):
        return
    from metasearch.search.store import open_storage, storage_url

    url = storage_url(submission.storage)
    options = search.options()
    search.resources.check()
    store = open_storage(url, create=True)
    from metasearch.search.prepare import check_options, prepare_study

    if search.meta_family is not None:
        from metasearch.search.meta_artefacts import completed_files

        check_options(store, options)  # before hours of meta-training
        files = completed_files(
            options.meta,
            options.space,
            search.meta_family,
            source=options.source,
            resources=search.resources.resources(),
            tell=tell,
            make=not dry_run,
        )
        options = replace(options, meta=files)
    description, study = prepare_study(store, options, create=not dry_run, tell=tell)
    if dry_run:
        _print_plan(study, description)
    else:
        _run(store, study, search.resources)


@app.command()
@with_flags
def resume(
    *,
    study: StudyName,
    more: MoreFlags,
    resources: ResourceFlags,
    accept_versions: Annotated[
        bool, typer.Option("--accept-versions", help="Go on although other versions of torch, ... made the study.")
    ] = False,
    submission: SubmissionFlags,
) -> None:
    """Go on with a search that was interrupted, or enlarge one that is done."""
    if not submission.sent(study=study, stem=study, tasks={}):
        _run(_store(submission.storage), study, resources, more=more.more(), accept_versions=accept_versions)


@app.command()
@with_flags
def run(
    *,
    config: Annotated[str, typer.Option(metavar="FILE", help="YAML: dotted parameter -> value.")],
    teacher: TeacherFlags,
    start: StartFlags,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Write weights and ONNX file there.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
    task: TaskFlags,
    storage: StorageUrl = None,
) -> None:
    """Run one configuration, without a search, and print its result as JSON."""
    from metasearch.configuration import Configuration

    configurations = read_configurations(config)
    if len(configurations) != 1:
        raise InputError(config, "must hold one configuration", len(configurations))
    Configuration.of(configurations[0], config)
    source = task.source(seed)
    from metasearch import run_configuration
    from metasearch.search.artefacts import fetch_all
    from metasearch.search.starts import initial_files

    result = run_configuration(
        source,
        configurations[0],
        teacher=teacher.source(),
        device=device,
        seed=seed,
        save_to=to,
        initial=fetch_all(initial_files(lambda: _store(storage), start.init_from, start.meta or ())),
        joint=start.joint(source),
        report=lambda e: tell(
            f"{e.stage} epoch {e.epoch}/{e.epochs}: loss {e.train_loss:.4f}, validation accuracy {e.val_accuracy:.4f}"
        ),
    )
    typer.echo(result.to_json())


@app.command()
def stop(study: StudyName, submit: Submit = None, storage: StorageUrl = None) -> None:
    """Ask the driver of a running search to stop cleanly; it can be resumed."""
    if submit is not None:
        stop_job(submit, study)
        return
    from metasearch.search.lease import ask_to_stop
    from metasearch.search.store import load_study

    ask_to_stop(load_study(_store(storage), study))
    tell(f"asked the driver of {study} to stop; it does so within seconds")


@tasks_app.callback()
def tasks(context: typer.Context) -> None:
    """List the tasks that have a name, and the spellings of others; `tasks check TASK` inspects one's data."""
    if context.invoked_subcommand is None:
        from metasearch.tasks.registered import REGISTERED
        from metasearch.tasks.sources import PREFIXES

        for name, source in REGISTERED.items():
            typer.echo(f"{name}: {source.about}")
        for prefix, source in PREFIXES.items():
            typer.echo(f"{prefix}:{source.about}")
        typer.echo("python:package.module:function, which returns a Task")


@tasks_app.command("check")
def tasks_check(
    task: TaskText,
    seed: Seed = 0,
    data_root: DataRoot = None,
    max_train: MaxTrain = None,
    image_size: ImageSize = None,
    download: Download = False,
    unlabelled: Unlabelled = None,
    as_json: AsJson = False,
) -> None:
    """Look for what spoils a search: unbalanced, unreadable, blank or repeated examples, and leaks between splits.

    Exits with 1 where an example of one split is also in another, or a file cannot be read.
    """
    from metasearch.tasks import TaskSource

    source = TaskSource(
        text=task,
        data_root=data_root,
        max_train=max_train,
        image_size=image_size,
        seed=seed,
        download=download,
        skip_corrupt=True,
        unlabelled=unlabelled,
    )
    from metasearch.report.task_check import print_task_check
    from metasearch.tasks import check_task, load_task

    found = check_task(load_task(source))
    if as_json:
        typer.echo(found.to_json())
    else:
        print_task_check(found)
    if not found.is_clean:
        raise typer.Exit(1)


@spaces_app.callback()
def spaces(context: typer.Context) -> None:
    """List the preset search spaces; `spaces check FILE` checks one of your own."""
    if context.invoked_subcommand is None:
        from metasearch.resources import preset_names
        from metasearch.search.space import load_space

        for name in preset_names():
            loaded = load_space(name)
            objectives = ", ".join(objective.metric for objective in loaded.objectives)
            typer.echo(f"{name}: {len(loaded.distributions())} searched parameters, objectives {objectives}")


@spaces_app.command("check")
def spaces_check(file: Annotated[str, typer.Argument(metavar="FILE", autocompletion=complete_space)]) -> None:
    """Check a search space file and say what it searches."""
    from metasearch.search.space import load_space

    for path, distribution in load_space(file).distributions().items():
        typer.echo(f"{path}: {distribution}")


app.command()(delete)
app.command()(gc)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and an exit code."""
    try:
        with _storage_errors():
            app(prog_name="metasearch")  # however it was started: the shell's completion goes by this name
    except MetasearchError as error:
        sys.stderr.write(f"metasearch: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("metasearch: interrupted\n")
        sys.exit(130)


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn what a storage raises after it was opened into a StorageError, without importing it for every command."""
    try:
        yield
    except Exception as error:
        if "metasearch.search.store" not in sys.modules:
            raise
        from metasearch.search.store import storage_errors

        with storage_errors(""):
            raise error


def _print_plan(name: str, description: StudyDescription) -> None:
    shown = {"name": name, **vars(description), "searched": sorted(description.parsed_space().distributions())}
    del shown["space"]
    typer.echo(json.dumps(shown, indent=2))


def _run(
    store: RDBStorage,
    name: str,
    resources: ResourceFlags,
    *,
    more: More = NO_MORE,
    accept_versions: bool = False,
) -> None:
    from rich.console import Console

    from metasearch.report.display import Display
    from metasearch.search.launch import run_study

    tell(f"study {name}")
    available = resources.resources()
    try:
        with Display(Console(stderr=True, highlight=False)) as display:
            outcome = run_study(
                store, name, resources=available, watcher=display, more=more, accept_versions=accept_versions
            )
    except KeyboardInterrupt:
        _interrupted("interrupted", name)
    _print_outcome(store, outcome)


def _print_outcome(store: RDBStorage, outcome: Outcome) -> None:
    from metasearch.query_commands import print_best
    from metasearch.report.database import open_database
    from metasearch.report.queries import best as find_best

    name = outcome.study.study_name
    for reason, count in sorted(outcome.failures.items()):
        tell(f"failed: {count} {reason}")
    if outcome.stopped:
        _interrupted(outcome.stopped, name)
    database = open_database(store.url)
    print_best(database, find_best(database, name))
    tell(f'next: metasearch best {name} --where "model_bytes<=25kB" --top 3')


def _interrupted(reason: str, name: str) -> NoReturn:
    tell(f"stopped ({reason}); nothing finished is lost. Go on with: metasearch resume {name}")
    sys.exit(130)


def _store(flag: str | None) -> RDBStorage:
    from metasearch.search.store import open_storage, storage_url

    return open_storage(storage_url(flag))
