"""Which channels of a network belong together, and the same network with fewer of them.

A channel group is a set of feature channels that one layer or several make, normalisations scale and later layers read;
a channel can only be removed from all of them at once. Values that are added share their channels, so that a residual
sum has several producers; a depthwise convolution makes its channels from the same channels of its input, one by one.
Groups are found by tracing the network (torch.fx), so that a family needs no table of its own. The input and the
logits belong to no group, nor does what is added to them: they keep their size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from metasearch.models.lowered import Add, called_layer, trace

PASSING = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
"""Layers that neither make nor mix channels (flattening repeats each channel once per pixel)."""


@dataclass(eq=False)
class ChannelGroup:
    """Channels that are kept or removed together; the names are those of `model.get_submodule`.

    producers: each layer that makes them, depthwise convolutions included, with the normalisations that scale what it
    makes. fixed: whether they are those of the input or the logits.
    """

    size: int
    producers: dict[str, list[str]] = field(default_factory=dict)
    consumers: list[str] = field(default_factory=list)
    fixed: bool = False

    @property
    def norms(self) -> list[str]:
        """The normalisations of all producers, each once."""
        return list(dict.fromkeys(name for names in self.producers.values() for name in names))


@dataclass(frozen=True)
class _Value:
    """What a node of the traced network makes: its channels, and the producers whose sum it is."""

    group: ChannelGroup
    makers: tuple[str, ...] = ()


def channel_groups(model: nn.Module) -> list[ChannelGroup]:
    """Return the channel groups of a network that may be pruned, in the order of its forward pass.

    Raises TypeError naming the layer, for one that mixes channels in a way not known here.
    """
    graph = trace(model)
    _require_used_once(graph, model)
    values: dict[fx.Node, _Value] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = _Value(ChannelGroup(size=0, fixed=True))
        elif node.op == "output":
            for source in node.all_input_nodes:
                values[source].group.fixed = True
        else:
            values[node] = _value(node, model, values)
    groups = dict.fromkeys(value.group for value in values.values())
    return [group for group in groups if group.consumers and not group.fixed]


def _require_used_once(graph: fx.Graph, model: nn.Module) -> None:
    """Raise TypeError for a layer with weights that the network calls twice: it cannot be cut in two ways."""
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters()):
            if str(node.target) in called:
                raise TypeError(f"layer {node.target} is used twice, which is not known to channel_groups")
            called.add(str(node.target))


def _value(node: fx.Node, model: nn.Module, values: dict[fx.Node, _Value]) -> _Value:
    """Return what one call makes from the values before it, and enter it in their groups."""
    layer, place = called_layer(node, model)
    source = values[node.all_input_nodes[0]]
    name = str(node.target)
    if layer is Add:
        return _sum(source, values[node.all_input_nodes[-1]], place, values)
    if isinstance(layer, nn.Conv2d) and is_depthwise(layer):
        source.group.producers[name] = []
        return _Value(source.group, (name,))
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        source.group.consumers.append(name)
        return _Value(ChannelGroup(size=layer.weight.shape[0], producers={name: []}), (name,))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        for maker in source.makers:
            source.group.producers[maker].append(name)
    elif not isinstance(layer, PASSING):
        raise TypeError(f"layer {place} is not known to channel_groups")
    return source


def _sum(a: _Value, b: _Value, place: str, values: dict[fx.Node, _Value]) -> _Value:
    """Return the sum of two values, whose groups become one."""
    joined, other = a.group, b.group
    if other is not joined:
        if joined.size != other.size and not (joined.fixed or other.fixed):
            raise TypeError(f"operation {place} adds {joined.size} and {other.size} channels")
        joined.size = max(joined.size, other.size)
        joined.producers |= other.producers
        joined.consumers += other.consumers
        joined.fixed |= other.fixed
        for node, value in values.items():
            if value.group is other:
                values[node] = _Value(joined, value.makers)
    return _Value(joined, tuple(dict.fromkeys(a.makers + b.makers)))


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Return whether a convolution makes each channel from the same one of its input; one cut to 1 channel still is."""
    alone = layer.groups == layer.in_channels == layer.out_channels
    return alone and (layer.groups > 1 or getattr(layer, "was_depthwise", False))


def keep_channels(model: nn.Module, keep: Sequence[Tensor]) -> nn.Module:
    """Return a copy of the network with only the channels in `keep`, really smaller.

    keep: for each group of `channel_groups(model)`, the sorted indices (int64) of the channels that stay, at least one.
    """
    model = copy.deepcopy(model)
    for group, kept in zip(channel_groups(model), keep, strict=True):
        for name in group.producers:
            producer = weighted_layer(model, name)
            kept = kept.to(producer.weight.device)
            depthwise = isinstance(producer, nn.Conv2d) and is_depthwise(producer)
            _select(producer, "weight", kept, dimension=0)
            if producer.bias is not None:
                _select(producer, "bias", kept, dimension=0)
            _set_size(producer, outputs=len(kept))
            if depthwise:
                _set_size(producer, inputs=len(kept))
                producer.groups = len(kept)
                producer.was_depthwise = True  # type: ignore[assignment]  # of 1 channel it looks like any other
        for name in group.norms:
            norm = model.get_submodule(name)
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(norm, tensor) is not None:
                    _select(norm, tensor, kept, dimension=0)
            norm.num_features = len(kept)  # type: ignore[assignment]  # nn.Module types every attribute as Tensor
        for name in group.consumers:
            consumer = weighted_layer(model, name)
            repeat = consumer.weight.shape[1] // group.size
            inputs = (kept[:, None] * repeat + torch.arange(repeat, device=kept.device)).flatten()
            _select(consumer, "weight", inputs, dimension=1)
            _set_size(consumer, inputs=len(inputs))
    return model


def weighted_layer(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """Return the linear layer or convolution of this name."""
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
