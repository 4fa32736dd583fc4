"""One way to stop a search: a flag, which signals, limits, other processes and faults set."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopFlag:
    """Set by signals, limits, other processes and faults, each with its reason; read by the Tune loop.

    Some reasons end the trials alone: what they found is still measured. The others end everything.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may come while this very thread has it
        self._everything = self._trials = ""
        self._measuring = False

    @property
    def reason(self) -> str:
        """The first reason to end everything, else the first to end the trials; "" for none."""
        return self._everything or self._trials

    def set(self, reason: str) -> None:
        """Ask for the end of everything."""
        with self._lock:
            self._everything = self._everything or reason

    def end_trials(self, reason: str) -> None:
        """Ask for the end of the trials; without effect once they are over."""
        with self._lock:
            if not self._measuring:
                self._trials = self._trials or reason

    def trials_are_over(self) -> None:
        """Go on with what follows the trials, whatever limit ended them; a request to end everything stays."""
        with self._lock:
            self._measuring, self._trials = True, ""

    def is_set(self) -> bool:
        """Whether the trials are to end."""
        return bool(self.reason)

    def ends_everything(self) -> bool:
        """Whether nothing is to follow the trials."""
        return bool(self._everything)


@contextlib.contextmanager
def stopping_on_signals(stop: StopFlag) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a clean stop; a second one interrupts at once."""

    def handle(number: int, frame: object) -> None:
        if stop.ends_everything():
            raise KeyboardInterrupt
        stop.set("interrupted" if number == signal.SIGINT else "terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
