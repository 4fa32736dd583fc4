"""What students may start from: files of weights, a teacher's network, a source task; and what a space asks beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optuna.storages import RDBStorage

from metasearch.initial import PRIOR_STUDENT, TEACHER_SLICE, load_source, meta_files
from metasearch.meta.policy_network import PolicyNetwork, load_policy_network
from metasearch.parameters import POLICY_METHOD
from metasearch.run import check_alike
from metasearch.search.artefacts import KeptFile, location
from metasearch.search.earlier import student_file
from metasearch.search.possible import (
    Narrowed,
    possible_with_initial,
    possible_with_policy_network,
    possible_with_source,
    possible_with_task,
)
from metasearch.search.space import Space
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import TeacherSource


def initial_files(storage: Callable[[], RDBStorage], init_from: str | None, meta: Sequence[str]) -> dict[str, KeptFile]:
    """Return the weights files, by the initialisation that starts from them, that `--init-from` and `--meta` name.

    storage: opened only for a study. Raises NotFoundError for one that is not there, InputError for another file.
    """
    files = meta_learned(meta)
    return files if init_from is None else files | {PRIOR_STUDENT: student_file(storage, init_from)}


def meta_learned(meta: Sequence[str]) -> dict[str, KeptFile]:
    """Return the files that `--meta` names, each a path or URL, by their methods. Raises as `initial_files` does."""
    files = [KeptFile.at(location(text, flag="--meta")) for text in meta]
    paths = [file.fetch() for file in files]
    by_path = dict(zip(paths, files, strict=True))
    return {method: by_path[path] for method, path in meta_files(paths).items()}


def possible_with_files(
    space: Space, task: Task, *, teacher: TeacherSource, initial: Mapping[str, Path], joint: bool
) -> Narrowed:
    """Return the space without what the task rules out, and what there is no network, file or source task for.

    initial: weights and a policy network, those of `initial_files` on this machine. joint: whether there is a source
    task. What a teacher does not show is left out by `possible_with_teacher`, when that is known.
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
