"""ONNX files of lowered networks, float or int8, built node by node.

Nothing is traced: the graph repeats the list of operations, so that the file stores exactly `stored_tensors()`, holds
no path or comment, and has the same bytes for the same network. Int8 is written as QuantizeLinear and DequantizeLinear
around ordinary operators (QDQ); onnxruntime fuses them to QLinearConv, QLinearAdd, QLinearGlobalAveragePool and QGemm.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.models.lowered import (
    LOGITS,
    NORMALISED,
    Add,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    LoweredNetwork,
    MaxPool,
    Operation,
)
from metasearch.quantize import QuantizedNetwork, weight_zero_name, zero_point_name

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""The default of torch 2.15's own exporter; onnxruntime runs it from 1.17 on, the first with IR version 9."""
IR_VERSION = 9


@dataclass
class _Graph:
    """The nodes written so far, and the ONNX name of each value where it is read as float."""

    network: LoweredNetwork | QuantizedNetwork
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append one node and return the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def quantized(self, name: str) -> None:
        """Pass the float value `name_float` through uint8 where the network is int8, under the name `name`."""
        assert isinstance(self.network, QuantizedNetwork)
        activation = self.network.activations[name]
        parameters = [f"{activation.name}.scale", zero_point_name(activation)]
        self.add("QuantizeLinear", [f"{name}_float", *parameters], f"{name}_uint8")
        self.add("DequantizeLinear", [f"{name}_uint8", *parameters], name)

    def weights(self, operation: Convolution | Linear) -> list[str]:
        """Return the names of the operation's weight and, where it has one, bias, as floats."""
        name = operation.output
        stored = [f"{name}.weight"] + ([] if operation.bias is None else [f"{name}.bias"])
        if not isinstance(self.network, QuantizedNetwork):
            return stored
        scale = f"{name}.weight_scale"
        zero = [weight_zero_name(operation)] if isinstance(operation, Linear) else []
        floats = [self.add("DequantizeLinear", [stored[0], scale, *zero], f"{name}.weight_float", axis=0)]
        if operation.bias is not None:
            # The bias scale is a product of two stored scales; onnxruntime folds it away on loading.
            source = self.network.activations[operation.inputs[0]].name
            product = self.add("Mul", [f"{source}.scale", scale], f"{name}.bias_scale")
            floats.append(self.add("DequantizeLinear", [stored[1], product], f"{name}.bias_float", axis=0))
        return floats


def write_onnx(network: LoweredNetwork | QuantizedNetwork, path: str | os.PathLike[str]) -> None:
    """Write the network as an ONNX file, atomically: `path` holds the whole of it or what it held before.

    Input `input`: (batch, C, H, W) uint8 or (batch, F) float32, at rest; output `logits`: (batch, K) float32.
    Raises OSError if the file cannot be written.
    """
    import onnx

    model = _model(network)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def onnx_tensor_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of all tensors that an ONNX file stores."""
    import onnx
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(os.fspath(path)).graph.initializer)


def _model(network: LoweredNetwork | QuantizedNetwork) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(network)
    int8 = isinstance(network, QuantizedNetwork)
    image = len(network.input_shape) == 3
    value = graph.add("Cast", ["input"], "input_float", to=TensorProto.FLOAT) if image else "input"
    value = graph.add("Mul", [value, "normalisation.scale"], "input_scaled")
    graph.add("Add", [value, "normalisation.shift"], f"{NORMALISED}_float" if int8 else NORMALISED)
    if int8:
        graph.quantized(NORMALISED)
    for operation in network.operations:
        _add_operation(graph, operation)
    last = network.operations[-1]
    classes = len(last.weight) if isinstance(last, (Convolution, Linear)) else None
    element = TensorProto.UINT8 if image else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("input", element, ["batch", *network.input_shape])]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", classes])]
    initializers = [numpy_helper.from_array(tensor, name) for name, tensor in network.stored_tensors().items()]
    return helper.make_model(
        helper.make_graph(graph.nodes, "metasearch", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="metasearch",
    )


def _add_operation(graph: _Graph, operation: Operation) -> None:
    """Append the nodes of one operation; in int8 the clamp of QuantizeLinear at zero is the ReLU."""
    int8 = isinstance(graph.network, QuantizedNetwork)
    relu = getattr(operation, "relu", False) and not int8
    final = f"{operation.output}_float" if int8 and operation.output != LOGITS else operation.output
    output, inputs = f"{operation.output}_sum" if relu else final, list(operation.inputs)
    if isinstance(operation, Convolution):
        graph.add(
            "Conv",
            inputs + graph.weights(operation),
            output,
            kernel_shape=list(operation.weight.shape[2:]),
            strides=list(operation.stride),
            pads=[*operation.padding, *operation.padding],
            dilations=list(operation.dilation),
            group=operation.groups,
        )
    elif isinstance(operation, Linear):
        graph.add("Gemm", inputs + graph.weights(operation), output, transB=1)
    elif isinstance(operation, MaxPool):
        pads = [*operation.padding, *operation.padding]
        kernel, strides = list(operation.kernel), list(operation.stride)
        graph.add("MaxPool", inputs, output, kernel_shape=kernel, strides=strides, pads=pads)
    else:
        kinds = {Add: "Add", GlobalAveragePool: "GlobalAveragePool", Flatten: "Flatten"}
        graph.add(kinds[type(operation)], inputs, output)
    if relu:
        graph.add("Relu", [output], final)
    if int8 and operation.output != LOGITS:
        graph.quantized(operation.output)
