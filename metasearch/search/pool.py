"""One pool of configurations, evaluated alike on several tasks: what built-in priors and our benchmark are made of.

The same configurations on every task tell what differs between tasks from what differs between configurations.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

from optuna.storages import RDBStorage
from scipy.stats import qmc

from metasearch.errors import InputError
from metasearch.parameters import Value
from metasearch.search.launch import Watcher, run_study
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import Space
from metasearch.search.starts import possible_with_files
from metasearch.search.store import study_exists
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import TeacherSource, default_teacher


def sobol_pool(space: Space, size: int, *, seed: int = 0) -> list[dict[str, Value]]:
    """Return `size` distinct configurations that fill the space evenly, conditional parameters included.

    Scrambled points of Sobol (Owen 1998) in the unit cube of all searched settings, of which each configuration keeps
    the active ones. Two that are the same count as one.
    """
    paths = list(space.distributions())
    points = qmc.Sobol(len(paths), scramble=True, rng=seed)
    pool: dict[tuple[tuple[str, Value], ...], dict[str, Value]] = {}
    block = 2 ** (size - 1).bit_length()
    for _ in range(64):  # a small space runs out of configurations
        for row in points.random(block):
            values = space.at(dict(zip(paths, map(float, row), strict=True)))
            pool.setdefault(tuple(sorted(values.items())), values)
        if len(pool) >= size:
            break
    return list(pool.values())[:size]


def evaluate_pool(
    storage: RDBStorage,
    tasks: Mapping[str, TaskSource],
    space: Space,
    *,
    size: int,
    resources: Resources,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Generator[str, None, None]:
    """Evaluate the same pool on every task and yield the name of each study once it is complete.

    tasks: study name -> task. A study that is there already goes on where it was interrupted, so that the same call
    ends what an earlier one began. A task's own impossible configurations are left out of its part of the pool.
    """
    pool = sobol_pool(space, size, seed=seed)
    for name, source in tasks.items():
        if not study_exists(storage, name):
            task = load_task(source)
            teacher = TeacherSource.of(default_teacher(task))
            possible, _ = possible_with_files(space, task, teacher=teacher, initial={}, joint=False)
            own = [values for values in pool if _is_possible(values, possible)]
            options = Options(
                source, space, trials=len(own), name=name, sampler="random", seed=seed, enqueue=tuple(own)
            )
            prepare_study(storage, options)
        outcome = run_study(storage, name, resources=resources, watcher=watcher, final=False)
        if outcome.stopped:
            return
        yield name


def _is_possible(values: Mapping[str, Value], space: Space) -> bool:
    try:
        space.check_parameters(values, "pool")
    except InputError:
        return False
    return True
