"""The works of a network that is about to be deployed, from its operations: in the trial, without an ONNX file."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.latency.work import (
    ADD,
    AVERAGE_POOL,
    MAX_POOL,
    OTHER,
    Work,
    convolution_work,
    input_work,
    linear_work,
    plain_work,
)
from metasearch.models.lowered import (
    VANISHING,
    Add,
    Convolution,
    Flatten,
    GlobalAveragePool,
    Linear,
    LoweredNetwork,
    MaxPool,
    Operation,
    apply,
    apply_weights,
    run,
)
from metasearch.models.module_network import ModuleNetwork
from metasearch.quantize import QuantizedNetwork

KINDS = {Add: ADD, MaxPool: MAX_POOL, GlobalAveragePool: AVERAGE_POOL}
LAYERS = {nn.MaxPool2d: MAX_POOL, nn.AdaptiveAvgPool2d: AVERAGE_POOL}
FUSED = (*VANISHING, nn.Flatten, nn.ReLU, nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers of a module that onnxruntime leaves out, or runs together with the layer before them."""


def works_of(network: LoweredNetwork | QuantizedNetwork | ModuleNetwork, *, int8: bool = False) -> tuple[Work, ...]:
    """Return what each operation of a network to deploy has to do for one input, in the order in which they run.

    int8: whether a network in float is looked at as the int8 one that it would make. Of a ModuleNetwork these are its
    layers; what its forward pass does between them is not seen.
    """
    int8 = int8 or isinstance(network, QuantizedNetwork)
    start = input_work(network.input_shape, image=len(network.input_shape) == 3, int8=int8)
    if isinstance(network, ModuleNetwork):
        return (start, *_layer_works(network))
    works = [start]

    def note(operation: Operation, *inputs: Tensor) -> Tensor:
        if isinstance(operation, (Convolution, Linear)):
            output = apply_weights(operation, inputs[0], operation.weight.float(), None)
        else:
            output = apply(operation, *inputs)
        shapes = [tuple(value.shape[1:]) for value in (*inputs, output)]
        if isinstance(operation, Convolution):
            works.append(convolution_work(shapes[0], operation.weight.shape, shapes[-1], int8=int8))
        elif isinstance(operation, Linear):
            works.append(linear_work(operation.weight.shape, int8=int8))
        elif not isinstance(operation, Flatten):
            works.append(plain_work(KINDS[type(operation)], shapes[:-1], shapes[-1], int8=int8))
        return output

    run(network.operations, torch.zeros(1, *network.input_shape), note)
    return tuple(works)


def _layer_works(network: ModuleNetwork) -> list[Work]:
    works = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes = [tuple(value.shape[1:]) for value in (*inputs, output) if isinstance(value, Tensor)]
        if isinstance(layer, nn.Conv2d):
            works.append(convolution_work(shapes[0], layer.weight.shape, shapes[-1], int8=False))
        elif isinstance(layer, nn.Linear):
            rows = output[0].numel() // layer.out_features
            works.append(linear_work(layer.weight.shape, rows=rows, int8=False))
        elif not isinstance(layer, FUSED):
            works.append(plain_work(LAYERS.get(type(layer), OTHER), shapes[:-1], shapes[-1], int8=False))

    with ExitStack() as hooks, torch.no_grad():
        for layer in network.module.modules():
            if not list(layer.children()):
                hooks.callback(layer.register_forward_hook(note).remove)
        network.module(torch.zeros(1, *network.input_shape))
    return works
