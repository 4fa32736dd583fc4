"""A trained network as a short list of the operations that the deployed network runs.

`lower` traces a module (torch.fx), folds every BatchNorm into the convolution or linear layer before it and fuses ReLU.
What is left is a graph: each operation names the values it reads and the one it makes, so that branches and residual
sums need nothing more than the list. The same operations, with int8 weights, make the quantized network.
Symbols: B batch, K classes; inputs at rest are (B, C, H, W) uint8 or (B, F) float32.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from metasearch.functions import first_line
from metasearch.models.packing import stored_weights
from metasearch.tasks.task import Normalisation

NORMALISED = "normalised"
"""The name of the first value, the normalised input; the value made last is `LOGITS`."""
LOGITS = "logits"

VANISHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Layers that do nothing in eval mode."""

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Convolution:
    """A 2-d convolution, then ReLU where `relu`. weight: (out, in / groups, kernel height, kernel width)."""

    inputs: tuple[str, ...]
    output: str
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Linear:
    """A fully connected layer, then ReLU where `relu`. weight: (out, in)."""

    inputs: tuple[str, ...]
    output: str
    weight: Tensor
    bias: Tensor | None
    relu: bool = False


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape, then ReLU where `relu`."""

    inputs: tuple[str, ...]
    output: str
    relu: bool = False


@dataclass(frozen=True)
class MaxPool:
    """The largest value of each window, per channel."""

    inputs: tuple[str, ...]
    output: str
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean over all pixels: (B, C, H, W) -> (B, C, 1, 1)."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Flatten:
    """All dimensions after the batch as one."""

    inputs: tuple[str, ...]
    output: str


Operation = Convolution | Linear | Add | MaxPool | GlobalAveragePool | Flatten


@dataclass(frozen=True, eq=False)
class LoweredNetwork:
    """The float network to deploy: normalisation, then operations in an order in which they can run."""

    normalisation: Normalisation
    input_shape: tuple[int, ...]
    operations: tuple[Operation, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K), float32, of inputs at rest, on their device."""
        return run(self.operations, self.normalisation(inputs), apply)

    def stored_tensors(self) -> dict[str, np.ndarray]:
        """Return every tensor that the deployed file stores, by its name there; sparse weights are packed."""
        stored = normalisation_tensors(self.normalisation, self.input_shape) | weight_tensors(self.operations)
        for operation in self.operations:
            if isinstance(operation, (Convolution, Linear)) and operation.bias is not None:
                stored[f"{operation.output}.bias"] = operation.bias.numpy()
        return stored

    @property
    def stored_bytes(self) -> int:
        """The bytes of all stored tensors (`model_bytes`)."""
        return sum(tensor.nbytes for tensor in self.stored_tensors().values())

    def float_tensors(self) -> dict[str, Tensor]:
        """Return every weight and bias, dense, by its operation's output and its own name."""
        return {
            f"{operation.output}.{name}": tensor
            for operation in self.operations
            if isinstance(operation, (Convolution, Linear))
            for name, tensor in (("weight", operation.weight), ("bias", operation.bias))
            if tensor is not None
        }

    def with_float_tensors(self, tensors: Mapping[str, Tensor]) -> LoweredNetwork:
        """Return the network with other weights and biases, of the same names and shapes; else raises ValueError."""
        own = self.float_tensors()
        if {name: tensor.shape for name, tensor in tensors.items()} != {n: t.shape for n, t in own.items()}:
            raise ValueError("must hold the weights and biases of this network")
        operations = tuple(
            replace(o, weight=tensors[f"{o.output}.weight"], bias=tensors.get(f"{o.output}.bias"))
            if isinstance(o, (Convolution, Linear))
            else o
            for o in self.operations
        )
        return replace(self, operations=operations)


