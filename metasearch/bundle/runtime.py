"""A bundle's network, checked and opened with onnxruntime. Loads neither torch nor ray.

An ONNX file holds no code, but it can name a file to read, an operator of a library, or a constant of a terabyte. So
the graph is read here first: operators of the standard and our own function only, no branches and no loops, every
tensor inside the file, every shape known and of a size that a machine can hold.
Symbols: N inputs, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.bundle.contents import MODEL, Bundle, read_bundle
from metasearch.bundle.predict import logits_of, open_session, softmax
from metasearch.errors import InputError
from metasearch.functions import first_line

if TYPE_CHECKING:
    import onnx

DOMAIN, FUNCTION = "metasearch", "Unpack"
"""Our only function; `metasearch.export` writes it, but loads torch."""
CLASSES = "classes"
STANDARD = {"", "ai.onnx"}
AXIS = "metasearch.axis"
MOST_NODES = 50_000
MOST_VALUES = 2**28
"""The most numbers in one value of the graph, for one input: a gigabyte of floats."""


@dataclass(frozen=True)
class Classifier:
    """A bundle with its network opened."""

    bundle: Bundle
    session: Any

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Return the logits (N, K) of inputs (N, C, H, W) uint8 or (N, F) float32."""
        return logits_of(self.session, inputs)

    def classify(self, inputs: np.ndarray) -> list[tuple[str, float]]:
        """Return the name and the probability of the likeliest class of each input."""
        probabilities = softmax(self.logits(inputs))
        names = self.bundle.class_names
        return [(names[best], float(row[best])) for row in probabilities for best in [int(row.argmax())]]


def open_bundle(folder: Path, *, threads: int = 1) -> Classifier:
    """Return the network of the bundle in a folder, after every check of `read_bundle` and `check_model`, and one run.

    Raises as they do, and InputError where onnxruntime cannot run it.
    """
    bundle = read_bundle(folder)
    return Classifier(bundle, open_model(bundle, threads=threads))


def open_model(bundle: Bundle, name: str = MODEL, *, threads: int = 1) -> Any:
    """Return onnxruntime's session of a bundle's ONNX file, checked and run once. name: of MODEL or a reference."""
    content = check_model(bundle, name)
    example = np.zeros((2, *bundle.input_shape), np.uint8 if bundle.is_image else np.float32)
    try:
        session = open_session(content, threads=threads)
        logits = logits_of(session, example)
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(str(bundle.path(name)), f"cannot be run by onnxruntime ({first_line(error)})") from error
    if logits.shape != (2, len(bundle.class_names)):
        raise InputError(str(bundle.path(name)), f"must give {len(bundle.class_names)} logits an input", logits.shape)
    return session


def check_model(bundle: Bundle, name: str = MODEL) -> bytes:
    """Return the content of a bundle's ONNX file, which is safe to open and fits bundle.json.

    Raises InputError, one line, for the first rule that it breaks.
    """
    path = bundle.path(name)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle.files[name]:
        raise InputError(str(path), "was changed since the bundle was read")
    try:
        model = _parsed(content)
        _check_operators(model)
        _check_tensors(model)
        _check_interface(model, bundle, opset=bundle.opset if name == MODEL else None)
        _check_sizes(model)
    except ValueError as error:
        raise InputError(str(path), str(error)) from error
    return content


def _parsed(content: bytes) -> onnx.ModelProto:
    """Return the file as it is, without what it may refer to. Raises ValueError if it is no ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf comes without stubs

    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ValueError(f"is no ONNX file ({first_line(error)})") from error


def _check_operators(model: onnx.ModelProto) -> None:
    """Raise ValueError for a foreign operator, a branch, a loop and a part for training."""
    functions = [(function.domain, function.name) for function in model.functions]
    if functions not in ([], [(DOMAIN, FUNCTION)]):
        raise ValueError(f"must define no function but {DOMAIN}.{FUNCTION}, got {functions[:3]!r}")
    if model.training_info:
        raise ValueError("must not hold a training part")
    bodies = [(model.graph.node, bool(functions)), *((function.node, False) for function in model.functions)]
    if sum(len(nodes) for nodes, _ in bodies) > MOST_NODES:
        raise ValueError(f"must have at most {MOST_NODES} nodes")
    for nodes, may_call in bodies:  # a function that calls functions could grow without bound
        for node in nodes:
            ours = may_call and (node.domain, node.op_type) == (DOMAIN, FUNCTION)
            if node.domain not in STANDARD and not ours:
                rule = f"must use operators of the ONNX standard and {DOMAIN}.{FUNCTION} only"
                raise ValueError(f"{rule}, got {node.domain[:80]!r} {node.op_type[:80]!r}")
            for attribute in node.attribute:
                if attribute.HasField("g") or attribute.graphs:
                    raise ValueError(f"must have neither branches nor loops, got {node.op_type[:80]!r}")


def _check_tensors(model: onnx.ModelProto) -> None:
    """Raise ValueError for a tensor that lies in another file, or that is larger than the bytes it takes here."""
    if model.graph.sparse_initializer:
        raise ValueError("must not hold sparse tensors, which take more memory than bytes")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            where = [entry.value[:80] for entry in tensor.external_data if entry.key == "location"]
            raise ValueError(f"must hold its tensors itself, got one in another file {where}")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ValueError("must not hold sparse tensors, which take more memory than bytes")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


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
        found = [(v.name[:80], v.type.tensor_type.elem_type, _dimensions(v)) for v in values]
        if found != [(name, kind, (None, *shape))]:
            raise ValueError(f"must have one {name} of any number of {shape}, as bundle.json says, got {found[:3]!r}")
    for entry in model.metadata_props:
        if entry.key == CLASSES and entry.value != json.dumps(list(bundle.class_names)):
            raise ValueError("must name the classes of bundle.json in its metadata")


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return a value's dimensions, None for one that is free."""
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _check_sizes(model: onnx.ModelProto) -> None:
    """Raise ValueError where ONNX's checker does, or a value's size is too large or depends on the input's numbers."""
    import onnx

    try:
        onnx.checker.check_model(model)
        sizes = _sizes(model)
    except Exception as error:  # of ONNX's checker and its shape inference, which share no base
        raise ValueError(f"does not pass ONNX's checker ({first_line(error)})") from error
    for node in model.graph.node:
        for name in node.output:
            if sizes.get(name, 0) > MOST_VALUES:
                rule = f"must hold at most {MOST_VALUES} numbers in a value"
                raise ValueError(f"{rule}, got {sizes[name]} from {node.op_type[:80]!r}")


def _sizes(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return the size of every value that ONNX can infer, for one input."""
    import onnx

    one = onnx.ModelProto()
    one.CopyFrom(model)
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    one.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    del one.graph.value_info[:]  # what the file says of itself is what is in doubt
    shapes = _shapes(one)
    # torch's exporter makes a list of one from the batch's size by Reshape, which ONNX's inference of numbers lacks
    one.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), AXIS))
    for node in one.graph.node:
        if node.op_type == "Reshape" and shapes.get(node.input[0]) == () and shapes.get(node.output[0]) == (1,):
            node.CopyFrom(onnx.helper.make_node("Unsqueeze", [node.input[0], AXIS], list(node.output)))
    return {name: math.prod(shape) for name, shape in _shapes(one).items()}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {}
    for value in (*graph.value_info, *graph.output):
        dimensions = _dimensions(value)
        known = tuple(size for size in dimensions if size is not None)
        if value.type.tensor_type.HasField("shape") and len(known) == len(dimensions):
            shapes[value.name] = known
    return shapes
