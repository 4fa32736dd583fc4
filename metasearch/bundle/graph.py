"""Whether an ONNX graph of a stranger's is safe to run. Loads neither torch nor onnxruntime.

An ONNX file holds no code, but it can name a file to read, an operator of a library, or a constant of a terabyte. So a
graph may have operators of the standard and our own function only, no branches and no loops, every tensor inside the
file, and values whose sizes are known beforehand and fit a machine. How long it computes is not limited, but the check.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.functions import first_line

if TYPE_CHECKING:
    import onnx

DOMAIN, FUNCTION = "metasearch", "Unpack"
"""Our only function; `metasearch.export` writes it, but loads torch."""
STANDARD = {"", "ai.onnx"}
MOST_NODES = 50_000
MOST_VALUES = 2**28
"""The most numbers in all values of the graph together, for one input: a gigabyte of floats."""
MOST_FOLDED = 1024
"""The most numbers in a value that is computed here, such as the shape that a Reshape takes."""
MOST_INFERRED = 5_000_000
"""The most nodes that ONNX's inference looks at, again and again: minutes."""
BROADCAST = {"Add", "Div", "Mod", "Mul", "Sub"}
SHRINKING = {"Cast", "CastLike", "Constant", "Identity", "ReduceProd", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
FOLDED = BROADCAST | SHRINKING | {"Concat", "Expand", "Gather", "Range"}
"""The operators by which exporters make shapes: those of SHRINKING make no more numbers than they are given."""


def parse_graph(content: bytes) -> onnx.ModelProto:
    """Return the model in an ONNX file, which refers to nothing outside. Raises ValueError, one line, where it does."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf comes without stubs

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ValueError(f"is no ONNX file ({first_line(error)})") from error
    _check_operators(model)
    _check_tensors(model)
    return model


def check_sizes(model: onnx.ModelProto) -> int:
    """Return how many numbers all values of a graph have together, for one input.

    model: of `parse_graph`, with one input of which the first dimension is the batch. Raises ValueError where ONNX's
    checker does, or the values' sizes are too large or not known beforehand.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    try:
        onnx.checker.check_model(model)
        model = inline_local_functions(model)  # what they compute counts, too
        shapes = _Shapes(model).known
    except Exception as error:  # of ONNX's checker, its inference and its reference operators, which share no base
        raise ValueError(f"does not pass ONNX's checker ({first_line(error)})") from error
    if model.functions:  # of another opset: they were left, in silence
        raise ValueError(f"{DOMAIN}.{FUNCTION} must be of the opset of its graph")
    total = 0
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name not in shapes:
                raise ValueError(f"must have values of known sizes only, got {name[:80]!r} of {node.op_type[:80]!r}")
            total += math.prod(shapes[name])
            if total > MOST_VALUES:
                rule = f"must compute at most {MOST_VALUES} numbers for an input"
                raise ValueError(f"{rule}, got {shapes[name]} of {node.op_type[:80]!r}")
    return total


def fitting_batch(batch: int, values: int, input_shape: Sequence[int]) -> int:
    """Return how many inputs, at most `batch`, a network takes at once so that all it computes fits a machine.

    values: numbers that it computes for an input.
    """
    return max(1, min(batch, MOST_VALUES // (values + math.prod(input_shape))))


def dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return a value's dimensions, None for one that is free."""
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _check_operators(model: onnx.ModelProto) -> None:
    """Raise ValueError for a foreign operator, a branch, a loop and a part for training."""
    functions = [(function.domain, function.name) for function in model.functions]
    if functions not in ([], [(DOMAIN, FUNCTION)]):
        raise ValueError(f"must define no function but {DOMAIN}.{FUNCTION}, got {str(functions)[:80]}")
    if model.training_info:
        raise ValueError("must not hold a part for training")
    bodies = [(model.graph.node, bool(functions)), *((function.node, False) for function in model.functions)]
    calls = sum(node.domain not in STANDARD for node in model.graph.node)
    if len(model.graph.node) + sum(calls * len(function.node) for function in model.functions) > MOST_NODES:
        raise ValueError(f"must have at most {MOST_NODES} nodes, those of each call of {FUNCTION} included")
    for nodes, may_call in bodies:  # functions that call functions could grow without bound
        for node in nodes:
            ours = may_call and (node.domain, node.op_type) == (DOMAIN, FUNCTION)
            if node.domain not in STANDARD and not ours:
                rule = f"must have operators of the ONNX standard and {DOMAIN}.{FUNCTION} only"
                raise ValueError(f"{rule}, got {node.domain[:80]!r} {node.op_type[:80]!r}")
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ValueError(f"must have neither branches nor loops, got {node.op_type[:80]!r}")


def _check_tensors(model: onnx.ModelProto) -> None:
    """Raise ValueError for a tensor that lies in another file, or that is larger than the bytes it takes here."""
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            where = [entry.value[:80] for entry in tensor.external_data if entry.key == "location"]
            raise ValueError(f"must hold its tensors itself, got one in another file, {where}")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor. Raises ValueError for a sparse one, whose size its bytes do not bound."""
    yield from model.graph.initializer
    sparse = bool(model.graph.sparse_initializer)
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        for attribute in node.attribute:
            sparse = sparse or attribute.HasField("sparse_tensor") or bool(attribute.sparse_tensors)
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    if sparse:
        raise ValueError("must not hold sparse tensors, which take more memory than bytes")


class _Shapes:
    """The shapes of a graph's values for one input, as far as they follow from the graph.

    known: by name. What the file itself says of its values is not believed. ONNX's inference does not look through all
    of the small computations that make a shape, so those are done here, and it is asked again.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import ModelProto, helper, numpy_helper

        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.known: dict[str, tuple[int, ...]] = {}
        self.numbers: dict[str, np.ndarray] = {}
        graph = self.model.graph
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")
        del graph.value_info[:], graph.initializer[:]
        for tensor in model.graph.initializer:
            if math.prod(tensor.dims) <= MOST_FOLDED:
                self._keep(tensor.name, numpy_helper.to_array(tensor))
            else:  # its shape is enough
                graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        self.inferred = 0
        self.known |= self._inferred()
        while self._fold():
            self.known |= self._inferred()

    def _keep(self, name: str, numbers: np.ndarray) -> None:
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(numbers, name))
        self.known[name] = numbers.shape
        if numbers.size <= MOST_FOLDED:
            self.numbers[name] = numbers

    def _inferred(self) -> dict[str, tuple[int, ...]]:
        from onnx import shape_inference

        self.inferred += len(self.model.graph.node)
        if self.inferred > MOST_INFERRED:
            raise ValueError(f"its sizes are not known after {MOST_INFERRED} steps")
        # not data_prop: its Range of a trillion takes all memory
        graph = shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True).graph
        found = {value.name: dimensions(value) for value in (*graph.value_info, *graph.input, *graph.output)}
        known = {name: tuple(size for size in shape if size is not None) for name, shape in found.items()}
        return {name: shape for name, shape in known.items() if len(shape) == len(found[name])}

    def _fold(self) -> bool:
        """Replace nodes whose small results are known by those; return whether there was one."""
        from onnx.reference import ReferenceEvaluator

        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        graph, left = self.model.graph, []
        for node in graph.node:
            if node.op_type == "Shape" and node.input[0] in self.known:
                shape = self.known[node.input[0]]
                ends: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
                result = np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)
            elif self._is_foldable(node):
                given = {name: self.numbers[name] for name in node.input if name}
                made: Any = ReferenceEvaluator(node, opsets=opsets).run(None, given)
                result = np.asarray(made[0])
            else:
                left.append(node)
                continue
            self._keep(node.output[0], result)
        folded = len(left) < len(graph.node)
        if folded:
            del graph.node[:]
            graph.node.extend(left)
        return folded

    def _is_foldable(self, node: onnx.NodeProto) -> bool:
        """Return whether a node makes few numbers out of a few that are known."""
        if node.op_type not in FOLDED or not all(name in self.numbers for name in node.input if name):
            return False
        return _most_made(node, [self.numbers[name] for name in node.input if name]) <= MOST_FOLDED


def _most_made(node: onnx.NodeProto, given: Sequence[np.ndarray]) -> float:
    """Return how many numbers a node of FOLDED makes, at most."""
    if node.op_type in BROADCAST:
        return math.prod(np.broadcast_shapes(*(numbers.shape for numbers in given)))
    if node.op_type == "Expand":
        return math.prod(np.broadcast_shapes(given[0].shape, tuple(map(int, given[1]))))
    if node.op_type == "Range":
        start, limit, step = (abs(float(number)) for number in given)
        return (start + limit) / step if step else math.inf
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return int(given[0].size // max(1, given[0].shape[axis]) * given[1].size)
    if node.op_type == "Concat":
        return sum(int(numbers.size) for numbers in given)
    return 0
