"""A new study from a user's options: everything checked, then described and created."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from optuna.storages import RDBStorage

from metasearch.errors import InputError
from metasearch.folders import home_folder
from metasearch.initial import PRIOR_STUDENT, TEACHER_SLICE, load_source, meta_files
from metasearch.meta.policy_network import PolicyNetwork, load_policy_network
from metasearch.models.weights import read_meta
from metasearch.parameters import POLICY_METHOD
from metasearch.records import Config
from metasearch.run import check_alike
from metasearch.search.artefacts import check_writable, location
from metasearch.search.benchmarks import KnownLatency, known_latency
from metasearch.search.differences import differences, study_versions
from metasearch.search.earlier import Decided, decided_space, student_file
from metasearch.search.ledger import check_distinct
from metasearch.search.objectives import Constraint, parse_objectives
from metasearch.search.possible import (
    Narrowed,
    needs_views,
    possible_with_initial,
    possible_with_policy_network,
    possible_with_source,
    possible_with_task,
    possible_with_teacher,
)
from metasearch.search.priors import WarmStart, choose_priors, prior_names
from metasearch.search.samplers import SAMPLERS_WITH_PRIORS, check_sampler
from metasearch.search.space import Space
from metasearch.search.store import (
    DESCRIPTION,
    StudyDescription,
    create_study,
    load_study,
    storage_errors,
    study_exists,
)
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import TeacherSource, check_teacher, default_teacher


@dataclass(frozen=True)
class Options:
    """What a user asks of a new search. constraints: added to the space's own; objectives: instead of them.

    warm_start: auto, none, or names of priors (see `priors.py`). init_from: of what `prior_student` starts from, a
    weights file or the name of a study. meta: files of meta-learned weights. joint: the source task of a joint
    training. decided: what earlier studies decide in the space. latency_from: STUDY[:DEVICE], whose benchmarks predict
    `latency_ms`.
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


def prepare_study(
    storage: RDBStorage, options: Options, *, create: bool = True, tell: Callable[[str], None] = lambda line: None
) -> tuple[StudyDescription, str]:
    """Check the options, describe the study and (unless a dry run) create it; return description and name.

    tell: hears how each prior maps to the space, in a line.
    """
    check_sampler(options.sampler)
    if options.trials < 1:
        raise InputError("--trials", "must be at least 1", options.trials)
    objectives = list(options.objectives) or [objective.metric for objective in options.space.objectives]
    parse_objectives(objectives, place="--objective")
    constraints = [*map(str, options.space.constraints), *options.constraints]
    for text in constraints:
        Constraint.parse(text, place="--constraint")
    latency = _latency(storage, options.latency_from, objectives, tell)
    source = options.source.absolute()
    task = load_task(source)
    asked = options.space
    if options.decided != Decided():
        asked = decided_space(storage, asked, options.decided, tell=tell)
    initial = initial_files(lambda: storage, options.init_from, options.meta)
    for path in initial.values():
        if options.source.text in read_meta(path).get("domains", {}).get("train", ()):
            tell(
                f"{path}: has learned from all of {options.source.text}, its test split too: its gain there is no gain"
            )
    joint = None if options.joint is None else joint_source(options.joint, task)
    teacher = TeacherSource.of(options.teacher or default_teacher(task)).absolute()
    space, _ = possible_with_files(asked, task, teacher=teacher, initial=initial, joint=joint is not None)
    space, _ = possible_with_teacher(space, check_teacher(teacher, task, views=needs_views(space)))
    for position, config in enumerate(options.enqueue):
        space.check_parameters(config, f"--enqueue[{position}]")
    check_distinct(options.enqueue, "--enqueue")
    artefacts = location(options.artefacts or str(home_folder() / "artefacts"))
    check_writable(artefacts)
    warm_start = _warm_start(storage, options, space, objectives, latency, tell)
    name = options.name or _free_name(storage, f"{task.name}-{asked.name}")
    description = StudyDescription(
        task=asdict(source),
        fingerprint=task.fingerprint,
        space=asked.text,
        space_digest=asked.digest,
        objectives=objectives,
        constraints=constraints,
        trials=options.trials,
        seed=options.seed,
        sampler=options.sampler,
        teacher=teacher.plain(),
        device=resolve_device(options.device),
        artefacts=artefacts,
        early_stopping=options.early_stopping,
        versions=study_versions(),
        commit=_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        timeout_s=options.timeout_s,
        trial_timeout_s=options.trial_timeout_s,
        gpu_hours=options.gpu_hours,
        warm_start=warm_start,
        initial={init: str(path) for init, path in initial.items()},
        source=None if joint is None else asdict(joint),
        latency=None if latency is None else asdict(latency),
    )
    if study_exists(storage, name):
        _refuse_existing(storage, name, description)
    if create:
        with storage_errors(str(storage.url)):
            study = create_study(storage, name, description)
            for config in options.enqueue:
                study.enqueue_trial(config)
    return description, name


