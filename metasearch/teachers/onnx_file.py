"""Networks in ONNX files, run by onnxruntime on the CPU.

Symbols: B batch; MACs of one input, from the shapes that ONNX infers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.teachers.features import check_names

if TYPE_CHECKING:
    import onnx

DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
UNCOUNTED = {"Attention", "ConvInteger", "ConvTranspose", "Einsum", "If", "Loop", "MatMulInteger", "QLinearConv"}
UNCOUNTED |= {"QLinearMatMul", "Scan"}
RECURRENT = {"LSTM", "GRU", "RNN"}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class OnnxNetwork:
    """An opened file.

    batch: how many inputs it takes at once, None for any number. dtype: of its input. shown: the values that can be
    read beside its first output.
    """

    session: Any
    batch: int | None
    dtype: torch.dtype
    shown: tuple[str, ...] = ()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the first output for prepared inputs, on the CPU."""
        first: str = self.session.get_outputs()[0].name
        return torch.from_numpy(np.asarray(self._run([first], inputs)[0]))

    def values(self, inputs: Tensor) -> dict[str, object]:
        """Return the shown values for prepared inputs by name, tensors on the CPU where they are tensors."""
        found = zip(self.shown, self._run(self.shown, inputs), strict=True)
        return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in found}

    def _run(self, names: Sequence[str], inputs: Tensor) -> list[Any]:
        outputs: list[Any] = self.session.run(list(names), {self.session.get_inputs()[0].name: inputs.cpu().numpy()})
        return outputs


def open_onnx(path: Path, *, place: str, shown: Sequence[str] = ()) -> OnnxNetwork:
    """Return the network in an ONNX file. shown: values of its graph that are to be read, too.

    Raises InputError if it is damaged, does not take one numeric tensor, or lacks a value.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; they come as exceptions, too
    # a graph that comes as bytes does not know where its large tensors are
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        model = _with_outputs(path, shown, place) if shown else str(path)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(place, f"cannot be opened by onnxruntime ({first_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InputError(place, "must take one tensor", f"inputs={len(inputs)}")
    if inputs[0].type not in DTYPES:
        raise InputError(place, f"must take one of {', '.join(DTYPES)}", inputs[0].type)
    size = inputs[0].shape[0] if inputs[0].shape else None
    return OnnxNetwork(session, size if isinstance(size, int) else None, DTYPES[inputs[0].type], tuple(shown))


def _with_outputs(path: Path, names: Sequence[str], place: str) -> bytes:
    """Return the file's graph with the named values as further outputs; onnxruntime infers their types."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    known = [name for node in model.graph.node for name in node.output if name]
    check_names(names, known, what=f"a value of {place}")
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    edited: bytes = model.SerializeToString()
    return edited


def files_of(path: Path) -> list[Path]:
    """Return the file and those in which it keeps large tensors."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf comes without stubs

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError:  # damaged: onnxruntime says what is wrong when the file is opened
        return [path]
    places = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "location"}
    return [path, *(path.parent / place for place in sorted(places) if (path.parent / place).is_file())]


def count_onnx(path: Path) -> tuple[int | None, int | None]:
    """Return the parameters and the MACs of one input; None for what the graph does not tell.

    Parameters are the elements of the stored float tensors, without BatchNorm's statistics; not counted where the file
    is quantized. MACs are those of Conv, Gemm, MatMul and recurrent layers; None where a shape stays unknown or an
    operator has multiplications that are not counted here.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)  # the shapes are in the file itself
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    quantized = any(node.op_type == "DequantizeLinear" for node in graph.node)
    parameters = sum(
        math.prod(t.dims) for name, t in stored.items() if t.data_type in floats and t.dims and name not in statistics
    )
    return None if quantized else parameters, _count_macs(model)


def _count_macs(model: onnx.ModelProto) -> int | None:
    nodes = model.graph.node
    foreign = any(node.domain not in {"", "ai.onnx"} for node in nodes)
    if foreign or any(node.op_type in UNCOUNTED for node in nodes):
        return None
    shapes, batch = _inferred_shapes(model)
    total = 0
    for node in nodes:
        if node.op_type in {"Conv", "Gemm", "MatMul", *RECURRENT}:
            known = [name in shapes for name in (*node.input[:2], node.output[0])]
            if not all(known[:2]) or (node.op_type not in RECURRENT and not known[2]):
                return None
            total += _node_macs(node, shapes)
    return total // batch


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    left, right = shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "Conv":  # right: (out, in / groups, *kernel)
        return math.prod(shapes[node.output[0]]) * math.prod(right[1:])
    if node.op_type in RECURRENT:  # left: (steps, B, in); right and the third input: weights of all gates
        return left[0] * left[1] * (math.prod(right) + math.prod(shapes[node.input[2]]))
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * left[-2 if transposed else -1]


def _inferred_shapes(model: onnx.ModelProto) -> tuple[Shapes, int]:
    """Return every shape that ONNX can infer with B fixed (at 1 where it is free), and B."""
    from onnx import shape_inference

    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    given = next(value for value in model.graph.input if value.name not in stored)
    first = given.type.tensor_type.shape.dim[0]
    if not first.HasField("dim_value"):
        first.dim_value = 1
    # what the exporter wrote down has names for the batch, which would win over the number
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: Shapes = dict(stored)
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes, first.dim_value
