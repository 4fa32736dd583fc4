"""The store: studies in an Optuna storage, described by attributes (`names.py`), told by the driver alone."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import make_url

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.records import Config
from metasearch.search.names import (
    BUSY_TIMEOUT_S,
    CONTROLS,
    CURVE,
    DESCRIPTION,
    FAILURE,
    LEFT,
    LOSSES,
    LOST,
    PRIOR,
    RESULT,
    ROLE,
    RUN,
    STOP,
    shown_url,
    storage_url,
)
from metasearch.search.objectives import parse_objectives
from metasearch.search.space import Space, parse_space
from metasearch.spelling import hint

__all__ = [
    "CONTROLS",
    "CURVE",
    "DESCRIPTION",
    "FAILURE",
    "LEFT",
    "LOSSES",
    "LOST",
    "PRIOR",
    "RESULT",
    "ROLE",
    "RUN",
    "STOP",
    "StudyDescription",
    "constraint_violations",
    "create_study",
    "description_of",
    "is_finished",
    "load_study",
    "metrics_of",
    "name_taken",
    "open_storage",
    "shown_url",
    "storage_errors",
    "storage_url",
    "study_exists",
    "study_names",
]


@dataclass(frozen=True)
class StudyDescription:
    """What a study searches, and with what; enough to resume it.

    task: the fields of a TaskSource. teacher: a SOURCE, or the fields of a TeacherSource. warm_start: the names of the
    priors that the search starts from; warm_start_asked: the text that chose them. initial: the fields of a KeptFile
    (of older studies: a path), by the `student.init` that starts from it. source: the fields of the TaskSource of a
    joint training. features: of the task with its teacher, once the driver has that. latency: the
    fields of a KnownLatency, with which trials predict their `latency_ms`. enqueue: the configurations to run first,
    which the driver queues (of older studies: none, they have their queue already).
    """

    task: dict[str, Any]
    fingerprint: str
    space: str
    space_digest: str
    objectives: list[str]
    constraints: list[str]
    trials: int
    seed: int
    sampler: str
    teacher: str | dict[str, Any]
    device: str
    artefacts: str
    early_stopping: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    created: str = ""
    timeout_s: float | None = None
    trial_timeout_s: float | None = None
    gpu_hours: float | None = None
    warm_start: list[str] = field(default_factory=list)
    warm_start_asked: str = "auto"
    features: dict[str, float] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    enqueue: list[Config] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, described: Mapping[str, Any]) -> StudyDescription:
        """Return the description that the study of this name keeps. Raises InputError for one of other fields."""
        required = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        odd = (described.keys() - {each.name for each in fields(cls)}) | (required - described.keys())
        if odd:
            version = described.get("versions", {}).get("metasearch", "another version")
            rule = f"is described as metasearch {version} does, not as this one"
            raise InputError(f"study {name}", rule, ", ".join(sorted(odd)))
        return cls(**described)

    def parsed_space(self) -> Space:
        """Return the search space as it was when the study was made."""
        return parse_space(self.space, place="the study's space")


def open_storage(url: str, *, create: bool = False) -> RDBStorage:
    """Return the storage at `url` (WAL and a 60 s busy timeout on SQLite).

    create: whether a missing SQLite file is made. Raises NotFoundError if it is missing, StorageError if the storage is
    locked, unreachable, unwritable or of another schema version.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        path = Path(parsed.database)
        if not create and not path.exists():
            raise NotFoundError(f"{path}: no studies here yet; `metasearch launch` makes the first")
        with _opening_errors(url):
            path.parent.mkdir(parents=True, exist_ok=True)
    with _opening_errors(url):
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite else {"pool_pre_ping": True}
        if sqlite:
            _prepare_sqlite(parsed.database, create=create)
        storage = _with_tables(url, options)
        if sqlite:
            event.listen(storage.engine, "connect", _set_pragmas)
            storage.engine.dispose()
        return storage


def _with_tables(url: str, options: dict[str, Any], *, tries: int = 5) -> RDBStorage:
    """Return the storage, its tables made if it has none, which another process may be about to do as well."""
    for _ in range(tries - 1):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.IntegrityError,
            sqlalchemy.exc.ProgrammingError,
        ) as error:
            if not re.search("already exists|UNIQUE|duplicate key", str(error)):
                raise
            time.sleep(0.2)
    return RDBStorage(url, engine_kwargs=options)


