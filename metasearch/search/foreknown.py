"""Objectives that a configuration tells before it is trained: the predicted latency, where nothing reshapes students.

Pruning decides by trained weights how many channels each layer keeps, and with it how long the network takes. In a
space without it a sampler need not learn the latency from trials: it can ask for that of every candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from metasearch.configuration import Configuration
from metasearch.latency.network import works_of
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.module_network import deployable
from metasearch.search.benchmarks import KnownLatency
from metasearch.search.space import Space
from metasearch.tasks import Task

Foreknown = Mapping[str, Callable[[Mapping[str, Any]], float]]
"""Objective -> function of what a trial chooses."""
RESHAPING = ("pruning_ratio", "student.width.")


def foreknown(space: Space, task: Task, latency: KnownLatency | None) -> Foreknown:
    """Return what is known of each configuration of a space beforehand, by objective; nothing without a model.

    A family of the user's may refuse some widths, and is left to the trials.
    """
    families = next(setting.choices for setting in space.settings if setting.path == "student.family")
    if latency is None or _reshapes(space) or not set(families) <= FAMILIES.keys():
        return {}
    model = latency.model

    @cache
    def predicted(spec: NetworkSpec, int8: bool) -> float:
        network = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
        lowered = deployable(network, normalisation=task.normalisation, input_shape=task.input_shape)
        return model.predict(works_of(lowered, int8=int8))

    def latency_ms(chosen: Mapping[str, Any]) -> float:
        c = Configuration.of({**space.fixed, **chosen})
        return predicted(NetworkSpec(c.family, width=round(c.width(0.0)), depth=c.depth), c.quantize != "none")

    return {"latency_ms": latency_ms}


def _reshapes(space: Space) -> bool:
    """Whether a student may end with other channels than it began with."""
    numbers = [s for s in space.settings if s.path.startswith(RESHAPING) and not s.path.endswith(".kind")]
    return any(setting.bounds()[1] > 0 for setting in numbers)
