"""Meta-learned artefacts that a search needs and that are not there yet: made as Ray tasks, side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import ray
import torch

from metasearch.errors import InputError
from metasearch.meta.making import MetaRequest, find_artefact, largest_shape, make_artefact
from metasearch.meta.methods import METHODS
from metasearch.meta.policy_making import PolicyRequest, find_policy_network, make_policy_network
from metasearch.models import NetworkSpec
from metasearch.parameters import LEARNED_POLICIES, NETWORK, POLICY_METHOD, Value
from metasearch.search.runner import Resources, ray_running
from metasearch.search.settings import Setting
from metasearch.search.space import Space
from metasearch.search.starts import meta_learned
from metasearch.tasks import TaskSource
from metasearch.tasks.episodes import EpisodeShape
from metasearch.tasks.families import load_family

Request = MetaRequest | PolicyRequest
RETRIES = 3
WIDTHS = ("student.width", *(f"student.width.{part}" for part in ("value", "start", "end", "peak", "initial", "final")))
"""Every path that may say a student's width."""


def ensure_artefacts(
    needed: Sequence[Request], *, resources: Resources | None = None, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Path]:
    """Return the file of each request by its method, for `initial` of `run_pipeline`; what is absent is made by Ray.

    A worker that dies is started again and goes on from the artefact's checkpoint. The cache must be one folder for
    driver and workers. tell: hears a line for each that is made. Raises InputError for two requests of one method, and
    what making one raises.
    """
    names = [method_of(request) for request in needed]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError("--meta-family", "needs one artefact of each method", repeated)
    found = {name: _find(request) for name, request in zip(names, needed, strict=True)}
    absent = [request for request in needed if found[method_of(request)] is None]
    if absent:
        resources = resources or Resources()
        with ray_running(resources):
            make = ray.remote(num_cpus=resources.threads, max_retries=RETRIES)(_make)
            started = {}
            for request in absent:
                tell(f"{method_of(request)}: meta-trained on {request.family}")
                started[method_of(request)] = make.remote(request, resources.threads)
            for name, reference in started.items():
                try:
                    found[name] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                tell(f"{name}: {found[name]}")
    return {name: path for name, path in found.items() if path is not None}


def completed_files(
    files: Sequence[str],
    space: Space,
    family: str,
    *,
    source: TaskSource,
    resources: Resources,
    tell: Callable[[str], None],
    make: bool = True,
) -> tuple[str, ...]:
    """Return the files of a launch with those that its space asks for beside them, made where they are absent.

    source: the search's own task, whose data root, image size and seed the family shares. make: False only says what is
    absent.
    """
    given = meta_learned(files)
    alike = TaskSource("", data_root=source.data_root, image_size=source.image_size, seed=source.seed)
    needed = needed_artefacts(space, family, source=alike, given=given, seed=source.seed)
    if make:
        return (*files, *map(str, ensure_artefacts(needed, resources=resources, tell=tell).values()))
    found = [_find(request) for request in needed]
    for request, path in zip(needed, found, strict=True):
        if path is None:
            tell(f"{method_of(request)}: would be meta-trained on {family}")
    return (*files, *(str(path) for path in found if path is not None))


def needed_artefacts(
    space: Space, family: str, *, source: TaskSource, given: Collection[str], seed: int
) -> list[Request]:
    """Return a request for every meta-learned choice of a space for which no file is given.

    given: the methods of the files that are there. The initialisations are of the space's largest student of its first
    family: narrower and shallower ones take their most important channels. Episodes are 5-way 5-shot, or what the
    domains have. source: data root and image size, as those of the search's own task.
    """
    by_path = {setting.path: setting for setting in space.settings}
    spec = _largest_student(by_path)
    inits = [str(c) for c in by_path["student.init"].choices if c in METHODS and c not in given]
    shape = largest_shape(load_family(family, source=source), EpisodeShape(5, 5, 10)) if inits else EpisodeShape()
    needed: list[Request] = [
        MetaRequest(
            family,
            init,
            student=str(spec),
            source=source,
            ways=shape.ways,
            shots=shape.shots,
            queries=shape.queries,
            seed=seed,
        )
        for init in inits
    ]
    kinds = {choice for name in LEARNED_POLICIES for choice in _choices(by_path, f"{name}.kind")}
    if NETWORK in kinds and POLICY_METHOD not in given:
        optimizer = str(_choices(by_path, "optimizer")[0])
        needed.append(PolicyRequest(family, student=str(spec), source=source, optimizer=optimizer, seed=seed))
    return needed


def _largest_student(by_path: Mapping[str, Setting]) -> NetworkSpec:
    widths = [s.bounds()[1] for path, s in by_path.items() if path in WIDTHS]
    family = str(by_path["student.family"].choices[0])
    return NetworkSpec(family, width=int(max(widths)), depth=int(by_path["student.depth"].bounds()[1]))


def _choices(by_path: Mapping[str, Setting], path: str) -> tuple[Value, ...]:
    return by_path[path].choices if path in by_path else ()


def method_of(request: Request) -> str:
    """Return the method of a request, the key of its file."""
    return request.method if isinstance(request, MetaRequest) else POLICY_METHOD


def _find(request: Request) -> Path | None:
    return find_artefact(request) if isinstance(request, MetaRequest) else find_policy_network(request)


def _make(request: Request, threads: int) -> Path:
    """Make one artefact in a worker."""
    torch.set_num_threads(threads)
    if isinstance(request, MetaRequest):
        return make_artefact(request).path
    return make_policy_network(request)[0]
