"""The network to deploy where a layer has no lowered form: the module as it is, in float.

It has the small interface of LoweredNetwork. Its ONNX file is written by torch's exporter, which is not asked to
optimise: what the file stores then is what the module stores (BatchNorm unfolded, counters of batches left out), so
that its bytes are known without the one to four CPU seconds that an export takes.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.models.lowered import Linear, LoweredNetwork, lower, normalisation_tensors
from metasearch.tasks.task import Normalisation

if TYPE_CHECKING:
    import onnx

INT8_LAYERS = "Conv2d, Linear (the last one), BatchNorm, ReLU, +, MaxPool2d, AdaptiveAvgPool2d(1), Flatten"
COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that only training reads."""


@dataclass(frozen=True, eq=False)
class ModuleNetwork:
    """The float network to deploy: normalisation, then the module in eval mode. reason: why it is not lowered."""

    normalisation: Normalisation
    input_shape: tuple[int, ...]
    module: nn.Module
    reason: str

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K), float32, of inputs at rest, on their device."""
        logits: Tensor = self.module.to(inputs.device)(self.normalisation(inputs))
        return logits

    def stored_tensors(self) -> dict[str, np.ndarray]:
        """Return every tensor that the deployed file stores, by its name in the module."""
        stored = normalisation_tensors(self.normalisation, self.input_shape)
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if name.rpartition(".")[2] != COUNTER:
                stored[name] = tensor.detach().cpu().numpy()
        return stored

    @property
    def stored_bytes(self) -> int:
        """The bytes of all stored tensors (`model_bytes`)."""
        return sum(tensor.nbytes for tensor in self.stored_tensors().values())


def deployable(
    model: nn.Module, *, normalisation: Normalisation, input_shape: tuple[int, ...]
) -> LoweredNetwork | ModuleNetwork:
    """Return the float network to deploy, lowered where each of its layers has a lowered form."""
    try:
        return lower(model, normalisation=normalisation, input_shape=input_shape)
    except TypeError as error:
        module = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
        return ModuleNetwork(normalisation, tuple(input_shape), module, str(error))


def require_int8(network: LoweredNetwork | ModuleNetwork) -> LoweredNetwork:
    """Return the network, which int8 can take. Raises InputError naming the layer that it cannot."""
    if isinstance(network, ModuleNetwork):
        raise InputError("quantize", f"int8 needs layers of: {INT8_LAYERS}; {network.reason}", "int8")
    last = network.operations[-1]
    if not isinstance(last, Linear) or last.relu:
        raise InputError(
            "quantize", f"int8 needs layers of: {INT8_LAYERS}; the last is a {type(last).__name__}", "int8"
        )
    return network


class FromRest(nn.Module):
    """The normalisation, with its two tensors stored, before the module."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: ModuleNetwork) -> None:
        super().__init__()
        scale, shift = network.normalisation.tensors(len(network.input_shape))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.module = network.module.to("cpu")

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.module(input.to(torch.float32) * self.scale + self.shift)
        return logits


def exported_module(network: ModuleNetwork, *, opset: int, ir_version: int) -> onnx.ModelProto:
    """Return the ONNX model that torch's exporter makes of the network, without paths, comments or source lines.

    Raises InputError where the exporter cannot take the network.
    """
    dtype = torch.uint8 if len(network.input_shape) == 3 else torch.float32
    example = torch.zeros(2, *network.input_shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        try:
            program: Any = torch.onnx.export(
                FromRest(network).eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = first_line(error.__cause__ or error)
            raise InputError("student.family", f"torch.onnx.export cannot take the network: {reason}") from error
    model: onnx.ModelProto = program.model_proto
    model.ir_version = ir_version
    model.producer_name = "metasearch"
    del model.metadata_props[:], model.graph.value_info[:]
    for described in (model, model.graph, *model.functions, *model.graph.node, *model.graph.initializer):
        described.doc_string = ""
        if hasattr(described, "metadata_props"):
            del described.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model
