"""How many statements are sent to a database, and how much memory this process has taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, event


@dataclass
class Count:
    """sent: statements. committed: transactions."""

    sent: int = 0
    committed: int = 0


@contextmanager
def counted_statements(engine: Engine) -> Iterator[Count]:
    """Count what the engine sends for as long as the block lasts."""
    count = Count()

    def sent(*_: object) -> None:
        count.sent += 1

    def committed(_: object) -> None:
        count.committed += 1

    event.listen(engine, "before_cursor_execute", sent)
    event.listen(engine, "commit", committed)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", sent)
        event.remove(engine, "commit", committed)


def peak_mb() -> float:
    """Return the most memory that this process has had; what getrusage says a process has from its parent, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1000
