"""Channels of networks that `channel_groups` does not know, found and removed by torch-pruning.

torch-pruning (Fang et al. 2023, DepGraph) follows the autograd graph of one forward pass, so that concatenations,
grouped convolutions, other normalisations and activations are no obstacle. What it is asked for here is the same as
in channels.py: groups, the importance of each of their channels, and a smaller copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.functions import first_line
from metasearch.measure import eval_mode

UNPRUNABLE = "unprunable"
"""The reason of the TrialFailure where torch-pruning fails on a network."""
FEWEST = 2
"""Channels that every group keeps: torch-pruning takes a grouped convolution with one channel a group for a depthwise
one, and a depthwise one of one channel for an ordinary one."""


@dataclass(frozen=True, eq=False)
class ForeignGroup:
    """Channels of one group of torch-pruning, all of which the same layers have.

    A layer behind a concatenation has the channels of several others; torch-pruning would let one of those lose them
    all, so each share is a group here. channels: their indices in the layer that torch-pruning counts from; a list of
    several are channels that only go together (one of each group of a grouped convolution or GroupNorm).
    """

    graph: Any
    group: Any
    channels: list[list[int]]

    @property
    def size(self) -> int:
        """The number of channels that can be told apart."""
        return len(self.channels)


def foreign_groups(model: nn.Module, input_shape: tuple[int, ...]) -> list[ForeignGroup]:
    """Return the groups of a network that reach neither its input nor its logits, in torch-pruning's order.

    Raises TrialFailure("unprunable") where torch-pruning cannot follow the network.
    """
    import torch_pruning

    device = next(model.parameters()).device
    # As a parameter the input has a node of its own, so that what is added to it is found. The forward function is
    # given because torch-pruning tries model(*inputs) first, which would unpack the batch.
    example = nn.Parameter(torch.zeros(2, *input_shape, device=device))
    graph = torch_pruning.DependencyGraph()
    with eval_mode(model), torch.enable_grad():
        try:
            graph.build_dependency(
                model,
                example_inputs=example,
                forward_fn=lambda network, inputs: network(inputs),
                unwrapped_parameters=[(example, 1)],
                verbose=False,
            )
            groups = list(graph.get_all_groups())
        except Exception as error:  # whatever it raises on a network that it was not made for
            raise TrialFailure(
                UNPRUNABLE, f"torch-pruning cannot follow {type(model).__name__}: {first_line(error)}"
            ) from error
    return [
        ForeignGroup(graph, group, channels)
        for group in groups
        if not any(_is_fixed(graph, dependency, example) for dependency, _ in group)
        for channels in _shares(graph, group)
    ]


def foreign_importance(group: ForeignGroup, importance: str) -> Tensor:
    """Return the importance of each channel, (size,), float32, with mean 1 (or all 0).

    importance: l1, l2 or taylor (torch-pruning's own, which also look at the layers that read a channel), or bn_scale
    (1 where there is no BatchNorm). Raises ValueError for taylor without gradients, TrialFailure("unprunable") naming
    the layer of a group that torch-pruning has no measure for.
    """
    from torch_pruning.pruner import importance as measures

    if importance == "taylor":
        require_gradients(group.graph.model)
    try:
        if importance == "bn_scale":
            values = _batchnorm_scales(group.group)
        elif importance == "taylor":
            with _gradients_everywhere(group.graph.model):
                values = measures.GroupTaylorImportance(normalizer=None)(group.group)
        else:
            values = measures.GroupMagnitudeImportance(p=int(importance[1:]), normalizer=None)(group.group)
        if values is None:
            raise TypeError("no layer of its group has a measure")
    except Exception as error:  # whatever it raises on a layer that it was not made for
        place = f"layer {group.group[0].dep.target.name}"
        raise TrialFailure(UNPRUNABLE, f"torch-pruning has no {importance} of {place}: {first_line(error)}") from error
    values = values.detach().float().cpu()
    total = torch.stack([values[together].mean() for together in group.channels])
    return total / total.mean().clamp_min(torch.finfo(total.dtype).tiny)


def require_gradients(model: nn.Module) -> None:
    """Raise ValueError if no parameter of the network has a gradient."""
    if all(parameter.grad is None for parameter in model.parameters()):
        raise ValueError("taylor needs the gradients of a loss in the network's parameters")


@contextmanager
def _gradients_everywhere(model: nn.Module) -> Iterator[None]:
    """Give frozen parameters gradients of 0 inside the block: torch-pruning reads that of every layer."""
    frozen = [parameter for parameter in model.parameters() if parameter.grad is None]
    for parameter in frozen:
        parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.grad = None


def _batchnorm_scales(group: Any) -> Tensor:
    """Return the sum of |gamma| over the BatchNorms of each channel, and 1 for one that has none.

    torch-pruning's own sum takes its length from the first BatchNorm, which a concatenation makes too short.
    """
    total, found = torch.zeros(len(group[0].idxs)), torch.zeros(len(group[0].idxs), dtype=torch.bool)
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            total[item.root_idxs] += layer.weight.detach().abs().cpu()[item.idxs]
            found[item.root_idxs] = True
    return torch.where(found, total, 1.0)


def keep_foreign_channels(model: nn.Module, keep: Sequence[Tensor], *, input_shape: tuple[int, ...]) -> nn.Module:
    """Return a copy of the network with only the channels in `keep`, really smaller, checked by a batch of zeros.

    keep: for each group of `foreign_groups`, the sorted indices (int64) of the channels that stay, at least one.
    Raises TrialFailure("unprunable") naming the layer that torch-pruning cannot cut, or that no longer fits.
    """
    smaller = copy.deepcopy(model)
    names = {layer: name for name, layer in smaller.named_modules()}
    removed: dict[Any, list[int]] = {}
    for group, kept in zip(foreign_groups(smaller, input_shape), keep, strict=True):
        gone = set(range(group.size)) - set(kept.tolist())
        removed.setdefault(group.group, []).extend(c for index in gone for c in group.channels[index])
    for group, channels in removed.items():
        dependency = group[0].dep
        layer = dependency.target.module
        try:
            if channels:
                group._DG.get_pruning_group(layer, dependency.handler, sorted(channels)).prune(record_history=False)
        except Exception as error:  # whatever it raises on a layer that it was not made for
            place = f"layer {names[layer]} ({type(layer).__name__})"
            raise TrialFailure(UNPRUNABLE, f"torch-pruning cannot cut {place}: {first_line(error)}") from error
    _require_fit(smaller, input_shape)
    return smaller


def _shares(graph: Any, group: Any) -> list[list[list[int]]]:
    """Return the channels of a group, those that only go together in one list, by the layers that have them."""
    count = len(group[0].idxs)
    parts = _parts(graph, group)
    owners: list[set[int]] = [set() for _ in range(count)]
    for position, item in enumerate(group):
        for index in item.root_idxs:
            if index is not None:
                owners[index].add(position)
    shares: dict[frozenset[int], list[list[int]]] = {}
    for first in range(count // parts):
        together = list(range(first, count, count // parts))
        shares.setdefault(frozenset[int]().union(*(owners[index] for index in together)), []).append(together)
    return list(shares.values())


def _parts(graph: Any, group: Any) -> int:
    """Return the largest number of parts that a layer of the group deals its channels to; depthwise ones deal none."""
    parts = 1
    for dependency, _ in group:
        layer = dependency.target.module
        pruner = graph.get_pruner_of_module(layer)
        depthwise = isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == layer.out_channels
        if pruner is not None and isinstance(layer, nn.Module) and not depthwise:
            made = graph.is_out_channel_pruning_fn(dependency.handler)
            parts = max(parts, pruner.get_out_channel_groups(layer) if made else pruner.get_in_channel_groups(layer))
    return parts


def _is_fixed(graph: Any, dependency: Any, example: Tensor) -> bool:
    """Return whether the channels are those of the input or of a value that nothing reads, the logits."""
    node = dependency.target
    return node.module is example or (graph.is_out_channel_pruning_fn(dependency.handler) and not node.outputs)


def _require_fit(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raise TrialFailure naming the layer that was entered last if the network no longer runs."""
    entered: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, __, name=name: entered.append(name))
        for name, layer in model.named_modules()
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(2, *input_shape, device=next(model.parameters()).device))
    except Exception as error:  # whatever a forward pass raises whose layers do not fit
        layer = model.get_submodule(entered[-1])
        place = f"layer {entered[-1]} ({type(layer).__name__})"
        raise TrialFailure(
            UNPRUNABLE, f"after torch-pruning the network fails at or behind {place}: {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