def normalisation_tensors(normalisation: Normalisation, input_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the scale and shift of the input, shaped to broadcast over it, under the names they are stored by."""
    scale, shift = normalisation.tensors(len(input_shape))
    return {"normalisation.scale": scale.numpy(), "normalisation.shift": shift.numpy()}


def weight_tensors(operations: Sequence[Operation]) -> dict[str, np.ndarray]:
    """Return what is stored for the weights of all operations; `OUTPUT.weight` where dense, its parts where packed."""
    weighted = [operation for operation in operations if isinstance(operation, (Convolution, Linear))]
    return stored_weights({f"{operation.output}.weight": operation.weight.numpy() for operation in weighted})


def run(operations: Sequence[Operation], value: Tensor, step: Callable[..., Tensor]) -> Tensor:
    """Return what the last operation makes from the normalised input `value`, each run as step(operation, *inputs).

    A value is forgotten after its last reader, so that memory stays near that of two layers.
    """
    last_reader = {name: index for index, operation in enumerate(operations) for name in operation.inputs}
    values = {NORMALISED: value}
    for index, operation in enumerate(operations):
        value = step(operation, *(values[name] for name in operation.inputs))
        for name in set(operation.inputs):
            if last_reader[name] == index:
                del values[name]
        values[operation.output] = value
    return value


def apply(operation: Operation, *inputs: Tensor) -> Tensor:
    """Return what one operation makes from its inputs, in the dtype of its weights, on the inputs' device."""
    if isinstance(operation, (Convolution, Linear)):
        result = apply_weights(operation, inputs[0], operation.weight, operation.bias)
    elif isinstance(operation, Add):
        result = inputs[0] + inputs[1]
    elif isinstance(operation, MaxPool):
        result = F.max_pool2d(inputs[0], operation.kernel, operation.stride, operation.padding)
    elif isinstance(operation, GlobalAveragePool):
        result = inputs[0].mean(dim=(2, 3), keepdim=True)
    else:
        result = inputs[0].flatten(1)
    return result.relu_() if getattr(operation, "relu", False) else result


def apply_weights(operation: Convolution | Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the operation's products with the given weight and bias in place of its own, without its ReLU."""
    weight, bias = weight.to(x.device), None if bias is None else bias.to(x.device)
    if isinstance(operation, Linear):
        return F.linear(x, weight, bias)
    stride, padding, dilation = operation.stride, operation.padding, operation.dilation
    return F.conv2d(x, weight, bias, stride, padding, dilation, operation.groups)


def lower(model: nn.Module, *, normalisation: Normalisation, input_shape: tuple[int, ...]) -> LoweredNetwork:
    """Return the network as it behaves in eval mode, with BatchNorm folded and ReLU fused; the model stays as it is.

    normalisation: from inputs at rest to what the model takes. input_shape: (C, H, W) or (F,), of one input.
    Raises TypeError naming the layer, for one that has no lowered form.
    """
    network = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    graph = trace(network)
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), VANISHING):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    operations: list[Operation] = []
    index: dict[fx.Node, int] = {}  # which operation made the node's value; -1: it is the normalised input
    for node in graph.nodes:
        if node.op == "placeholder" and not index:
            index[node] = -1
            continue
        sources = [source for source in (*node.args, *node.kwargs.values()) if isinstance(source, fx.Node)]
        if node.op == "output":
            if len(sources) != 1 or index[sources[0]] != len(operations) - 1 or not operations:
                raise TypeError("the network must return one tensor, and its last layer must make it")
            continue
        layer, place = called_layer(node, network)
        made_by = index[sources[0]]
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU)):
            if made_by < 0 or len(sources[0].users) != 1:
                raise TypeError(f"layer {place}: the layer before it must feed nothing else")
            operations[made_by] = _fuse(operations[made_by], layer, place)
            index[node] = made_by
        else:
            names = tuple(NORMALISED if index[s] < 0 else operations[index[s]].output for s in sources)
            index[node] = len(operations)
            operations.append(_operation(layer, names, place, len(operations) + 1))
    operations[-1] = replace(operations[-1], output=LOGITS)
    return LoweredNetwork(normalisation, tuple(input_shape), tuple(operations))


def trace(network: nn.Module) -> fx.Graph:
    """Return the calls that the network's forward pass makes. Raises TypeError where it cannot be traced."""
    try:
        return fx.symbolic_trace(network).graph
    except Exception as error:  # whatever a forward pass raises when it asks a symbol for its value
        raise TypeError(f"{type(network).__name__} cannot be traced: {first_line(error)}") from error


def called_layer(node: fx.Node, network: nn.Module) -> tuple[nn.Module | type[Add], str]:
    """Return the layer that a node calls, or the one that a function stands for, and its place for messages.

    Raises TypeError for a function that stands for none.
    """
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return layer, f"{node.target} ({type(layer).__name__})"
    target, options = node.target, (node.args[1:], dict(node.kwargs))
    if node.op != "get_attr" and target in (F.relu, torch.relu, "relu"):
        return nn.ReLU(), node.name
    if target in (torch.flatten, "flatten") and options in (((1,), {}), ((), {"start_dim": 1})):
        return nn.Flatten(), node.name
    two_values = len(node.args) == 2 and all(isinstance(argument, fx.Node) for argument in node.args)
    if target in (operator.add, operator.iadd, torch.add) and two_values and not node.kwargs:
        return Add, node.name
    raise TypeError(f"operation {node.name} stands for no known layer")


def _operation(layer: nn.Module | type[Add], inputs: tuple[str, ...], place: str, number: int) -> Operation:
    if layer is Add:
        return Add(inputs, f"add_{number}")
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        stride, padding, dilation = _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation)
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        return Convolution(inputs, f"convolution_{number}", weight, bias, stride, padding, dilation, layer.groups)
    if isinstance(layer, nn.Linear):
        bias = None if layer.bias is None else layer.bias.detach()
        return Linear(inputs, f"linear_{number}", layer.weight.detach(), bias)
    if isinstance(layer, nn.MaxPool2d) and _pair(layer.dilation) == (1, 1) and not layer.ceil_mode:
        kernel, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
        return MaxPool(inputs, f"max_pool_{number}", kernel, stride, padding)
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return GlobalAveragePool(inputs, f"global_average_pool_{number}")
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return Flatten(inputs, f"flatten_{number}")
    raise TypeError(f"layer {place} has no lowered form: {layer}")


def _fuse(operation: Operation, layer: nn.Module, place: str) -> Operation:
    if isinstance(layer, nn.ReLU):
        if isinstance(operation, (Convolution, Linear, Add)):
            return replace(operation, relu=True)
    elif isinstance(operation, (Convolution, Linear)) and not operation.relu:
        return _fold(operation, layer, place)
    raise TypeError(f"layer {place} cannot be fused into {operation.output}")


def _fold(operation: Convolution | Linear, norm: nn.Module, place: str) -> Convolution | Linear:
    """Return the operation with BatchNorm's per-channel affine map folded in, computed in float64."""
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"layer {place} keeps no running statistics")
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    bias = -norm.running_mean.double() if operation.bias is None else operation.bias.double() - norm.running_mean
    bias = bias * gain if norm.bias is None else bias * gain + norm.bias.detach()
    weight = operation.weight.double() * gain.reshape(-1, *[1] * (operation.weight.ndim - 1))
    return replace(operation, weight=weight.float(), bias=bias.float())


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
