"""A network as a device ran it: the record that `bench` writes, and what a latency model is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metasearch.latency.work import Work

LEAST_MS = 1e-6
"""What no network takes: a clock that never ticked."""


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
    """Return what a record of `bench` says of a network. Raises ValueError where it has no time of one thread."""
    layers = tuple(Timed(Work.from_plain(work), ms, nodes) for work, ms, nodes in record["layers"])
    ms = record["threads"].get("1", {}).get("cpu_ms", 0)
    if ms < LEAST_MS:
        raise ValueError(f"{record['name']} has no CPU time on one thread")
    return Measured(record["name"], record["digest"], ms, layers)
