"""The trial of a study that is exported: which, why, and all that the store and the artefact folder have of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage

from metasearch.errors import InputError, NotFoundError
from metasearch.pipeline import ONNX_FILE, TUNED_FILE, WEIGHTS_FILE
from metasearch.records import TrialResult
from metasearch.report.conditions import Condition
from metasearch.report.database import Database
from metasearch.report.finals import controls_frame, final_results
from metasearch.report.heads import study_head
from metasearch.report.queries import best
from metasearch.report.tables import records_of
from metasearch.search.artefacts import fetch, joined, trial_folder
from metasearch.search.names import RESULT, TEACHER
from metasearch.search.store import StudyDescription, description_of, load_study

REBUILD = "--rebuild runs its pipeline again"


@dataclass(frozen=True)
class Chosen:
    """A trial to be exported.

    why: it was chosen. final: what its final runs found, nothing where there were none. controls: a mapping a final run
    or control of it: role, seed and metrics. teacher: its spec and metrics, as far as the study has them. rebuilt:
    whether its pipeline was run again, whose result it is then.
    """

    study: str
    number: int
    why: str
    description: StudyDescription
    result: TrialResult
    final: Mapping[str, float | None] = field(default_factory=dict)
    controls: Sequence[Mapping[str, Any]] = ()
    teacher: Mapping[str, Any] = field(default_factory=dict)
    rebuilt: bool = False

    @property
    def name(self) -> str:
        """The bundle's name."""
        return f"{self.study}-trial-{self.number}"

    @property
    def place(self) -> str:
        """How errors name the trial."""
        return f"trial {self.number} of {self.study}"

    @property
    def has_read_test(self) -> bool:
        """Whether the test split was read for it, by final runs: else it stays unread."""
        return "test_accuracy" in self.final


def choose_trial(
    storage: RDBStorage,
    database: Database,
    study: str,
    *,
    number: int | None = None,
    where: Condition | None = None,
) -> Chosen:
    """Return a trial by its number, else the best in the first objective of those that keep the study's limits.

    where: a further condition. Raises NotFoundError for no such study or trial, InfeasibleError where none keeps all,
    InputError for a trial that is not complete.
    """
    head = study_head(database, study)
    why = "as asked"
    if number is None:
        found = best(database, study, where=where)
        if not len(found.table):
            raise NotFoundError(f"study {study}: has no complete trial yet")
        number, objective = found.table.cells["number"][0], next(iter(head.directions))
        value = found.table.cells[objective][0]
        why = f"the best of {found.feasible} by {objective}, {value:g}" + (", under --where" if where else "")
    result = _result(storage, head.id, study, number)
    mine = [run for run in records_of(controls_frame(database, study)) if run["of"] == number]
    return Chosen(
        study=study,
        number=number,
        why=why,
        description=description_of(load_study(storage, study)),
        result=result,
        final=final_results(database, head).get(number, {}),
        controls=mine,
        teacher=head.attributes.get(TEACHER) or {},
    )


def _result(storage: RDBStorage, study_id: int, study: str, number: int) -> TrialResult:
    try:
        trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))
    except (KeyError, OverflowError) as error:  # the latter of a number beyond SQLite's
        raise NotFoundError(f"trial {number} of {study}: there is none") from error
    if RESULT not in trial.user_attrs or not trial.state.is_finished():
        raise InputError(f"trial {number} of {study}", "must be a complete one", trial.state.name)
    return TrialResult.from_json(trial.user_attrs[RESULT])


def trial_files(chosen: Chosen) -> dict[str, Path]:
    """Return what the trial's pipeline has left, by name, as it was left: weights, ONNX file, tuned weights.

    Raises NotFoundError where a file is gone or was never kept, StorageError where one has changed.
    """
    result = chosen.result
    names = [WEIGHTS_FILE, ONNX_FILE] + ([TUNED_FILE] if result.details.get("quantization_aware") else [])
    folder = trial_folder(joined(chosen.description.artefacts, chosen.study), chosen.number)
    files = {}
    for name in names:
        # what a trial did not record it has not left: a file of that name there would be somebody else's
        file = fetch(joined(folder, name), result.artefacts[name]) if name in result.artefacts else None
        if file is None:
            raise NotFoundError(f"{chosen.place}: {name} is not there, kept for the front only: {REBUILD}")
        files[name] = file
    return files
