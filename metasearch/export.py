"""ONNX files of lowered networks, float or int8, built node by node.

Nothing is traced: the graph repeats the list of operations, so that the file stores exactly `stored_tensors()`, holds
no path or comment, and has the same bytes for the same network. Int8 is written as QuantizeLinear and DequantizeLinear
around ordinary operators (QDQ); onnxruntime fuses them to QLinearConv, QLinearAdd, QLinearGlobalAveragePool and QGemm.
A packed weight (metasearch.models.packing) goes through the model's own function `Unpack`, made of standard operators;
onnxruntime expands it when it loads the file, so that what runs is the same as from a dense weight.
A network with a layer that has no lowered form is left to torch's exporter (models/module_network.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
from metasearch.models.module_network import ModuleNetwork, exported_module
from metasearch.models.packing import SHARED, part_names
from metasearch.quantize import QuantizedNetwork, weight_zero_name, zero_point_name

if TYPE_CHECKING:
    import numpy as np
    import onnx

OPSET = 20
"""The default of torch 2.15's own exporter; onnxruntime runs it from 1.17 on, the first with IR version 9."""
IR_VERSION = 9
DOMAIN = "metasearch"
"""Where the function `Unpack` is defined: within the file itself."""
CLASSES = "classes"


@dataclass
class _Graph:
    """The nodes written so far, and the ONNX name of each value where it is read as float."""

    network: LoweredNetwork | QuantizedNetwork
    stored: Mapping[str, np.ndarray]
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
        if (weight := f"{name}.weight") not in self.stored:
            self.add("Unpack", [*part_names(weight, tuple(operation.weight.shape)), *SHARED], weight, domain=DOMAIN)
        stored = [weight] + ([] if operation.bias is None else [f"{name}.bias"])
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


def write_onnx(
    network: LoweredNetwork | QuantizedNetwork | ModuleNetwork,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] = (),
) -> None:
    """Write the network as an ONNX file, atomically: `path` holds the whole of it or what it held before.

    Input `input`: (batch, C, H, W) uint8 or (batch, F) float32, at rest; output `logits`: (batch, K) float32.
    class_names: K names, kept as a JSON list in the model's metadata under `classes`, where any are given.
    Raises OSError if the file cannot be written, InputError if torch's exporter, which writes a ModuleNetwork, cannot
    take it.
    """
    import onnx

    if isinstance(network, ModuleNetwork):
        model = exported_module(network, opset=OPSET, ir_version=IR_VERSION)
    else:
        model = _model(network)
    if class_names:
        onnx.helper.set_model_props(model, {CLASSES: json.dumps(list(class_names))})
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

    stored = network.stored_tensors()
    graph = _Graph(network, stored)
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
    initializers = [numpy_helper.from_array(tensor, name) for name, tensor in stored.items()]
    functions = [_unpack()] if SHARED.keys() <= stored.keys() else []
    own = [helper.make_opsetid(DOMAIN, 1)] if functions else []
    return helper.make_model(
        helper.make_graph(graph.nodes, "metasearch", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", OPSET), *own],
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="metasearch",
    )


def _unpack() -> onnx.FunctionProto:
    """Return the function that expands a packed weight, step by step `metasearch.models.packing.unpack`.

    Scattering the values to NonZero of the mask would be shorter, but onnxruntime 1.31 does not fold NonZero on load.
    """
    from onnx import TensorProto, helper

    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("BitwiseAnd", ["mask", "bits"], "set", {}),  # (n / 8, 1) and (8,) -> (n / 8, 8)
        ("Reshape", ["set", "flat"], "padded", {}),
        ("ReduceProd", ["shape"], "size", {"keepdims": 1}),
        ("Slice", ["padded", "first", "size"], "flat_set", {}),  # (n,)
        ("Cast", ["flat_set"], "present_bool", {"to": TensorProto.BOOL}),
        ("Cast", ["present_bool"], "present", {"to": TensorProto.INT32}),
        ("Squeeze", ["first"], "axis", {}),  # the standard wants a scalar here, onnxruntime would take both
        ("CumSum", ["present", "axis"], "count", {}),
        ("Mul", ["count", "present"], "index", {}),
        ("Gather", ["values", "index"], "flat_weight", {}),
        ("Reshape", ["flat_weight", "shape"], "weight", {}),
    ]
    nodes = [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in steps]
    inputs = ["mask", "values", "shape", "bits", "flat", "first"]  # the last three in the order of SHARED
    return helper.make_function(DOMAIN, "Unpack", inputs, ["weight"], nodes, [helper.make_opsetid("", OPSET)])


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
