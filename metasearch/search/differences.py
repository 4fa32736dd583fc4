"""What differs between the descriptions of two studies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study

from metasearch.records import Config
from metasearch.search.store import StudyDescription

QUEUED = "fixed_params"
"""Optuna's name for what an enqueued trial was given."""
COMPARED = (
    "task",
    "fingerprint",
    "objectives",
    "constraints",
    "seed",
    "sampler",
    "teacher",
    "source",
    "initial",
    "early_stopping",
    "warm_start_asked",
    "trial_timeout_s",
    "latency",
)
"""Fields of a description that make a study another one. What `auto` finds to start from differs from day to day."""
DIGITS = 12
"""So much of a digest is shown."""


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


def queued_first(study: Study) -> list[Config]:
    """Return the configurations that a study has queued to run first, as they were given."""
    trials = study.get_trials(deepcopy=False)
    return [trial.system_attrs[QUEUED] for trial in trials if QUEUED in trial.system_attrs]


def queue_differences(before: Sequence[Config], now: Sequence[Config]) -> list[str]:
    """Return a text for each thing that is otherwise in the first configuration to differ, or of another number."""
    if len(before) != len(now):
        return [f"enqueue of {len(before)} configurations, now of {len(now)}"]
    for position, configs in enumerate(zip(before, now, strict=True)):
        if configs[0] != configs[1]:
            return _changes(*(_flat(f"enqueue[{position}]", config) for config in configs))
    return []


def _flat(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"{field}.{key}": _content(entry) for key, entry in value.items()}
    return {field.removesuffix("_asked"): value[:DIGITS] if field == "fingerprint" else value}


def _content(entry: Any) -> Any:
    """Return what makes a value of a mapping another one: of a KeptFile what it holds, wherever it lies.

    A mapping without a digest, such as the fit of a latency model, gets one here.
    """
    if not isinstance(entry, Mapping):
        return entry
    digest = entry.get("digest") or hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    return digest[:DIGITS]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} {_shown(before, name)}, now {_shown(now, name)}" for name in names if before.get(name) != now.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if values.get(name) is not None else "none"
