"""What running the program in a test gives."""

from __future__ import annotations

from collections.abc import Callable

Outcome = tuple[int, str, str]
"""Exit code, stdout and stderr."""
Run = Callable[..., Outcome]
