"""Messages for whoever sits there: on stderr, since stdout is for data."""

from __future__ import annotations

import sys


def tell(line: str) -> None:
    """Write a line."""
    sys.stderr.write(f"{line}\n")
