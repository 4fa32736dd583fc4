"""What a study is, apart from its trials: objectives, constraints and description, by SQL or by Optuna's classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from metasearch.errors import InputError, NotFoundError
from metasearch.report.database import Database
from metasearch.search.names import CONTROLS, DESCRIPTION, LATENCY, LEASE, PRIOR, TEACHER
from metasearch.spelling import hint

METRIC_NAMES = "study:metric_names"
READ = (DESCRIPTION, PRIOR, TEACHER, LATENCY, LEASE)
"""The study attributes that are read; an imported prior has more, of up to half a megabyte each."""


@dataclass(frozen=True)
class Head:
    """A study. directions: "minimize" or "maximize" by objective. attributes: decoded, those of READ."""

    id: int
    name: str
    directions: dict[str, str]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """The fields of a StudyDescription; none of a study that another program made."""
        described: dict[str, Any] = self.attributes.get(DESCRIPTION) or {}
        return described

    @property
    def is_prior(self) -> bool:
        """Whether the study only holds an imported prior."""
        return PRIOR in self.attributes

    @property
    def constraints(self) -> list[str]:
        """The study's own limits, as text."""
        return list(self.description.get("constraints", []))


def study_heads(database: Database) -> list[Head]:
    """Return every study of a storage, in the order of their making, companions of controls included."""
    return _by_sql(database, None) if database.known else _by_optuna(database, None)


def find_head(database: Database, name: str) -> Head | None:
    """Return the study of this name, None if there is none."""
    found = _by_sql(database, name) if database.known else _by_optuna(database, name)
    return found[0] if found else None


def study_head(database: Database, name: str) -> Head:
    """Return the study of this name. Raises NotFoundError with names that are near, InputError for a prior."""
    head = find_head(database, name)
    if head is None:
        known = [other.name for other in study_heads(database) if not other.name.endswith(CONTROLS)]
        raise NotFoundError(f"study {name!r}: there is none {hint(name, known)}")
    if head.is_prior:
        raise InputError(f"study {name}", "is an imported prior, without trials; see `metasearch priors`")
    return head


def _by_sql(database: Database, name: str | None) -> list[Head]:
    one = "" if name is None else " AND s.study_name = :name"
    keys = ", ".join(f"'{key}'" for key in READ)
    with database.snapshot() as select:
        studies = select(f"SELECT s.study_id, s.study_name FROM studies s WHERE 1 = 1{one} ORDER BY 1", name=name)
        directions = select(
            "SELECT d.study_id, d.objective, d.direction FROM study_directions d JOIN studies s"
            f" ON s.study_id = d.study_id WHERE 1 = 1{one} ORDER BY 1, 2",
            name=name,
        )
        attributes = select(
            "SELECT a.study_id, a.key, a.value_json FROM study_user_attributes a JOIN studies s"
            f" ON s.study_id = a.study_id WHERE a.key IN ({keys}){one}",
            name=name,
        )
        metric_names = select(
            "SELECT a.study_id, a.value_json FROM study_system_attributes a JOIN studies s"
            f" ON s.study_id = a.study_id WHERE a.key = '{METRIC_NAMES}'{one}",
            name=name,
        )
    named = {study: json.loads(value) for study, value in metric_names}
    decoded: dict[int, dict[str, Any]] = {}
    for study, key, value in attributes:
        decoded.setdefault(study, {})[key] = json.loads(value)
    directed: dict[int, list[str]] = {}
    for study, _, direction in directions:
        directed.setdefault(study, []).append(direction)
    return [
        _head(study, text, directed.get(study, []), named.get(study), decoded.get(study, {})) for study, text in studies
    ]


def _by_optuna(database: Database, name: str | None) -> list[Head]:
    import optuna

    from metasearch.search.store import open_storage

    storage = open_storage(database.url)
    names = optuna.get_all_study_names(storage)
    found = []
    for each in names if name is None else [name] if name in names else []:
        study = optuna.load_study(study_name=each, storage=storage)
        attributes = {key: value for key, value in study.user_attrs.items() if key in READ}
        directions = [direction.name for direction in study.directions]
        found.append(_head(study._study_id, each, directions, study.metric_names, attributes))
    return sorted(found, key=lambda head: head.id)


def _head(study: int, name: str, directions: list[str], named: list[str] | None, attributes: dict[str, Any]) -> Head:
    described = attributes.get(DESCRIPTION) or {}
    default = ["value"] if len(directions) == 1 else [f"value_{index}" for index in range(len(directions))]
    names = described.get("objectives") or named or default
    return Head(study, name, dict(zip(names, (word.lower() for word in directions), strict=False)), attributes)
