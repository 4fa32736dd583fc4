"""A network as a device ran it: the record that `bench` writes, and what a latency model is fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metasearch.latency.work import Work


@dataclass(frozen=True)
class Timed:
    """A work and its time in a profile. ms: None where it was fused into another. nodes: events that it is the sum of.

    Every event is timed with an overhead, which the fit takes off.
    """

    work: Work
    ms: float | None = None
    nodes: int = 0

    def plain(self) -> list[Any]:
        """Return a short list for JSON."""
        return [self.work.plain(), self.ms, self.nodes]


@dataclass(frozen=True)
class Measured:
    """A network on a device, with one thread. digest: SHA-256 of its file. ms: the median CPU time of one image.

    layers: what onnxruntime's profile said of them.
    """

    name: str
    digest: str
    ms: float
    layers: tuple[Timed, ...]

    @property
    def works(self) -> tuple[Work, ...]:
        """What its operations have to do."""
        return tuple(layer.work for layer in self.layers)

    @property
    def macs(self) -> int:
        """The multiply-accumulates of one image."""
        return sum(work.macs for work in self.works)


def measured_of(record: Mapping[str, Any]) -> Measured:
    """Return what a record of `bench` says of a network. Raises KeyError, TypeError or ValueError for another."""
    layers = tuple(
        Timed(Work.from_plain(work), None if ms is None else float(ms), int(nodes))
        for work, ms, nodes in record["layers"]
    )
    ms = float(record["threads"]["1"]["cpu_ms"])
    if not 0 < ms < math.inf or not layers:
        raise ValueError("a network takes time, and has layers")
    return Measured(record["name"], record["digest"], ms, layers)
