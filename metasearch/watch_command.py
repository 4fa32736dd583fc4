"""`metasearch status` and `watch`: a search seen from another terminal, by its storage alone.

They load neither torch nor ray.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch.flags import AsJson, StorageUrl, StudyName, Submit
from metasearch.messages import tell
from metasearch.submit_command import job_status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from metasearch.report.standing import Standing

MOST_SHOWN = 8
"""Trials of the front in the picture."""


def status(study: StudyName, as_json: AsJson = False, submit: Submit = None, storage: StorageUrl = None) -> None:
    """Say where a search stands: trials finished and running, its driver, and what failed; with --submit, its job.

    Example: metasearch status STUDY --json
    """
    if submit is not None:
        job_status(submit, study, as_json=as_json)
        return
    from metasearch.report.database import open_database
    from metasearch.report.standing import standing
    from metasearch.search.names import storage_url

    now = standing(open_database(storage_url(storage)), study)
    if as_json:
        typer.echo(json.dumps(now.record()))
        return
    wanted = "" if now.target is None else f" of {now.target}"
    typer.echo(f"{study}: {now.finished}{wanted} trials finished, {now.states.get('RUNNING', 0)} running")
    if now.driver is not None:
        typer.echo(f"driver: process {now.driver['pid']} on {now.driver['host']}")
    else:
        typer.echo("no driver" if now.target is None else f"no driver; metasearch resume {study}")
    for reason, count in now.failures.items():
        typer.echo(f"failed: {count} {reason}")


def watch(
    study: StudyName,
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="Between two looks.")] = 2.0,
    storage: StorageUrl = None,
) -> None:
    """Watch a search until its driver ends: trials, rate, failures and the front. Ctrl-C leaves it running.

    A terminal shows one picture that changes; a pipe or a file gets a line whenever something has.

    Example: metasearch watch STUDY --every 5
    """
    from contextlib import nullcontext

    from rich.console import Console
    from rich.live import Live

    from metasearch.report.database import open_database
    from metasearch.report.standing import standing
    from metasearch.search.names import storage_url
    from metasearch.search.patience import Patience

    database, patience = open_database(storage_url(storage)), Patience(tell=tell)
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    said = ""
    try:
        with live or nullcontext():
            while True:
                now = patience.retried(lambda _: standing(database, study, top=MOST_SHOWN))
                if live is not None:
                    live.update(picture(now), refresh=True)
                elif (line := summary(now)) != said:
                    said = line
                    typer.echo(line)
                if now.driver is None:
                    break
                time.sleep(every)
    except KeyboardInterrupt:  # whoever watches may go; the search goes on
        return


def summary(now: Standing) -> str:
    """Return where a search stands in one line."""
    from metasearch.report.tables import seconds_text

    wanted = "" if now.target is None else f"/{now.target}"
    parts = [f"{now.study}: {now.finished}{wanted} finished", f"{now.states.get('RUNNING', 0)} running"]
    parts += [f"{now.states['PRUNED']} stopped early"] if now.states.get("PRUNED") else []
    parts += [f"{count} failed ({reason})" for reason, count in now.failures.items()]
    if now.driver is None:
        done = now.target is not None and now.finished >= now.target
        return ", ".join(parts) + ("; done" if done else f"; no driver: metasearch resume {now.study}")
    parts += [f"{now.rate:.1f} trials/min"] if now.rate is not None else []
    parts += [f"{seconds_text(now.seconds_left)} left"] if now.seconds_left is not None else []
    return ", ".join(parts) + f"; driver {now.driver['pid']} on {now.driver['host']}"


def picture(now: Standing) -> RenderableType:
    """Return where a search stands as a block for a terminal: the summary, a bar and the front."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from metasearch.report.tables import front_table, plain_table

    parts: list[RenderableType] = [Text(summary(now))]
    if now.target is not None:
        parts.append(ProgressBar(total=now.target, completed=now.finished, width=40))
    if now.front is not None:
        frame = now.front.frame()
        parts.append(front_table(frame) if "student.family" in frame else plain_table(frame))
    if now.no_front:
        parts.append(Text(now.no_front))
    return Group(*parts)
