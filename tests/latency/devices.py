"""A device that a test makes up: what it takes for any network is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from metasearch.latency.measured import Measured, Timed
from metasearch.latency.work import DENSE, DEPTHWISE, INPUT, LINEAR, Work, convolution_work, input_work, linear_work

OVERHEAD_OF_TIMING = 0.0007
TRUTH = {
    INPUT: (0.006, 0.0, 0.0001),
    DENSE: (0.001, 0.02, 0.0002),
    DEPTHWISE: (0.002, 2.0, 0.0),
    LINEAR: (0.0005, 0.05, 0.0),
}
"""Milliseconds for an operation, a million MACs and a kilobyte, of a device that a test makes up."""


def took(work: Work) -> float:
    overhead, mega_macs, kilobytes = TRUTH[work.kind]
    return overhead + mega_macs * work.macs / 1e6 + kilobytes * work.moved / 1e3


def network(rng: np.random.Generator, name: str, *, layers: bool = True) -> Measured:
    """Return a network of random width and kinds of convolutions, which a device of TRUTH took its exact time for."""
    size, channels = 16, int(rng.integers(2, 40))
    works = [input_work((1, size, size), image=True, int8=False)]
    inputs = 1
    for _ in range(int(rng.integers(2, 6))):
        depthwise = inputs > 1 and bool(rng.random() < 0.5)
        channels = inputs if depthwise else int(rng.integers(2, 40))
        weight = (channels, 1 if depthwise else inputs, 3, 3)
        works.append(convolution_work((inputs, size, size), weight, (channels, size, size), int8=False))
        inputs = channels
    works.append(linear_work((10, inputs), int8=False))
    timed = [
        Timed(work, took(work) + OVERHEAD_OF_TIMING if layers and work.kind != INPUT else None, 1) for work in works
    ]
    return Measured(name, name, sum(map(took, works)), tuple(timed))


def networks(count: int, *, layers: bool = True, seed: int = 0) -> list[Measured]:
    rng = np.random.default_rng(seed)
    return [network(rng, str(index), layers=layers) for index in range(count)]


def record(measured: Measured) -> dict[str, Any]:
    """Return what `bench` writes of a network, as far as a latency model needs it."""
    return {
        "name": measured.name,
        "digest": measured.digest,
        "threads": {"1": {"cpu_ms": measured.ms}},
        "layers": [layer.plain() for layer in measured.layers],
    }
