"""Where this checkout lies, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
"""Real data, tables and schemas, on machines that have them."""
