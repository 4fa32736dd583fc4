"""A finished study without training: results made up by rule, told through the real ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from metasearch.records import TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.objectives import Constraint
from metasearch.search.space import load_space
from metasearch.search.store import StudyDescription, create_study, open_storage

NO_DETAILS: Mapping[str, Any] = MappingProxyType({})


def describe(folder: Path, **changes: object) -> StudyDescription:
    """Return the description of a study over `quick` on digits with ten trials."""
    space = load_space("quick")
    description = StudyDescription(
        task={"text": "digits"},
        fingerprint="0" * 64,
        space=space.text,
        space_digest=space.digest,
        objectives=["val_accuracy", "model_bytes"],
        constraints=[],
        trials=10,
        seed=0,
        sampler="random",
        teacher="convnet:width=24,depth=6",
        device="cpu",
        artefacts=str(folder / "artefacts"),
        created="2026-01-02T03:04:05+00:00",
    )
    return replace(description, **changes)  # type: ignore[arg-type]  # the tests name real fields


@cache
def _tables() -> bytes:
    """Return a SQLite file with the tables of a storage, which take Optuna a tenth of a second to make."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "studies.db"
        open_storage(f"sqlite:///{path}", create=True).engine.dispose()
        with closing(sqlite3.connect(path)) as connection:
            return connection.serialize()


def new_storage(url: str) -> RDBStorage:
    """Return the storage at a URL; a SQLite file that is not there is made, with its tables."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database and not Path(parsed.database).exists():
        Path(parsed.database).write_bytes(_tables())
    return open_storage(url, create=True)


def finished_study(
    url: str, name: str, folder: Path, *, trials: int = 10, details: Mapping[str, Any] = NO_DETAILS, **changes: object
) -> RDBStorage:
    """Make a study whose accuracy grows with its bytes, with some noise, and whose last trial failed.

    details: of every result. changes: of the description.
    """
    storage = new_storage(url)
    description = describe(folder, trials=trials, **changes)
    study = create_study(storage, name, description)
    told = optuna.create_study(  # in memory: a database takes longer for as many steps
        directions=study.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    space, rng = load_space("quick"), np.random.default_rng(0)
    ledger = Ledger(
        told,
        lambda trial: Proposal(space.suggest(trial)),
        target=trials,
        seed=0,
        objectives=tuple(description.objectives),
        constraints=tuple(map(Constraint.parse, description.constraints)),
        artefacts=f"{description.artefacts}/{name}",
    )
    for index in range(trials):
        number, proposal, seed = ledger.ask()
        worker = {"node": "here", "pid": 1, "started": 0.0, "ended": 1.5, "seed": seed}
        if index == trials - 1:
            ledger.tell_failure(number, "diverged", "loss nan", worker)
            continue
        size = 1000.0 * (index + 1)
        metrics = {
            "val_accuracy": 0.5 + 0.04 * index + 0.001 * float(rng.random()),
            "model_bytes": size,
            "macs": 10 * size,
            "parameters": size,
        }
        ledger.tell_result(number, TrialResult(dict(proposal.config), seed, metrics, details=dict(details)), worker)
    study.add_trials(told.get_trials(deepcopy=False))
    return storage


def copied(storage: RDBStorage, folder: Path) -> str:
    """Return the URL of a copy of a SQLite storage in a folder, for a test that writes to it; its making is slower."""
    path = folder / "studies.db"
    with (
        closing(sqlite3.connect(str(storage.url).removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
    return f"sqlite:///{path}"
