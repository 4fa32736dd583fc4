"""Priors that a search can start from: finished studies of its storage, imported ones, and those of the package.

`--warm-start` is `auto` (all that share a parameter and an objective, and searched where the space does),
`none`, or names: NAME,NAME. A name after a minus leaves that one out: `auto,-NAME`. A name may itself have commas (that
of a task of two files has). A prior of the very task that is searched counts like any other, because a second search of
a task gains most from the first; `exclude_task` leaves such out where transfer is to be measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch import transfer
from metasearch.errors import InputError, NotFoundError
from metasearch.latency.work import Work
from metasearch.records import METRICS
from metasearch.search.benchmarks import KnownLatency, latency_of
from metasearch.search.fixing import fix
from metasearch.search.imported import imported_prior
from metasearch.search.lease import holder_of
from metasearch.search.space import Space, load_space
from metasearch.search.store import (
    CURVE,
    DESCRIPTION,
    RESULT,
    StudyDescription,
    description_of,
    is_finished,
    load_study,
    metrics_of,
    study_names,
)
from metasearch.spelling import hint
from metasearch.transfer.mapping import Active, MappedPrior, map_prior, summaries
from metasearch.transfer.prior import Prior, prior_of
from metasearch.transfer.priors_file import read_priors

STORE, IMPORTED, BUILT_IN = "store", "imported", "built-in"
BUILT_IN_FILE = Path(transfer.__file__).parent / "builtin.parquet"


@dataclass(frozen=True)
class KnownPrior:
    """A prior and where it is from: store, imported or built-in."""

    prior: Prior
    source: str


@dataclass(frozen=True)
class WarmStart:
    """What `--warm-start` asks for. every: all priors that fit. names: these. without: not these."""

    every: bool = False
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, known: Collection[str] = ()) -> WarmStart:
        """Return what a text means. known: names that may have commas. Raises InputError for one that means nothing."""
        words = _words(text, known)
        named = tuple(dict.fromkeys(word for word in words if not word.startswith("-") and word != "auto"))
        without = tuple(word[1:] for word in words if word.startswith("-"))
        if words == ["none"]:
            return cls()
        every = "auto" in words
        if not all((*named, *without)) or "none" in named or every == bool(named):
            raise InputError("--warm-start", "must be auto, none or NAME,... (and -NAME to leave one out)", text)
        return cls(every, named, without)


def prior_of_study(study: Study, *, latency: KnownLatency | None = None) -> Prior:
    """Return what a study of ours or of another program knows. Trials that their machine lost are left out.

    latency: in place of the latencies that the study knows, perhaps of another device, those that it predicts for the
    networks of its trials.
    """
    if DESCRIPTION not in study.user_attrs:
        return prior_of(study)
    description = description_of(study)
    try:
        fixed = description.parsed_space().fixed
    except InputError:  # a space of an older version, of which this one says no more what it fixed
        fixed = {}
    return prior_of(
        study,
        metrics=lambda trial: _metrics(trial, latency),
        curve=_curve,
        finished=is_finished,
        task=description.task["text"],
        features=description.features,
        versions=description.versions | ({"commit": description.commit} if description.commit else {}),
        fixed=fixed,
        fingerprint=description.fingerprint,
    )


def portable(prior: Prior) -> Prior:
    """Return the prior without where its data lay: a task that is no registered name is called as the prior is."""
    return replace(prior, task=prior.name) if ":" in prior.task else prior


def priors_in(
    storage: RDBStorage, names: Collection[str] | None = None, *, latency: KnownLatency | None = None
) -> list[KnownPrior]:
    """Return the priors of a storage: studies with complete trials that no live driver holds, and imported ones.

    names: look at these only. latency: see `prior_of_study`.
    """
    found = []
    for name in study_names(storage):
        if names is not None and name not in names:
            continue
        study = load_study(storage, name)
        imported = imported_prior(study)
        if imported is not None:
            found.append(KnownPrior(imported, IMPORTED))
        elif holder_of(study) is None and study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found.append(KnownPrior(prior_of_study(study, latency=latency), STORE))
    return found


def builtin_space() -> Space:
    """Return the space that the priors of the package searched: the default one, every student started at random."""
    return fix(load_space("distill_compress"), {"student.init": "random"}, place="built-in priors")


def builtin_priors() -> tuple[Prior, ...]:
    """Return the priors that ship with the package."""
    return read_priors(BUILT_IN_FILE) if BUILT_IN_FILE.exists() else ()


def known_priors(
    storage: RDBStorage, names: Collection[str] | None = None, *, latency: KnownLatency | None = None
) -> dict[str, KnownPrior]:
    """Return the priors of a storage and of the package by name; the storage's come first. names: these only."""
    shipped = [KnownPrior(prior, BUILT_IN) for prior in builtin_priors() if names is None or prior.name in names]
    return {known.prior.name: known for known in (*shipped, *priors_in(storage, names, latency=latency))}


def prior_names(storage: RDBStorage) -> list[str]:
    """Return the names of the storage's studies, finished or not, and of the package's priors."""
    return [*study_names(storage), *(prior.name for prior in builtin_priors())]


