"""The display of a running search: one live block in a terminal, plain lines in a log file or over a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metasearch.records import EpochReport
from metasearch.report.tables import metric_text, seconds_text, teacher_text
from metasearch.search.launch import Watcher
from metasearch.search.ledger import Ledger

LOG_EVERY_S = 20.0
MOST_SHOWN = 8


class Display(Watcher):
    """Shows the front so far, trials finished, running and failed, trials per minute and time left, on stderr."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._title = ""
        self._started = time.monotonic()
        self._finished_at_start = 0
        self._last_line = 0.0
        self._finished_shown = -1

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, message: str) -> None:
        """Say what happens next."""
        self._console.print(Text(message, style="bold"), soft_wrap=True)

    def epoch(self, report: EpochReport) -> None:
        """Show the teacher's progress."""
        line = f"teacher epoch {report.epoch}/{report.epochs}: validation accuracy {report.val_accuracy:.4f}"
        if self._live is not None:
            self._live.update(Text(line))
        elif self._due() or report.epoch == report.epochs:
            self._console.print(line)

    def teacher(self, spec: str, metrics: Mapping[str, float]) -> None:
        """Say how good the teacher is."""
        self.stage(teacher_text(spec, metrics))

    def trials(self, ledger: Ledger, title: str) -> None:
        """Show the ledger as it stands."""
        if title != self._title:
            self._title, self._started, self._finished_at_start = title, time.monotonic(), ledger.finished
            self._finished_shown = -1
        if self._live is not None:
            self._live.update(self._block(ledger))
            return
        over = ledger.finished >= ledger.target
        if ledger.finished != self._finished_shown and (self._due() or over):
            self._finished_shown = ledger.finished
            self._console.print(f"{self._summary(ledger)}{self._best(ledger)}", soft_wrap=True)

    def _due(self) -> bool:
        if time.monotonic() - self._last_line < LOG_EVERY_S:
            return False
        self._last_line = time.monotonic()
        return True

    def _summary(self, ledger: Ledger) -> str:
        failed = sum(ledger.failures.values())
        done = ledger.finished - self._finished_at_start
        minutes = (time.monotonic() - self._started) / 60
        text = (
            f"{self._title}: {ledger.finished}/{ledger.target} finished, {len(ledger.running)} running, {failed} failed"
        )
        if ledger.states["PRUNED"]:
            text += f", {ledger.states['PRUNED']} stopped early"
        if done > 0 and minutes > 0:
            rate = done / minutes
            text += f", {rate:.1f} trials/min, {seconds_text((ledger.target - ledger.finished) / rate * 60)} left"
        return text

    def _best(self, ledger: Ledger) -> str:
        front = ledger.front.in_order()
        if not front:
            return ""
        points = (ledger.metrics[number] for number in front[:4])
        names = ("val_accuracy", "model_bytes")
        return "; front " + ", ".join(" ".join(metric_text(n, p[n]) for n in names if n in p) for p in points)

    def _block(self, ledger: Ledger) -> RenderableType:
        bar = ProgressBar(total=ledger.target, completed=ledger.finished, width=40)
        parts: list[RenderableType] = [Text(self._summary(ledger)), bar]
        front = ledger.front.in_order()
        if front:
            parts.append(self._front(ledger, front))
        for number, report in list(ledger.running.items())[:MOST_SHOWN]:
            parts.append(Text(f"trial {number}: {_state(report)}", style="dim"))
        return Group(*parts)

    def _front(self, ledger: Ledger, front: list[int]) -> Table:
        table = Table(box=None, pad_edge=False)
        names = [n for n in ("val_accuracy", "parameters", "macs", "model_bytes") if n in ledger.metrics[front[0]]]
        for heading in ("front: trial", *names):
            table.add_column(heading, justify="right")
        for number in front[:MOST_SHOWN]:
            table.add_row(str(number), *(metric_text(name, ledger.metrics[number][name]) for name in names))
        if len(front) > MOST_SHOWN:
            table.add_row(f"+{len(front) - MOST_SHOWN} more")
        return table


def _state(report: EpochReport | None) -> str:
    if report is None:
        return "starting"
    return f"{report.stage}, epoch {report.epoch}/{report.epochs}, validation accuracy {report.val_accuracy:.4f}"
