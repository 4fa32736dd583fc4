"""Meta-learned artefacts that a search needs and that are not there yet: made as Ray tasks, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import torch

from metasearch.errors import InputError
from metasearch.meta.making import MetaRequest, find_artefact, make_artefact
from metasearch.meta.policy_making import PolicyRequest, find_policy_network, make_policy_network
from metasearch.parameters import POLICY_METHOD
from metasearch.search.runner import Resources, ray_running

Request = MetaRequest | PolicyRequest


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


RETRIES = 3


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
