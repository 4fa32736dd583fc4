"""Structured pruning: channels really removed, the least important first.

The importance of a channel is summed over the layers that make it (several where values are added), then divided by the
mean of its group, so that layers of different scale compare (the layer-wise normalisation that global pruning needs:
Molchanov et al. 2017, section 2.2, there with the L2 norm of the layer). A layer's own measure, per filter f:

    l1, l2      the norm of f after its BatchNorm is folded in (the norm of what the channel can add to the next layer)
    bn_scale    |gamma| of its BatchNorm (Liu et al. 2017, section 3); 1 where there is none
    taylor      (dE/dz)^2 of a gate z = 1 behind the layer's BatchNorm, or behind the layer where it has none
                (Molchanov et al. 2019, eq. 8): the square of the sum of gradient * parameter
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.measure import count_macs
from metasearch.models.channels import ChannelGroup, channel_groups, keep_channels, weighted_layer
from metasearch.models.foreign import (
    FEWEST,
    UNPRUNABLE,
    foreign_groups,
    foreign_importance,
    keep_foreign_channels,
    require_gradients,
)
from metasearch.tasks import Task

LEAST_KEPT = 0.1
"""The share of its channels that every layer keeps: a layer of no channels cuts the network in two."""

Layer = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d


def l1(layer: Layer, norms: Sequence[Norm]) -> Tensor:
    """Return the L1 norm of each folded filter, (size,)."""
    return _folded_norm(layer, norms, order=1)


def l2(layer: Layer, norms: Sequence[Norm]) -> Tensor:
    """Return the L2 norm of each folded filter, (size,)."""
    return _folded_norm(layer, norms, order=2)


def bn_scale(layer: Layer, norms: Sequence[Norm]) -> Tensor:
    """Return |gamma| of each channel, (size,); the product where BatchNorms follow one another."""
    scale = torch.ones(layer.weight.shape[0], device=layer.weight.device)
    for norm in norms:
        scale = scale if norm.weight is None else scale * norm.weight.detach().abs()
    return scale


def taylor(layer: Layer, norms: Sequence[Norm]) -> Tensor:
    """Return the squared gradient of each channel's gate, (size,), from the gradients that lie in the parameters.

    A frozen parameter has none, which counts as 0.
    """
    gated = next((norm for norm in reversed(norms) if norm.weight is not None), layer)
    change = torch.zeros(layer.weight.shape[0], device=layer.weight.device)
    for parameter in (gated.weight, gated.bias):
        if parameter is None or parameter.grad is None:
            continue
        change = change + (parameter.detach() * parameter.grad).reshape(len(parameter), -1).sum(dim=1)
    return change.square()


IMPORTANCES: dict[str, Callable[[Layer, Sequence[Norm]], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "taylor": taylor,
}


def _folded_norm(layer: Layer, norms: Sequence[Norm], *, order: int) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(layer.weight.detach().flatten(1), order, dim=1)
    for norm in norms:
        assert norm.running_var is not None
        size = size if norm.weight is None else size * norm.weight.detach().abs()
        size = size / (norm.running_var + norm.eps).sqrt()
    return size


def channel_importance(model: nn.Module, group: ChannelGroup, importance: str = "l2") -> Tensor:
    """Return the importance of each channel of a group, (size,), float32, with mean 1 (or all 0).

    importance: a key of IMPORTANCES. Raises ValueError for `taylor` without gradients; TrialFailure("unprunable")
    naming a BatchNorm that cannot be folded in for `l1` or `l2`, because it keeps no running statistics.
    """
    if importance == "taylor":
        require_gradients(model)
    total = torch.zeros(())
    for producer, names in group.producers.items():
        norms = [model.get_submodule(name) for name in names]
        assert all(isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) for norm in norms)
        unfolded = [name for name, norm in zip(names, norms, strict=True) if norm.running_var is None]
        if unfolded and importance in {"l1", "l2"}:
            raise TrialFailure(
                UNPRUNABLE, f"{importance} needs running statistics, which layer {unfolded[0]} keeps none of"
            )
        layer = weighted_layer(model, producer)
        total = total.to(layer.weight.device) + IMPORTANCES[importance](layer, norms)  # type: ignore[arg-type]  # BatchNorms
    return total / total.mean().clamp_min(torch.finfo(total.dtype).tiny)


def choose_channels(importances: Sequence[Tensor], *, remove: int, fewest: int = 1) -> list[Tensor]:
    """Return the sorted indices kept in each layer when the `remove` least important of all channels go.

    importances: one (size,) tensor a layer. Every layer keeps at least a tenth of its channels, and at least `fewest`
    of them; where that leaves fewer than `remove` to take, fewer are taken.
    """
    kept = [set(range(len(values))) for values in importances]
    spare = [_spare(len(values), fewest) for values in importances]
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


def _spare(size: int, fewest: int) -> int:
    """Return how many of a layer's channels may go."""
    return max(0, size - max(fewest, math.ceil(LEAST_KEPT * size)))


