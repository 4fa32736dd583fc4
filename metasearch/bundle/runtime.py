"""A bundle's network, checked and opened with onnxruntime. Loads neither torch nor ray.

Symbols: N inputs, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.bundle.contents import MODEL, Bundle, read_bundle
from metasearch.bundle.graph import check_sizes, dimensions, fitting_batch, parse_graph
from metasearch.bundle.predict import logits_of, open_session, softmax
from metasearch.errors import InputError
from metasearch.functions import first_line

if TYPE_CHECKING:
    import onnx

CLASSES = "classes"
"""metasearch.export.CLASSES, which is not imported here because it loads torch."""
Prediction = list[tuple[str, float]]
"""Classes and their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Classifier:
    """A bundle with its network opened. batch: inputs that it takes at once."""

    bundle: Bundle
    session: Any
    batch: int = 64

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Return the logits (N, K) of inputs (N, C, H, W) uint8 or (N, F) float32."""
        starts = range(0, max(len(inputs), 1), self.batch)
        return np.concatenate([logits_of(self.session, inputs[start : start + self.batch]) for start in starts])

    def classify(self, inputs: np.ndarray) -> list[tuple[str, float]]:
        """Return the name and the probability of the likeliest class of each input."""
        probabilities = softmax(self.logits(inputs))
        names = self.bundle.class_names
        return [(names[best], float(row[best])) for row in probabilities for best in [int(row.argmax())]]


def likeliest(probabilities: np.ndarray, class_names: Sequence[str], *, top: int) -> Prediction:
    """Return the `top` likeliest classes by the probabilities (K,) of an input; of equal ones the first."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(class_names[index], float(probabilities[index])) for index in best]


def described(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON has it: {"class": ..., "probability": ..., "top": [the same of each]}."""
    top = [{"class": name, "probability": probability} for name, probability in prediction]
    return top[0] | {"top": top}


def open_bundle(folder: Path, *, threads: int = 1, batch: int = Classifier.batch) -> Classifier:
    """Return the network of the bundle in a folder, after every check of `read_bundle` and `check_model`, and one run.

    batch: inputs that it takes at once, fewer where so many would not fit a machine. Raises as they do, and InputError
    where onnxruntime cannot run it.
    """
    bundle = read_bundle(folder)
    session, values = open_model(bundle, threads=threads)
    return Classifier(bundle, session, fitting_batch(batch, values, bundle.input_shape))


def open_model(bundle: Bundle, name: str = MODEL, *, threads: int = 1) -> tuple[Any, int]:
    """Return onnxruntime's session of a bundle's ONNX file, and how many numbers it computes for an input.

    name: of MODEL or a reference. It is checked and run once: raises as `open_bundle` does.
    """
    content, values = check_model(bundle, name)
    return open_content(bundle, content, name, threads=threads), values


def open_content(bundle: Bundle, content: bytes, name: str = MODEL, *, threads: int = 1) -> Any:
    """Return onnxruntime's session of what `check_model` returned for the file of this name, run once.

    Raises InputError where onnxruntime cannot run it, or gives other logits than bundle.json says.
    """
    example = np.zeros((2, *bundle.input_shape), np.uint8 if bundle.is_image else np.float32)
    try:
        session = open_session(content, threads=threads)
        logits = logits_of(session, example)
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(str(bundle.path(name)), f"cannot be run by onnxruntime ({first_line(error)})") from error
    if logits.shape != (2, len(bundle.class_names)):
        raise InputError(str(bundle.path(name)), f"must give {len(bundle.class_names)} logits an input", logits.shape)
    return session


def check_model(bundle: Bundle, name: str = MODEL) -> tuple[bytes, int]:
    """Return the content of a bundle's ONNX file, and how many numbers it computes for an input.

    It is safe to open and fits bundle.json. Raises InputError, one line, for the first rule that it breaks.
    """
    path = bundle.path(name)
    try:
        content = path.read_bytes()
    except OSError as error:  # it was there when bundle.json was read
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != bundle.files[name]:
        raise InputError(str(path), "was changed since the bundle was read")
    try:
        model = parse_graph(content)
        _check_interface(model, bundle, opset=bundle.opset if name == MODEL else None)
        values = check_sizes(model)
    except ValueError as error:
        raise InputError(str(path), str(error)) from error
    return content, values


def _check_interface(model: onnx.ModelProto, bundle: Bundle, *, opset: int | None) -> None:
    """Raise ValueError unless inputs, outputs, opset and class names are those of bundle.json."""
    from onnx import TensorProto

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opset is not None and opsets.get("", opsets.get("ai.onnx")) != opset:
        raise ValueError(f"must be of opset {opset}, as bundle.json says, got {opsets!r}")
    element = TensorProto.UINT8 if bundle.is_image else TensorProto.FLOAT
    for values, name, kind, shape in (
        (model.graph.input, "input", element, bundle.input_shape),
        (model.graph.output, "logits", TensorProto.FLOAT, (len(bundle.class_names),)),
    ):
        found = [(v.name[:80], v.type.tensor_type.elem_type, dimensions(v)) for v in values]
        if found != [(name, kind, (None, *shape))]:
            raise ValueError(f"must have one {name} of any number of {shape}, as bundle.json says, got {found[:3]!r}")
    for entry in model.metadata_props:
        if entry.key == CLASSES and entry.value != json.dumps(list(bundle.class_names)):
            raise ValueError("must name the classes of bundle.json in its metadata")