def _prepare_sqlite(database: str | None, *, create: bool) -> None:
    """Switch the file to write-ahead logging, once; it is a property of the file."""
    if create and database and database != ":memory:":
        connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)
        start = time.monotonic()
        try:
            while True:
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError:  # at once, without waiting, where another process switches it too
                    if time.monotonic() - start > 2:
                        raise
                    time.sleep(0.05)
        finally:
            connection.close()


def _set_pragmas(connection: Any, record: Any) -> None:
    # With WAL, NORMAL loses no committed trial to a killed process, only (at most) the last ones to a power cut.
    connection.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy and Optuna raise about the storage itself into one StorageError. url: "" if not at hand."""
    place = shown_url(url) if url else "the storage"
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StorageError(f"{place}: {_one_line(getattr(error, 'orig', error))}") from error
    except optuna.exceptions.StorageInternalError as error:
        cause = error.__cause__ or error
        raise StorageError(f"{place}: {_one_line(getattr(cause, 'orig', cause))}") from error


@contextmanager
def _opening_errors(url: str) -> Iterator[None]:
    """Turn what else goes wrong while a storage is opened into a StorageError."""
    place = shown_url(url)
    try:
        with storage_errors(url):
            yield
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error
    except ModuleNotFoundError as error:
        raise StorageError(f"{place}: needs the extra `postgresql` (module {error.name} is missing)") from error
    except RuntimeError as error:  # Optuna's, about the version of the schema
        if "version" not in str(error):
            raise
        raise StorageError(f"{place}: is of another version of Optuna: {_one_line(error)}") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def create_study(storage: RDBStorage, name: str, description: StudyDescription) -> Study:
    """Create a study with its description, in the directions of its objectives. Raises InputError if it exists."""
    if name.endswith(CONTROLS) and description.trials:
        raise InputError("--name", f"must not end in {CONTROLS}, which names a study's controls", name)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[objective.direction for objective in parse_objectives(description.objectives)],
        )
    except optuna.exceptions.DuplicatedStudyError as error:
        raise name_taken(name) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(description.objectives)
    study.set_user_attr(DESCRIPTION, asdict(description))
    return study


def name_taken(name: str, different: Sequence[str] = ()) -> InputError:
    """Return the error for a new study of a name that another has. different: what that one searches otherwise."""
    rule = f"a study of this name exists: `metasearch resume {name}`, or choose another"
    if different:
        rule = (
            f"a study of this name exists, and searches something else ({'; '.join(different)}): "
            f"choose another; `metasearch resume {name}` goes on with that one"
        )
    return InputError("--name", rule, name)


def load_study(storage: RDBStorage, name: str) -> Study:
    """Return a study by name. Raises NotFoundError, with names that are near."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise NotFoundError(f"study {name!r}: there is none {hint(name, study_names(storage))}") from error


def study_exists(storage: RDBStorage, name: str) -> bool:
    """Whether the storage holds a study of this name, companions included."""
    return name in optuna.get_all_study_names(storage)


def study_names(storage: RDBStorage) -> list[str]:
    """Return the names of all studies, their companions of controls left out."""
    return [name for name in optuna.get_all_study_names(storage) if not name.endswith(CONTROLS)]


def description_of(study: Study) -> StudyDescription:
    """Return what the study searches. Raises InputError for an imported prior, and a study made by another program."""
    attributes = study.user_attrs
    described = attributes.get(DESCRIPTION)
    if PRIOR in attributes:
        raise InputError(f"study {study.study_name}", "is an imported prior, without trials; see `metasearch priors`")
    if described is None:
        rule = "was not made by metasearch, or not to its end: it has no description; `metasearch delete` removes it"
        raise InputError(f"study {study.study_name}", rule)
    return StudyDescription.of(study.study_name, described)


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial counts as one of `--trials N`: complete, pruned, or failed by its own configuration."""
    if trial.state == TrialState.FAIL:
        return bool(trial.user_attrs.get(FAILURE, {}).get("reason") != LOST)
    return trial.state in {TrialState.COMPLETE, TrialState.PRUNED}


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics of a complete trial, and nothing for others."""
    if RESULT not in trial.user_attrs:
        return {}
    metrics: dict[str, float] = json.loads(trial.user_attrs[RESULT])["metrics"]
    return metrics


def constraint_violations(trial: FrozenTrial) -> dict[str, float]:
    """Return by how much each constraint is violated (0 or less: satisfied), as the sampler saw it."""
    return trial.constraints