def prune_to_ratio(
    model: nn.Module,
    *,
    ratio: float,
    original: int,
    input_shape: tuple[int, ...],
    target: str = "channels",
    importance: str = "l2",
    gradients: Callable[[nn.Module], Iterable[None]] | None = None,
) -> nn.Module:
    """Return the network without its least important channels, globally, until `ratio` of the original size is gone.

    ratio: in [0, 1). target: a key of SIZES. channels: ratio * original of them go, rounded up, so that a ratio above 0
    always asks for one at least; macs: the fewest channels, ranked by importance alone, whose removal leaves at most
    (1 - ratio) * original. original: that size before any pruning. importance: a key of IMPORTANCES. gradients:
    iterated for `taylor`; leaves the gradients of a loss in the parameters, of one mini-batch after the other, whose
    importances are averaged (Molchanov et al. 2019, section 3.1); they are gone afterwards. Returns `model` itself
    where nothing is left to remove.
    Raises ValueError for `taylor` without gradients.
    """
    allowed = math.floor((1 - ratio) * original + 1e-9)
    size_of = SIZES[target]
    if size_of(model, input_shape) <= allowed:
        return model
    taken = []
    if importance == "taylor" and gradients is not None:
        model.zero_grad(set_to_none=True)
    for _ in gradients(model) if importance == "taylor" and gradients is not None else [None]:
        values, keep, fewest = _prunable(model, importance, input_shape)
        taken.append(values)
        if importance == "taylor":
            model.zero_grad(set_to_none=True)
    importances = [torch.stack(each).mean(dim=0) for each in zip(*taken, strict=True)]

    def without(remove: int) -> nn.Module:
        return keep(choose_channels(importances, remove=remove, fewest=fewest))

    removable = sum(_spare(len(values), fewest) for values in importances)
    if removable == 0:
        return model
    if target == "channels":
        return without(size_of(model, input_shape) - allowed)
    counts = range(1, removable)
    remove = bisect.bisect_left(counts, True, key=lambda count: size_of(without(count), input_shape) <= allowed) + 1
    return without(remove)


def _prunable(
    model: nn.Module, importance: str, input_shape: tuple[int, ...] | None
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], nn.Module], int]:
    """Return the importances of each group's channels, what makes the network with only some, and the fewest of each.

    A network that `channel_groups` does not know is left to torch-pruning, which needs its input shape.
    """
    try:
        groups = channel_groups(model)
    except TypeError:
        if input_shape is None:
            raise
        importances = [foreign_importance(group, importance) for group in foreign_groups(model, input_shape)]
        return importances, partial(keep_foreign_channels, model, input_shape=input_shape), FEWEST
    return [channel_importance(model, group, importance) for group in groups], partial(keep_channels, model), 1


def narrow(
    model: nn.Module, *, width: int, present_width: int, input_shape: tuple[int, ...] | None = None
) -> nn.Module:
    """Return the network with every layer cut to width / present_width of its channels, the most important ones.

    Layer by layer, so that the result has the shape of a network built at `width`. input_shape: needed for a network
    that `channel_groups` does not know.
    """
    importances, keep, fewest = _prunable(model, "l2", input_shape)
    sizes = [max(min(fewest, len(v)), round(len(v) * width / present_width)) for v in importances]
    best = (values.topk(size).indices.sort().values for values, size in zip(importances, sizes, strict=True))
    return keep(list(best))


def total_channels(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> int:
    """Return the number of channels in all groups of a network.

    input_shape: needed for a network that `channel_groups` does not know; channels that such a network can only lose
    together (in each group of a grouped convolution) count as one.
    """
    try:
        return sum(group.size for group in channel_groups(model))
    except TypeError:
        if input_shape is None:
            raise
        return sum(group.size for group in foreign_groups(model, input_shape))


SIZES: dict[str, Callable[[nn.Module, tuple[int, ...]], int]] = {"channels": total_channels, "macs": count_macs}
"""What a pruning ratio is a share of, by the name of the target: size(model, input_shape)."""


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, task: Task, *, batch_size: int = 256, batches: int = 8) -> None:
    """Set every BatchNorm's running statistics, in place, to the average over training batches.

    Without this a pruned network is judged with the statistics of another one. Uses batches * batch_size inputs evenly
    spaced over the train split (which may be sorted by class), dealt out so that every batch spans it.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        return
    device = next(model.parameters()).device
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
