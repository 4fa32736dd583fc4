"""What a check of `metasearch doctor` found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True)
class Finding:
    """What one check found. level: ok, warning or failure. remedy: what to do, "" where nothing is to be done."""

    what: str
    level: str
    text: str
    remedy: str = ""
