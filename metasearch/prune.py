"""Structured pruning: channels really removed, the least important first.

The importance of a channel is the L2 norm of its filter after its BatchNorm is folded in (the norm of what the channel
can add to the next layer), divided by its layer's mean, so that layers of different scale compare (the layer-wise
normalisation that global pruning needs: Molchanov et al. 2017, section 2.2, there with the L2 norm of the layer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.models.channels import ChannelGroup, channel_groups, keep_channels
from metasearch.tasks import Task

LEAST_KEPT = 0.1
"""The share of its channels that every layer keeps: a layer of no channels cuts the network in two."""


def channel_importance(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the importance of each channel of a group, (size,), float32, with mean 1 (or all 0)."""
    weight = model.get_submodule(group.producer).weight
    assert isinstance(weight, Tensor)
    norm = weight.detach().flatten(1).norm(dim=1)
    for name in group.norms:
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        assert layer.running_var is not None
        norm = norm * layer.weight.detach().abs() / (layer.running_var + layer.eps).sqrt()
    importance: Tensor = norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)
    return importance


def choose_channels(importances: Sequence[Tensor], *, remove: int) -> list[Tensor]:
    """Return the sorted indices kept in each layer when the `remove` least important of all channels go.

    importances: one (size,) tensor a layer. Every layer keeps at least a tenth of its channels, and at least one; where
    that leaves fewer than `remove` to take, fewer are taken.
    """
    kept = [set(range(len(values))) for values in importances]
    spare = [len(values) - max(1, math.ceil(LEAST_KEPT * len(values))) for values in importances]
    ranked = sorted(
        (value, layer, channel)
        for layer, values in enumerate(importances)
        for channel, value in enumerate(values.tolist())
    )
    for _, layer, channel in ranked:
        if remove == 0:
            break
        if spare[layer] > 0:
            kept[layer].remove(channel)
            spare[layer] -= 1
            remove -= 1
    return [torch.tensor(sorted(channels)) for channels in kept]


def prune_to_ratio(model: nn.Module, *, ratio: float, original_channels: int) -> nn.Module:
    """Return the network without its least important channels, globally: `ratio` of the original ones are gone.

    ratio: in [0, 1). original_channels: the channels in all groups before any pruning; the number to go is rounded up,
    so that a ratio above 0 always asks for one at least. Returns `model` itself where nothing is left to remove.
    """
    groups = channel_groups(model)
    present = sum(group.size for group in groups)
    remove = math.ceil(ratio * original_channels - 1e-9) - (original_channels - present)
    if remove <= 0:
        return model
    keep = choose_channels([channel_importance(model, group) for group in groups], remove=remove)
    if all(len(kept) == group.size for kept, group in zip(keep, groups, strict=True)):
        return model
    return keep_channels(model, keep)


def narrow(model: nn.Module, *, width: int, present_width: int) -> nn.Module:
    """Return the network with every layer cut to width / present_width of its channels, the most important ones.

    Layer by layer, so that the result has the shape of a network built at `width`.
    """
    groups = channel_groups(model)
    keep = []
    for group in groups:
        size = max(1, round(group.size * width / present_width))
        keep.append(channel_importance(model, group).topk(size).indices.sort().values)
    return keep_channels(model, keep)


def total_channels(model: nn.Module) -> int:
    """Return the number of channels in all groups of a network."""
    return sum(group.size for group in channel_groups(model))


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, task: Task, *, batch_size: int = 256, batches: int = 8) -> None:
    """Set every BatchNorm's running statistics, in place, to the average over training batches.

    Without this a pruned network is judged with the statistics of another one. Uses batches * batch_size inputs evenly
    spaced over the train split (which may be sorted by class), dealt out so that every batch spans it.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    device = norms[0].weight.device
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average over the batches
    model.train()
    chosen = torch.arange(0, len(task.train), max(1, len(task.train) // (batches * batch_size)))
    batches = max(1, min(batches, len(chosen) // batch_size))
    for first in range(batches):
        model(task.normalisation(task.train.inputs[chosen[first::batches]].to(device)))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def check_removed(before: int, after: int, *, ratio: float) -> None:
    """Raise TrialFailure("no_effect") if a pruning request above 0 removed no channel."""
    if ratio > 0 and after >= before:
        raise TrialFailure("no_effect", f"pruning_ratio {ratio:g} removed none of {before} channels")
