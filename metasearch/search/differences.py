"""What differs between the descriptions of two studies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metasearch.search.store import StudyDescription

COMPARED = ("task", "fingerprint", "objectives", "constraints", "seed", "sampler", "teacher", "source")
"""Fields of a description that make a study another one; of a fingerprint the start is shown."""


def differences(old: StudyDescription, new: StudyDescription) -> list[str]:
    """Return a text for each thing that a study would search otherwise than another: "seed 0, now 1"."""
    found = []
    for field in COMPARED:
        before, now = _flat(field, getattr(old, field)), _flat(field, getattr(new, field))
        found += _changes(before, now)
    if old.space_digest != new.space_digest:
        before, now = ({s.path: s.domain for s in d.parsed_space().settings} for d in (old, new))
        found += _changes(before, now) or ["the text of its space"]
    return found


def _flat(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"{field}.{key}": entry for key, entry in value.items()}
    return {field: value[:12] if field == "fingerprint" else value}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} {_shown(before, name)}, now {_shown(now, name)}" for name in names if before.get(name) != now.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if values.get(name) is not None else "none"
