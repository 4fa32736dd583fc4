"""A new study from a user's options: everything checked, then described and created."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from optuna.storages import RDBStorage

from metasearch.errors import InputError
from metasearch.folders import artefact_folder
from metasearch.models.weights import read_meta
from metasearch.records import Config
from metasearch.search.artefacts import KeptFile, check_writable, fetch_all, location
from metasearch.search.benchmarks import KnownLatency, known_latency
from metasearch.search.budget import Budget
from metasearch.search.differences import differences, queue_differences, queued_first
from metasearch.search.earlier import Decided, decided_space
from metasearch.search.objectives import Constraint, parse_objectives
from metasearch.search.possible import needs_views, possible_with_teacher
from metasearch.search.priors import WarmStart, choose_priors, prior_names
from metasearch.search.samplers import SAMPLERS_WITH_PRIORS, check_sampler
from metasearch.search.space import Space
from metasearch.search.starts import initial_files, joint_source, possible_with_files
from metasearch.search.store import (
    DESCRIPTION,
    StudyDescription,
    create_study,
    load_study,
    name_taken,
    storage_errors,
    study_exists,
)
from metasearch.search.versions import installed_versions
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import TeacherSource, check_teacher, default_teacher


@dataclass(frozen=True)
class Options:
    """What a user asks of a new search. constraints: added to the space's own; objectives: instead of them.

    warm_start: auto, none, or names of priors (see `priors.py`). init_from: of what `prior_student` starts from, a
    weights file (path or URL) or the name of a study. meta: files of meta-learned weights (paths or URLs). joint: the
    source task of a joint training. decided: what earlier studies decide in the space. latency_from:
    STUDY[:DEVICE], whose benchmarks predict `latency_ms`.
    """

    source: TaskSource
    space: Space
    trials: int
    name: str | None = None
    objectives: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    sampler: str = "transfer"
    seed: int = 0
    teacher: TeacherSource | str | None = None
    device: str = "auto"
    early_stopping: bool = False
    timeout_s: float | None = None
    trial_timeout_s: float | None = None
    gpu_hours: float | None = None
    enqueue: tuple[Config, ...] = ()
    artefacts: str | None = None
    warm_start: str = "auto"
    init_from: str | None = None
    meta: tuple[str, ...] = ()
    joint: TaskSource | None = None
    decided: Decided = field(default_factory=Decided)
    latency_from: str | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler)
        Budget(self.trials, self.timeout_s, self.trial_timeout_s, self.gpu_hours)  # which checks them


@dataclass(frozen=True)
class _Inputs:
    """What the trials of a study read, found and checked. initial: by the initialisation that starts from the file."""

    source: TaskSource
    task: Task
    teacher: TeacherSource
    initial: dict[str, KeptFile]
    joint: TaskSource | None


def prepare_study(
    storage: RDBStorage, options: Options, *, create: bool = True, tell: Callable[[str], None] = lambda line: None
) -> tuple[StudyDescription, str]:
    """Check the options, describe the study and (unless a dry run) create it; return description and name.

    tell: hears how each prior maps to the space, in a line.
    """
    objectives, constraints = _goals(options)
    latency = _latency(storage, options.latency_from, objectives, tell)
    asked = options.space
    if options.decided != Decided():
        asked = decided_space(storage, asked, options.decided, tell=tell)
    inputs = _inputs(storage, options, tell)
    space = _possible(asked, inputs)
    for position, config in enumerate(options.enqueue):
        space.check_parameters(config, f"--enqueue[{position}]")
    check_distinct(options.enqueue, "--enqueue")
    artefacts = location(options.artefacts or str(artefact_folder()))
    check_writable(artefacts)
    warm_start = _warm_start(storage, options, space, objectives, latency, tell)
    description = _description(
        options,
        inputs,
        asked,
        objectives=objectives,
        constraints=constraints,
        artefacts=artefacts,
        warm_start=warm_start,
        latency=latency,
    )
    stem = f"{inputs.task.name}-{asked.name}"
    if options.name and study_exists(storage, options.name):
        _refuse_existing(storage, options.name, description)
    if not create:
        return description, options.name or _free_name(storage, stem)
    with storage_errors(str(storage.url)):
        if not options.name:
            return description, _create_by_free_name(storage, stem, description)
        create_study(storage, options.name, description)
    return description, options.name


def check_options(storage: RDBStorage, options: Options) -> None:
    """Raise InputError or NotFoundError for what `prepare_study` will refuse whatever further files it is given.

    For a caller who makes such files, which may take hours.
    """
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731 - the priors are told of once
    objectives, _ = _goals(options)
    latency = _latency(storage, options.latency_from, objectives, quiet)
    space = decided_space(storage, options.space, options.decided, tell=quiet)
    _warm_start(storage, options, space, objectives, latency, quiet)
    check_distinct(options.enqueue, "--enqueue")
    check_writable(location(options.artefacts or str(artefact_folder())))
    if options.name is not None and study_exists(storage, options.name):
        raise name_taken(options.name)


def check_distinct(configurations: Sequence[Config], place: str) -> None:
    """Raise InputError for a configuration that is the same as an earlier one."""
    seen: set[str] = set()
    for position, config in enumerate(configurations):
        key = json.dumps(config, sort_keys=True)
        if key in seen:
            raise InputError(f"{place}: [{position}]", "is the same as an earlier one")
        seen.add(key)


def _goals(options: Options) -> tuple[list[str], list[str]]:
    """Return objectives and constraints. Raises InputError for one that means nothing."""
    objectives = list(options.objectives) or [objective.metric for objective in options.space.objectives]
    parse_objectives(objectives, place="--objective")
    constraints = [*map(str, options.space.constraints), *options.constraints]
    for text in constraints:
        Constraint.parse(text, place="--constraint")
    return objectives, constraints


def _inputs(storage: RDBStorage, options: Options, tell: Callable[[str], None]) -> _Inputs:
    """Return what the trials read; tell of a start that has seen the task's test split."""
    source = options.source.absolute()
    task = load_task(source)
    initial = initial_files(lambda: storage, options.init_from, options.meta)
    for init, path in fetch_all(initial).items():
        if options.source.text in read_meta(path).get("domains", {}).get("train", ()):
            learned = f"has learned from all of {options.source.text}, its test split too: its gain there is no gain"
            tell(f"{initial[init].place}: {learned}")
    joint = None if options.joint is None else joint_source(options.joint, task)
    return _Inputs(source, task, TeacherSource.of(options.teacher or default_teacher(task)).absolute(), initial, joint)


