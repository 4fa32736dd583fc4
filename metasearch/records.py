"""Frozen records that travel between trial, store and report, with JSON both ways.

Metrics are one mapping from name to number with the names of `METRICS`, everywhere the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

METRICS: dict[str, str] = {
    "val_accuracy": "maximize",
    "test_accuracy": "maximize",
    "val_balanced_accuracy": "maximize",
    "val_ece": "minimize",
    "teacher_agreement": "maximize",
    "parameters": "minimize",
    "macs": "minimize",
    "model_bytes": "minimize",
    "latency_ms": "minimize",
    "train_seconds": "minimize",
}
"""Every metric's name and the direction in which it is better. Accuracies, ECE and agreement lie in [0, 1];
macs are multiply-accumulates of one image; model_bytes are the bytes of all tensors the deployed network stores."""

Config = dict[str, Any]
"""A configuration: dotted parameter path -> number, string or bool."""


@dataclass(frozen=True)
class EpochReport:
    """What one training epoch gave. epoch: 1-based, of `epochs` in the whole pipeline. seconds: of this epoch."""

    stage: str
    epoch: int
    epochs: int
    train_loss: float
    val_accuracy: float
    macs: int
    learning_rate: float
    temperature: float
    seconds: float


@dataclass(frozen=True)
class StageResult:
    """What one stage of the pipeline (distill, prune, fine_tune, quantize) left behind, and what it took."""

    stage: str
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """The outcome of one pipeline run: the metrics of the network that would be deployed, and how it came about.

    artefacts: SHA-256 of each file that was kept, by its name.
    """

    config: Config
    seed: int
    metrics: Mapping[str, float]
    stages: tuple[StageResult, ...] = ()
    curve: tuple[EpochReport, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as one line of JSON; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
        """Return the record that `to_json` wrote."""
        data = json.loads(text)
        return cls(
            config=data["config"],
            seed=data["seed"],
            metrics=data["metrics"],
            stages=tuple(StageResult(**stage) for stage in data["stages"]),
            curve=tuple(EpochReport(**epoch) for epoch in data["curve"]),
            details=data["details"],
            artefacts=data.get("artefacts", {}),
        )
