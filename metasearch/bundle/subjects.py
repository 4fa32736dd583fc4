"""The networks that a bench measures: those of bundles, and what lies beside them to be compared with.

Needs what `bench.py` needs: onnxruntime, numpy, pillow and the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from metasearch.bundle.contents import MODEL, REFERENCES, Bundle, read_bundle
from metasearch.bundle.schema import MOST_INTEGER

BUNDLE = "bundle"
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Subject:
    """A network to measure. role: bundle, or of a reference. digest: SHA-256 of its file. trial: None of a reference.

    accuracy: on the splits val and test. macs: of one input. model_bytes: of the tensors that it stores. All three as
    its bundle says, None where it does not. values: numbers that it computes for an input, 0 where nobody has counted.
    """

    name: str
    role: str
    path: Path
    digest: str
    input_shape: tuple[int, ...]
    study: str
    trial: int | None = None
    int8: bool = False
    accuracy: Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))
    macs: int | None = None
    model_bytes: int | None = None
    values: int = 0

    def example(self, batch: int) -> np.ndarray:
        """Return inputs at rest, noise: what is in them makes no difference."""
        shape, rng = (batch, *self.input_shape), np.random.default_rng(0)
        return rng.integers(0, 256, shape, np.uint8) if len(shape) == 4 else rng.random(shape, np.float32)


def subjects_of(folders: Sequence[Path]) -> list[Subject]:
    """Return the networks of bundles, then those of their references; a study's teacher once.

    The same file may stand under several names: two trials that came to one network, a student that is its own
    reference. Raises as `read_bundle` and `open_model` do.
    """
    bundles = [read_bundle(folder) for folder in folders]
    found = [_own(bundle) for bundle in bundles] + [each for bundle in bundles for each in _references(bundle)]
    return list({(subject.name, subject.digest): subject for subject in found}.values())


def _own(bundle: Bundle) -> Subject:
    study, trial = bundle.provenance["study"], bundle.provenance["trial"]
    digest, shape = bundle.files[MODEL], bundle.input_shape
    path, known = bundle.path(MODEL), {**_known(bundle.metrics), "values": _values(bundle, MODEL)}
    return Subject(bundle.name, BUNDLE, path, digest, shape, study, trial, bundle.int8, **known)


def _references(bundle: Bundle) -> Iterator[Subject]:
    study = bundle.provenance["study"]
    names = {
        "teacher": f"{study}: teacher",
        "student": f"{bundle.name}: uncompressed student",
        "float": f"{bundle.name}: before int8",
    }
    for role, file in REFERENCES.items():
        if file in bundle.files:
            digest, shape, path = bundle.files[file], bundle.input_shape, bundle.path(file)
            known = {**_known(bundle.references.get(role, {})), "values": _values(bundle, file)}
            yield Subject(names[role], role, path, digest, shape, study, **known)


def _known(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return what metrics say of a network, by the fields of Subject: a bundle's may be any numbers."""

    def within(name: str, most: int) -> float | None:
        return metrics[name] if name in metrics and 0 <= metrics[name] <= most else None

    counts = {name: within(name, MOST_INTEGER) for name in ("macs", "model_bytes")}
    return {
        "accuracy": {split: within(f"{split}_accuracy", 1) for split in SPLITS},
        **{name: None if count is None else int(count) for name, count in counts.items()},
    }


def _values(bundle: Bundle, file: str) -> int:
    """Return how many numbers a network computes for an input, once it is safe to open and runs.

    0 where onnx is not installed: the bundle's hashes are all that speaks for it then.
    """
    if find_spec("onnx") is None:
        return 0
    from metasearch.bundle.runtime import open_model

    _, values = open_model(bundle, file)
    return values