def _possible(asked: Space, inputs: _Inputs) -> Space:
    """Return what of the space the inputs leave possible; the driver tells what that leaves out."""
    space, _ = possible_with_files(
        asked,
        inputs.task,
        teacher=inputs.teacher,
        initial=fetch_all(inputs.initial),
        joint=inputs.joint is not None,
    )
    shown = check_teacher(inputs.teacher, inputs.task, views=needs_views(space))
    return possible_with_teacher(space, shown)[0]


def _description(
    options: Options,
    inputs: _Inputs,
    asked: Space,
    *,
    objectives: list[str],
    constraints: list[str],
    artefacts: str,
    warm_start: list[str],
    latency: KnownLatency | None,
) -> StudyDescription:
    """Return the description of a study that was made here and now."""
    return StudyDescription(
        task=asdict(inputs.source),
        fingerprint=inputs.task.fingerprint,
        space=asked.text,
        space_digest=asked.digest,
        objectives=objectives,
        constraints=constraints,
        trials=options.trials,
        seed=options.seed,
        sampler=options.sampler,
        teacher=inputs.teacher.plain(),
        device=resolve_device(options.device),
        artefacts=artefacts,
        early_stopping=options.early_stopping,
        versions=installed_versions(),
        commit=_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        timeout_s=options.timeout_s,
        trial_timeout_s=options.trial_timeout_s,
        gpu_hours=options.gpu_hours,
        warm_start=warm_start,
        warm_start_asked=options.warm_start,
        initial={init: asdict(file) for init, file in inputs.initial.items()},
        source=None if inputs.joint is None else asdict(inputs.joint),
        latency=None if latency is None else asdict(latency),
        enqueue=list(options.enqueue),
    )


def _refuse_existing(storage: RDBStorage, name: str, asked: StudyDescription) -> None:
    """Raise InputError for a study that exists, with what it searches otherwise than what is asked."""
    study = load_study(storage, name)
    if DESCRIPTION not in study.user_attrs:
        raise name_taken(name)
    old = StudyDescription.of(name, study.user_attrs[DESCRIPTION])
    queue = queue_differences(old.enqueue or queued_first(study), asked.enqueue)
    raise name_taken(name, [*differences(old, asked), *queue])


def _latency(
    storage: RDBStorage, latency_from: str | None, objectives: list[str], tell: Callable[[str], None]
) -> KnownLatency | None:
    """Return what predicts the latency of a trial, if asked for. Raises InputError for an objective without it."""
    if latency_from is not None:
        latency = known_latency(storage, latency_from)
        tell(str(latency))
        return latency
    if "latency_ms" in objectives:
        rule = (
            "latency_ms is predicted during a search, from what a device has measured: "
            "metasearch bench BUNDLE... --into STUDY, then --latency-from STUDY"
        )
        raise InputError("--objective", rule)
    return None


def _warm_start(
    storage: RDBStorage,
    options: Options,
    space: Space,
    objectives: list[str],
    latency: KnownLatency | None,
    tell: Callable[[str], None],
) -> list[str]:
    """Return the names of the priors that the search starts from: none with a sampler that knows no priors."""
    if options.sampler not in SAMPLERS_WITH_PRIORS:
        if WarmStart.parse(options.warm_start, prior_names(storage)).names:
            rule = f"needs --sampler {' or '.join(SAMPLERS_WITH_PRIORS)}: {options.sampler} knows no priors"
            raise InputError("--warm-start", rule, options.warm_start)
        return []
    with storage_errors(str(storage.url)):
        chosen = choose_priors(storage, options.warm_start, space, objectives, latency=latency, tell=tell)
    if not chosen and options.warm_start != "none":
        tell("no prior fits: the search starts from nothing")
    return [mapped.prior.name for mapped in chosen]


def resolve_device(text: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda. Raises InputError for another, or a cuda that is not there."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "asks for cuda, but torch sees no such device", text)
    if text not in {"cpu", "cuda"}:
        raise InputError("--device", "must be auto, cpu or cuda", text)
    return text


def _free_name(storage: RDBStorage, stem: str) -> str:
    number = 1
    while study_exists(storage, f"{stem}-{number}"):
        number += 1
    return f"{stem}-{number}"


def _create_by_free_name(storage: RDBStorage, stem: str, description: StudyDescription) -> str:
    """Create a study by the first free name of the stem and return it; another launch may be as fast to take one."""
    while True:
        name = _free_name(storage, stem)
        try:
            create_study(storage, name, description)
        except InputError:
            if not study_exists(storage, name):
                raise
        else:
            return name


def _commit() -> str:
    """Return the commit of the checkout that this package lies in, or "" in an installed wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
