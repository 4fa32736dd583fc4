"""The commands as Python functions, which return pandas frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.errors import InputError
from metasearch.records import Config, EpochReport, TrialResult
from metasearch.search.store import open_storage, storage_url

if TYPE_CHECKING:
    import pandas as pd

    from metasearch.report.conditions import Condition
    from metasearch.report.database import Database
    from metasearch.tasks import TaskSource
    from metasearch.teachers import TeacherSource


def launch(
    task: str | TaskSource,
    *,
    space: str = "distill_compress",
    trials: int = 32,
    workers: int | None = None,
    threads: int = 1,
    gpus_per_trial: float = 0.0,
    storage: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Search the student for a task and return the final front, as `best` does.

    task: as on the command line, or a TaskSource. gpus_per_trial: fractions share a device. storage: a URL.
    options: the other fields of `metasearch.search.prepare.Options` (name, objectives, constraints, sampler, seed,
    device, ...), and teacher: as on the command line, or a TeacherSource.
    """
    from metasearch.report.queries import best as find_best
    from metasearch.search.launch import run_study
    from metasearch.search.placement import check_fits_here
    from metasearch.search.prepare import Options, prepare_study
    from metasearch.search.runner import Resources
    from metasearch.search.space import load_space
    from metasearch.tasks import TaskSource

    source = TaskSource(task) if isinstance(task, str) else task
    resources = Resources(workers, threads, gpus_per_trial)
    check_fits_here(gpus_per_trial)
    store = open_storage(storage_url() if storage is None else storage, create=True)
    _, name = prepare_study(store, Options(source=source, space=load_space(space), trials=trials, **options))
    outcome = run_study(store, name, resources=resources)
    return find_best(_database(store.url), outcome.study.study_name).table.frame()


def resume(
    study: str,
    *,
    trials: int | None = None,
    gpu_hours: float | None = None,
    timeout_s: float | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus_per_trial: float = 0.0,
    storage: str | None = None,
) -> pd.DataFrame:
    """Go on with an interrupted search and return the final front.

    trials, gpu_hours: new, larger numbers of the study's. timeout_s: of this driver.
    """
    from metasearch.report.queries import best as find_best
    from metasearch.search.budget import More
    from metasearch.search.launch import run_study
    from metasearch.search.runner import Resources

    store = open_storage(storage_url() if storage is None else storage)
    more = More(trials, timeout_s, gpu_hours)
    outcome = run_study(store, study, resources=Resources(workers, threads, gpus_per_trial), more=more)
    return find_best(_database(store.url), outcome.study.study_name).table.frame()


def best(
    study: str,
    *,
    where: str | Sequence[str] = (),
    sort: str | None = None,
    top: int | None = None,
    pareto: bool = True,
    storage: str | None = None,
) -> pd.DataFrame:
    """Return the front of a study, a row a trial; without `pareto`, every feasible trial.

    where: further conditions such as "model_bytes <= 25kB and not augment". sort: a name whose better values come
    first. Raises InfeasibleError with the nearest misses if no trial satisfies all.
    """
    from metasearch.report.queries import best as find_best

    return find_best(
        _database(storage), study, where=_condition(where), sort=sort, top=top, pareto=pareto
    ).table.frame()


def trials(
    study: str,
    *,
    where: str | Sequence[str] = (),
    sort: str | None = None,
    top: int | None = None,
    storage: str | None = None,
) -> pd.DataFrame:
    """Return every trial of a study, a row each: those that satisfy `where`, by number or `sort`."""
    from metasearch.report.queries import trials_table

    return trials_table(_database(storage), study, where=_condition(where), sort=sort, top=top).frame()


def studies(*, storage: str | None = None) -> pd.DataFrame:
    """Return every study of a storage, a row each."""
    from metasearch.report.studies import studies_frame

    return studies_frame(_database(storage))


def compare(a: str, b: str, *, storage: str | None = None) -> pd.DataFrame:
    """Return two studies side by side, with the columns kind, name, a, b."""
    from metasearch.report.comparison import compare as compare_studies

    return compare_studies(_database(storage), a, b).frame()


def importance(
    study: str, *, objective: str | None = None, evaluator: str = "ped-anova", storage: str | None = None
) -> pd.DataFrame:
    """Return each parameter's share of the importance for an objective, largest first."""
    from metasearch.report.importance import importance_frame

    return importance_frame(_database(storage), study, objective=objective, evaluator=evaluator)


def _database(url: str | None) -> Database:
    from metasearch.report.database import open_database

    return open_database(storage_url() if url is None else url)


def _condition(texts: str | Sequence[str]) -> Condition | None:
    from metasearch.report.where import parse_all

    return parse_all([texts] if isinstance(texts, str) else texts, place="where")


def run_configuration(
    task: str | TaskSource,
    config: Config,
    *,
    teacher: str | TeacherSource | None = None,
    seed: int = 0,
    device: str = "auto",
    save_to: Path | None = None,
    report: Callable[[EpochReport], None] | None = None,
    initial: Mapping[str, Path] | None = None,
    joint: str | TaskSource | None = None,
) -> TrialResult:
    """Run one configuration on a task as a search's trial would, its teacher trained or read from the cache first.

    initial: weights files by the `student.init` that starts from them. joint: the source task of a joint training.
    Raises InputError or NotFoundError for a teacher that is not there or does not fit, before one is trained.
    """
    from metasearch.configuration import Configuration
    from metasearch.initial import MISSING, PLACE, TEACHER_SLICE
    from metasearch.objective import needed_features
    from metasearch.pipeline import run_pipeline
    from metasearch.search.prepare import resolve_device
    from metasearch.tasks import TaskSource, load_task
    from metasearch.teachers import TeacherSource, check_teacher, default_teacher, teacher_for

    parsed = Configuration.of(config)
    source = TaskSource(task) if isinstance(task, str) else task
    loaded = load_task(source)
    chosen = resolve_device(device)
    knowledge, sliced = None, parsed.init == TEACHER_SLICE
    if parsed.alpha > 0 or sliced:
        asked = TeacherSource.of(default_teacher(loaded) if teacher is None else teacher)
        shown = check_teacher(asked, loaded, views=parsed.augment)
        if sliced and asked.open_member is None:
            raise InputError(PLACE, MISSING[TEACHER_SLICE], TEACHER_SLICE)
        needed_features(parsed.loss, available=dict.fromkeys(shown))
        knowledge = teacher_for(
            loaded,
            asked,
            seed=seed,
            device=chosen,
            views=parsed.augment,
            features=[parsed.loss],
            network=sliced,
            progress=report,
        )
    return run_pipeline(
        loaded,
        config,
        teacher=knowledge,
        seed=seed,
        device=chosen,
        report=report,
        save_to=save_to,
        read_test=True,
        initial=initial or {},
        source=None if joint is None else load_task(TaskSource(joint) if isinstance(joint, str) else joint),
    )
