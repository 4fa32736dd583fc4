"""The storage of a driver: what only it writes it need not read again, and what belongs together is one transaction.

Optuna's own reads every unfinished trial from the database at every question and writes each parameter and attribute in
a transaction of its own. With 14 parameters that is 70 statements a trial; with 1,000 trials running, a question takes
as long as a short trial. A study has one driver (its lease sees to that), so here its trials are read once, and then
known from what this process writes. The tables stay Optuna's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.errors import StorageError


def driven(study: Study) -> Study:
    """Return the study on a storage that nobody else writes its trials to; the same one where it is in no database."""
    backend = getattr(study._storage, "_backend", None)
    if not isinstance(backend, RDBStorage):
        return study
    storage = DriverStorage(backend)
    return optuna.load_study(study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner)


def written_together(study: Study) -> AbstractContextManager[None]:
    """Write what the block writes to a driven study's trials in one transaction at its end; nothing where it raises."""
    storage = study._storage
    return storage.together() if isinstance(storage, DriverStorage) else nullcontext()


@dataclass
class _Writes:
    """What is to be written at once. attributes: table -> (trial id, name) -> JSON. states: trial id -> its end."""

    params: list[dict[str, Any]] = field(default_factory=list)
    attributes: dict[Any, dict[tuple[int, str], str]] = field(default_factory=dict)
    replaced: dict[Any, list[tuple[int, str]]] = field(default_factory=dict)
    states: dict[int, tuple[TrialState, Sequence[float]]] = field(default_factory=dict)


class DriverStorage(_CachedStorage):
    """Optuna's cached storage for the one process, and the one thread of it, that writes trials."""

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._known: set[int] = set()  # the studies whose trials in memory are those in the database
        self._writes: _Writes | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what the block writes to trials in one transaction at its end; nothing where it raises."""
        if self._writes is not None:
            yield
            return
        self._writes = _Writes()
        try:
            yield
            self._send(self._writes)
        except BaseException:
            self._known.clear()  # what was written is not known: a connection can be lost before or after a commit
            raise
        finally:
            self._writes = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Return the id of a new trial, which is in the database at once.

        As Optuna makes it, but once: Optuna tries again after any error, and where only the answer to a commit was lost
        makes a second trial, which then nobody runs.
        """
        self._read_trials_from_remote_storage(study_id)
        try:
            if template_trial is not None:
                return super().create_new_trial(study_id, template_trial)
            with _create_scoped_session(self._backend.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                row: Any = self._backend._get_prepared_new_trial(study_id, None, session)
                trial = FrozenTrial(
                    number=row.number,
                    state=row.state,
                    value=None,
                    datetime_start=row.datetime_start,
                    datetime_complete=None,
                    params={},
                    distributions={},
                    user_attrs={},
                    system_attrs={},
                    intermediate_values={},
                    trial_id=row.trial_id,
                )
        except BaseException:
            self._known.clear()
            raise
        self._add_trials_to_cache(study_id, [trial])
        return trial._trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a running trial."""
        with self.together():
            trial = self._changed(trial_id)
            seen = self._studies[self._study_of(trial_id)].param_distribution
            check_distribution_compatibility(seen.setdefault(param_name, distribution), distribution)
            if seen[param_name] == distribution:
                distribution = seen[param_name]  # one in memory for all trials
            trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
            trial.distributions = {**trial.distributions, param_name: distribution}
            row = {"trial_id": trial_id, "param_name": param_name, "param_value": param_value_internal}
            self._now.params.append(row | {"distribution_json": distribution_to_json(distribution)})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of an unfinished trial."""
        with self.together():
            trial = self._changed(trial_id)
            value = self._attribute(models.TrialUserAttributeModel, trial_id, key, value, known=key in trial.user_attrs)
            trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's, or of a sampler's, of an unfinished trial."""
        with self.together():
            trial = self._changed(trial_id)
            known = key in trial.system_attrs
            value = self._attribute(models.TrialSystemAttributeModel, trial_id, key, value, known=known)
            trial.system_attrs = {**trial.system_attrs, key: value}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of an unfinished trial, with its values where it is complete; return whether that was done."""
        if not state.is_finished():  # from the queue, which is a race wherever somebody else asks, too
            self._known.discard(self._study_of(trial_id))
            return super().set_trial_state_values(trial_id, state, values)
        with self.together():
            trial = self._changed(trial_id)
            trial.state, trial.datetime_complete = state, datetime.now()
            trial.values = None if values is None else list(values)
            self._now.states[trial_id] = state, values or ()
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set an intermediate value, which nobody here does often."""
        self._known.discard(self._study_of(trial_id))
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; an unfinished one is the caller's own to change."""
        if trial_id not in self._trial_id_to_study_id_and_number:
            return self._backend.get_trial(trial_id)
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        self._read_trials_from_remote_storage(study_id)
        trial = self._studies[study_id].trials[number]
        return trial if trial.state.is_finished() else copy.deepcopy(trial)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id in self._known:
            return
        super()._read_trials_from_remote_storage(study_id)
        study = self._studies[study_id]
        for trial in study.trials.values():
            for name, distribution in trial.distributions.items():
                study.param_distribution.setdefault(name, distribution)
        self._known.add(study_id)

    @property
    def _now(self) -> _Writes:
        assert self._writes is not None
        return self._writes

    def _study_of(self, trial_id: int) -> int:
        return self._trial_id_to_study_id_and_number[trial_id][0]

    def _changed(self, trial_id: int) -> FrozenTrial:
        """Return a copy of an unfinished trial, now in its place in memory, to be changed."""
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        self._read_trials_from_remote_storage(study_id)
        trials = self._studies[study_id].trials
        if trials[number].state.is_finished():
            raise UpdateFinishedTrialError(f"trial {number} has ended already")
        trials[number] = copy.copy(trials[number])
        return trials[number]

    def _attribute(self, table: Any, trial_id: int, key: str, value: Any, *, known: bool) -> Any:
        """Note an attribute to be written; return it as it will be read."""
        text = json.dumps(value)
        attributes = self._now.attributes.setdefault(table, {})
        if known and (trial_id, key) not in attributes:
            self._now.replaced.setdefault(table, []).append((trial_id, key))
        attributes[trial_id, key] = text
        return json.loads(text)

    def _send(self, writes: _Writes) -> None:
        if writes == _Writes():
            return
        with _create_scoped_session(self._backend.scoped_session) as session:
            if writes.params:
                session.execute(sqlalchemy.insert(models.TrialParamModel), writes.params)
            for table, old in writes.replaced.items():
                for trial_id, key in old:
                    session.execute(sqlalchemy.delete(table).where(table.trial_id == trial_id, table.key == key))
            for table, new in writes.attributes.items():
                rows = [{"trial_id": each, "key": key, "value_json": text} for (each, key), text in new.items()]
                session.execute(sqlalchemy.insert(table), rows)
            for trial_id, (state, values) in writes.states.items():
                trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                if trial.state.is_finished():
                    raise StorageError(f"another driver ended trial {trial.number}, which this one runs")
                if values:
                    stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values]
                    rows = [
                        {"trial_id": trial_id, "objective": objective, "value": value, "value_type": kind}
                        for objective, (value, kind) in enumerate(stored)
                    ]
                    session.execute(sqlalchemy.insert(models.TrialValueModel), rows)
                trial.state, trial.datetime_complete = state, datetime.now()
