"""A trial that hangs: a timer of C, not of Python, ends its process, and leaves word of that on its node.

Ray tells of every process that died unexpectedly in the same words. The word that the timer leaves is where each thread
stood, as `faulthandler` writes it; the driver asks the node for it.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MACHINE_S = 7200.0
"""What takes longer hangs: preparing a large task takes minutes, a folder that is full or away some more."""
ANSWER_S = 10.0
"""A node that has not answered by then has gone, with what its processes left there."""


@dataclass(frozen=True)
class Watch:
    """Where a process would leave word of its end. node: Ray's id of it. file: a path there."""

    node: str
    file: str


class HangTimer:
    """Ends this process after a while, even one that holds the interpreter's lock, unless it is disarmed before."""

    def __init__(self) -> None:
        descriptor, self.path = tempfile.mkstemp(prefix="metasearch-hang-")
        self._file = os.fdopen(descriptor, "w")

    def arm(self, seconds: float) -> None:
        """End the process in so many seconds."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def close(self) -> None:
        """Disarm it, and remove the file, in which nothing was left."""
        disarm()
        self._file.close()
        Path(self.path).unlink(missing_ok=True)


@contextmanager
def machines_turn() -> Iterator[None]:
    """Give the machine MACHINE_S for the block, a shared folder that hangs for instance, instead of the trial its time.

    No word of it is left: the trial is lost, and run again.
    """
    faulthandler.dump_traceback_later(MACHINE_S, exit=True, file=2)  # sys.stderr may be no file of the system's
    try:
        yield
    finally:
        disarm()


def disarm() -> None:
    """Let the process live, and what it does take its time: there is one timer in each."""
    faulthandler.cancel_dump_traceback_later()


def word_of(watch: Watch) -> str:
    """Return where the threads of a process stood when its timer ended it, "" where another cause did. Asks there."""
    place = NodeAffinitySchedulingStrategy(watch.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_taken).options(scheduling_strategy=place)
    try:
        return str(ray.get(task.remote(watch.file), timeout=ANSWER_S))
    except ray.exceptions.RayError:
        return ""


def _taken(file: str) -> str:
    """Return what a file holds, and remove it."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    path.unlink(missing_ok=True)
    return text
