"""Which channels of a network belong together, and the same network with fewer of them.

A channel group is a set of feature channels that one layer makes, a normalisation scales and later layers read; a
channel can only be removed from all of them at once. Groups are found by tracing the network (torch.fx), so that a
family needs no table of its own. The input and the logits belong to no group: they keep their size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

PASSING = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
"""Layers that neither make nor mix channels (flattening repeats each channel once per pixel)."""


@dataclass
class ChannelGroup:
    """Channels that are kept or removed together; the names are those of `model.get_submodule`."""

    size: int
    producer: str
    norms: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)


def channel_groups(model: nn.Module) -> list[ChannelGroup]:
    """Return the channel groups of a network made of layers in a row, in the order of its forward pass.

    Raises TypeError naming the layer, for one that mixes channels in a way not known here.
    """
    groups: list[ChannelGroup] = []
    current: dict[fx.Node, ChannelGroup | None] = {}
    for node in fx.symbolic_trace(model).graph.nodes:
        if node.op == "placeholder":
            current[node] = None
        elif node.op == "call_module":
            group = current[node.all_input_nodes[0]]
            layer = model.get_submodule(str(node.target))
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
                if group is not None:
                    group.consumers.append(str(node.target))
                group = ChannelGroup(size=layer.weight.shape[0], producer=str(node.target))
                groups.append(group)
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if group is not None:
                    group.norms.append(str(node.target))
            elif not isinstance(layer, PASSING):
                raise TypeError(f"layer {node.target} ({type(layer).__name__}) is not known to channel_groups")
            current[node] = group
        elif node.op != "output":
            raise TypeError(f"operation {node.name} is not known to channel_groups")
    return [group for group in groups if group.consumers]


def keep_channels(model: nn.Module, keep: Sequence[Tensor]) -> nn.Module:
    """Return a copy of the network with only the channels in `keep`, really smaller.

    keep: for each group of `channel_groups(model)`, the sorted indices (int64) of the channels that stay, at least one.
    """
    model = copy.deepcopy(model)
    for group, kept in zip(channel_groups(model), keep, strict=True):
        producer = _linear_or_convolution(model, group.producer)
        kept = kept.to(producer.weight.device)
        _select(producer, "weight", kept, dimension=0)
        if producer.bias is not None:
            _select(producer, "bias", kept, dimension=0)
        _set_size(producer, outputs=len(kept))
        for name in group.norms:
            norm = model.get_submodule(name)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                _select(norm, tensor, kept, dimension=0)
            norm.num_features = len(kept)  # type: ignore[assignment]  # nn.Module types every attribute as Tensor
        for name in group.consumers:
            consumer = _linear_or_convolution(model, name)
            repeat = consumer.weight.shape[1] // group.size
            inputs = (kept[:, None] * repeat + torch.arange(repeat, device=kept.device)).flatten()
            _select(consumer, "weight", inputs, dimension=1)
            _set_size(consumer, inputs=len(inputs))
    return model


def _linear_or_convolution(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = model.get_submodule(name)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    return layer


def _select(layer: nn.Module, name: str, indices: Tensor, *, dimension: int) -> None:
    old = getattr(layer, name)
    new = old.detach().index_select(dimension, indices)
    setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def _set_size(layer: nn.Linear | nn.Conv2d, *, inputs: int | None = None, outputs: int | None = None) -> None:
    prefix = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, value in zip(prefix, (inputs, outputs), strict=True):
        if value is not None:
            setattr(layer, name, value)
