"""Asking again what is briefly away: a database that restarts, a lock held for long, a full disk, a job server."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
"""Of the waits between two attempts; each is twice the one before."""
GIVE_UP_S = 60.0
"""After which a storage is not briefly away; a driver's lease runs out then, too."""

Answer = TypeVar("Answer")


def is_away(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is of a storage's connection, locks or disk, and so may pass."""
    import sqlalchemy

    while error is not None:
        if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            return True
        if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(error, sqlite3.OperationalError | sqlalchemy.exc.TimeoutError):
            return True
        error = error.__cause__
    return False


@dataclass(frozen=True)
class Patience:
    """How long an operation is tried. tell: hears of each wait. stopped: whether to wait no longer.

    what: is asked. away: whether an error of it may pass.
    """

    tell: Callable[[str], None] = lambda line: None
    stopped: Callable[[], bool] = lambda: False
    give_up_s: float = GIVE_UP_S
    what: str = "the storage"
    away: Callable[[BaseException], bool] = is_away

    def retried(self, operation: Callable[[bool], Answer]) -> Answer:
        """Return what the operation returns, tried again with growing waits while what it asks is away.

        operation: is told whether an attempt before it failed, whose changes may have reached the storage all the same:
        a connection can be lost between a commit and its answer. Raises the operation's error after `give_up_s`.
        """
        started, wait_s, again = time.monotonic(), FIRST_WAIT_S, False
        while True:
            try:
                return operation(again)
            except Exception as error:
                waited = time.monotonic() - started
                if not self.away(error) or waited + wait_s > self.give_up_s or self.stopped():
                    raise
                if not again:
                    self.tell(f"{self.what} is away ({_reason(error)}); trying again for up to {self.give_up_s:.0f} s")
            time.sleep(wait_s)
            wait_s, again = min(2 * wait_s, LONGEST_WAIT_S), True


PATIENT = Patience()


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", error)).split())[:200]
