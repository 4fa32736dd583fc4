"""The page of running searches: written again when they have changed, until the last of them ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasearch.report.database import Database
from metasearch.report.heads import find_head, study_head
from metasearch.report.page.render import write_page
from metasearch.report.page.report import Report, Tell, make_report
from metasearch.report.rows import Wanted, read_rows
from metasearch.report.standing import driver_of
from metasearch.search.names import CONTROLS, LEASE
from metasearch.search.patience import Patience

SHARE = 0.2
"""Of the time that making the page may take from the searches it shows."""

STATES = Wanted(parameters=(), attributes=(), stages=False, constraints=False)


def follow_page(
    database: Database,
    names: Sequence[str],
    folder: Path,
    *,
    every_s: float,
    tell: Tell = lambda line: None,
) -> Report | None:
    """Write the page of studies whenever they have changed, until none has a driver; return the last report.

    An open page reloads itself every `every_s` seconds while a driver lives; the last one, and that which an interrupt
    leaves, does not. None: an interrupt came before the first. Raises NotFoundError for a study that is not there, or
    that ends without a trial, and StorageError for a storage that is away for longer than a restart takes.
    """
    patience, told = Patience(tell=tell), set[str]()

    def tell_once(line: str) -> None:
        if line not in told:
            told.add(line)
            tell(line)

    def look() -> tuple[bool, list[tuple[dict[str, Any], Counter[str]]]]:
        # asked before the trials are read: what a driver does afterwards is on the next page
        running = any(driver_of(study_head(database, name)) is not None for name in names)
        return running, state_of(database, names)

    def report() -> Report:
        return patience.retried(lambda _: make_report(database, names, tell=tell_once))

    seen, last, page = None, None, False  # page: whether one is there that renews itself
    try:
        while True:
            started = time.monotonic()
            running, state = patience.retried(lambda _: look())
            without = [name for name, (_, counts) in zip(names, state[: len(names)], strict=True) if not counts]
            if not running:
                last = report()
                break
            if without:
                tell_once(f"study {without[0]}: no trial yet; the page comes with the first")
            elif state != seen:
                last, seen = report(), state
                write_page(last, folder, renew_s=every_s)
                page = True
            time.sleep(max(every_s, (time.monotonic() - started) / SHARE))
    except KeyboardInterrupt:  # whoever follows may go; the search goes on
        pass
    finally:
        if last is not None and (page or not running):
            write_page(last, folder)
    return last


def state_of(database: Database, names: Sequence[str]) -> list[tuple[dict[str, Any], Counter[str]]]:
    """Return what is different once there is news: attributes and trials by state, of studies, then their companions.

    A companion that is not there has neither.
    """
    found = []
    for name in (*names, *(name + CONTROLS for name in names)):
        head = find_head(database, name)
        attributes = {key: value for key, value in head.attributes.items() if key != LEASE} if head else {}
        states = [state for _, _, state, *_ in read_rows(database, head, STATES).trials] if head else []
        found.append((attributes, Counter(states)))
    return found