def _refuse_existing(storage: RDBStorage, name: str, asked: StudyDescription) -> None:
    """Raise InputError for a study that exists, with what it searches otherwise than what is asked."""
    attributes = load_study(storage, name).user_attrs
    different = differences(StudyDescription(**attributes[DESCRIPTION]), asked) if DESCRIPTION in attributes else []
    rule = f"a study of this name exists: `metasearch resume {name}`, or choose another"
    if different:
        rule = (
            f"a study of this name exists, and searches something else ({'; '.join(different)}): "
            f"choose another; `metasearch resume {name}` goes on with that one"
        )
    raise InputError("--name", rule, name)


def initial_files(storage: Callable[[], RDBStorage], init_from: str | None, meta: Sequence[str]) -> dict[str, Path]:
    """Return the weights files, by the initialisation that starts from them, that `--init-from` and `--meta` name.

    storage: opened only for a study. Raises NotFoundError for one that is not there, InputError for another file.
    """
    files = meta_files([Path(text).absolute() for text in meta])
    return files if init_from is None else files | {PRIOR_STUDENT: student_file(storage, init_from)}


def possible_with_files(
    space: Space, task: Task, *, teacher: TeacherSource, initial: Mapping[str, Path], joint: bool
) -> Narrowed:
    """Return the space without what the task rules out, and what there is no network, file or source task for.

    initial: weights and a policy network, as `initial_files` gives them. joint: whether there is a source task. What a
    teacher does not show is left out by `possible_with_teacher`, when that is known.
    """
    lines: list[str] = []
    steps: tuple[Callable[[Space], Narrowed], ...] = (
        lambda space: possible_with_task(space, task),
        lambda space: possible_with_source(space, there=joint),
        lambda space: possible_with_initial(space, initial_families(teacher, initial, task)),
        lambda space: possible_with_policy_network(space, policy_network_of(initial)),
    )
    for narrow in steps:
        space, more = narrow(space)
        lines += more
    return space, lines


def initial_families(teacher: TeacherSource, files: Mapping[str, Path], task: Task) -> dict[str, str]:
    """Return the family of the network that each initialisation starts from, for those that are to be had.

    files: weights by the initialisation. Raises as `load_source` does.
    """
    starts = {init: path for init, path in files.items() if init != POLICY_METHOD}
    families = {init: load_source(init, path, task).spec.family for init, path in starts.items()}
    member = teacher.open_member
    if member is not None and member.spec is not None:
        families[TEACHER_SLICE] = member.spec.family
    return families


def policy_network_of(files: Mapping[str, Path]) -> PolicyNetwork | None:
    """Return the policy network among the files that a run is given, if any. Raises as `load_policy_network` does."""
    return load_policy_network(files[POLICY_METHOD]) if POLICY_METHOD in files else None


def joint_source(source: TaskSource, task: Task) -> TaskSource:
    """Return the source of a joint training, with absolute paths. Raises InputError for inputs of another shape."""
    absolute = source.absolute()
    check_alike(load_task(absolute), task)
    return absolute


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


def _commit() -> str:
    """Return the commit of the checkout that this package lies in, or "" in an installed wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