def find_priors(storage: RDBStorage, names: Sequence[str], *, latency: KnownLatency | None = None) -> list[KnownPrior]:
    """Return the named priors. Raises NotFoundError with names that are near."""
    known = known_priors(storage, names, latency=latency)
    for name in names:
        if name not in known:
            near = hint(name, known_priors(storage))
            raise NotFoundError(f"prior {name!r}: there is no finished study or imported prior of this name {near}")
    return [known[name] for name in names]


def choose_priors(
    storage: RDBStorage,
    warm_start: str,
    space: Space,
    objectives: Sequence[str],
    *,
    exclude_task: str = "",
    latency: KnownLatency | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[MappedPrior]:
    """Return the priors to start from, mapped to a space and the metrics that a search improves.

    exclude_task: a task's text or fingerprint, whose priors `auto` leaves out. latency: see `prior_of_study`. tell:
    hears what was mapped, of those that `auto` finds of no use too. Raises InputError for a named prior that is of no
    use, NotFoundError for one that is not there.
    """
    asked = WarmStart.parse(warm_start, prior_names(storage))
    if not asked.every and not asked.names:
        return []
    find_priors(storage, asked.without)
    if asked.every:
        found = [known.prior for known in known_priors(storage, latency=latency).values()]
        found = [prior for prior in found if not exclude_task or exclude_task not in (prior.task, prior.fingerprint)]
    else:
        found = [known.prior for known in find_priors(storage, asked.names, latency=latency)]
    mapped = [_mapped(prior, space, objectives) for prior in found if prior.name not in asked.without]
    if asked.every:
        mapped = [_refused_elsewhere(each) for each in mapped]
    for line in summaries(mapped):
        tell(line)
    for refused in (each for each in mapped if each.refused and not asked.every):
        raise InputError("--warm-start", f"prior {refused.prior.name} cannot be used: {refused.refused}")
    return [each for each in mapped if not each.refused]


def load_warm_start(
    storage: RDBStorage,
    description: StudyDescription,
    space: Space,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Prior]:
    """Return the priors that a study was started from, by name, mapped to its space as its driver has narrowed it.

    tell: hears a line for each that is no more, or of no use any more; the search goes on without it.
    """
    latency = latency_of(description)
    known = known_priors(storage, description.warm_start, latency=latency) if description.warm_start else {}
    for name in description.warm_start:
        if name not in known:
            tell(f"prior {name}: is no more in this storage; the search goes on without it")
    mapped = [_mapped(known[n].prior, space, description.objectives) for n in description.warm_start if n in known]
    for line in summaries(each for each in mapped if each.refused):
        tell(line)
    return [each.prior for each in mapped if not each.refused]


def _words(text: str, known: Collection[str]) -> list[str]:
    """Return what stands between the commas of a text, those within a known name apart."""
    parts, words = text.split(","), list[str]()
    while parts:
        joined = (",".join(parts[:count]).strip() for count in range(len(parts), 1, -1))
        word = next((word for word in joined if word.removeprefix("-") in known), parts[0].strip())
        words.append(word)
        parts = parts[word.count(",") + 1 :]
    return words


def _mapped(prior: Prior, space: Space, objectives: Sequence[str]) -> MappedPrior:
    directions = {name: METRICS[name] for name in objectives}
    return map_prior(prior, space.distributions(), directions, active=_conditions(space), fixed=space.fixed)


def _refused_elsewhere(mapped: MappedPrior) -> MappedPrior:
    """Return the prior, refused where it searched elsewhere: whoever knows better can name it.

    Students of batches of 64 from thousands of images say little of how to learn from 10 at a time.
    """
    if not mapped.elsewhere:
        return mapped
    return replace(mapped, refused=f"it tried none of the choices of {', '.join(mapped.elsewhere)}")


def _conditions(space: Space) -> Active:
    """Return what says which parameters of a trial are active in a space."""

    def active(params: Mapping[str, Any]) -> AbstractSet[str]:
        values: dict[str, Any] = {}
        for setting in space.settings:
            if setting.active(values) and (not setting.searched or setting.path in params):
                values[setting.path] = params[setting.path] if setting.searched else setting.domain
        return values.keys()

    return active


def _metrics(trial: FrozenTrial, latency: KnownLatency | None) -> dict[str, float]:
    """Return the finite metrics of a complete trial. latency: see `prior_of_study`."""
    metrics = {name: value for name, value in metrics_of(trial).items() if math.isfinite(value)}
    if latency is not None and metrics:
        works = json.loads(trial.user_attrs[RESULT])["details"].get("works")
        metrics.pop("latency_ms", None)
        if works is not None:  # a trial of an older version does not say what its network was
            metrics["latency_ms"] = latency.model.predict([Work.from_plain(work) for work in works])
    return metrics


def _curve(trial: FrozenTrial) -> list[float]:
    """Return the validation accuracy after each epoch of a trial, complete or stopped early."""
    epochs = trial.user_attrs.get(CURVE) or []
    if RESULT in trial.user_attrs:
        epochs = json.loads(trial.user_attrs[RESULT])["curve"]
    return [epoch["val_accuracy"] for epoch in epochs]
