"""Unstructured magnitude pruning: single weights of convolutions and linear layers set to zero.

A mask is True where a weight stays. To prune while training, make new masks by a schedule (Zhu and Gupta 2017, section
3: the `cubic` policy) and apply them after every optimizer step; a weight once zero ranks lowest and stays masked. The
zeros survive what follows: folding BatchNorm scales them, int8 rounds them to 0 (and more beside them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure

# How layers compare, in validation accuracy at 80 and 90 % sparsity (pruned at once, then two epochs; means of two
# seeds, 1,500 training images, CPU). Convnet of width 8 on Fashion-MNIST, dense 74.6: LAMP 74.3 and 67.3, plain sizes
# 72.1 and 61.0, sizes over their layer's root mean square 56.0 and 24.7. Width 6 on USPS, dense 94.0: 92.4 and 75.4,
# 88.6 and 62.7, 68.0 and 10.0. For an mlp on Fashion-MNIST LAMP and plain sizes differ by 0.4 points at most.


def magnitude_masks(
    model: nn.Module, *, sparsity: float | None = None, threshold: float | None = None
) -> dict[str, Tensor]:
    """Return for each weight of a Conv2d or Linear, by parameter name, which of its entries stay (bool, its shape).

    Either sparsity: in [0, 1), the share of all weights that goes, those of the lowest `layer_adaptive_scores` over
    all layers; the number is rounded up. Or threshold: >= 0; the weights smaller in size than this many standard
    deviations of their layer's weights go (Han et al. 2015, section 3). Every layer keeps its largest weight.
    Raises TrialFailure("no_effect") if a request above 0 removes nothing, as in a network of other layers alone;
    ValueError unless one of the two is given.
    """
    if (sparsity is None) == (threshold is None):
        raise ValueError("give either sparsity or threshold")
    weights = prunable_weights(model)
    if threshold is not None:
        masks = {name: _not_below(weight, threshold) for name, weight in weights.items()}
    else:
        assert sparsity is not None
        masks = _without_lowest(weights, sparsity)
    if (sparsity or threshold) and all(bool(mask.all()) for mask in masks.values()):
        asked = f"sparsity {sparsity:g}" if threshold is None else f"threshold {threshold:g}"
        raise TrialFailure("no_effect", f"{asked} removed none of {sum(map(torch.numel, masks.values()))} weights")
    return masks


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of every Conv2d and Linear by parameter name, detached; biases and norms are left out."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
    return {f"{name}.weight" if name else "weight": layer.weight.detach() for name, layer in layers}


def layer_adaptive_scores(weight: Tensor) -> Tensor:
    """Return w^2 over the sum of squares of all weights of the layer that are no smaller, float64, in [0, 1].

    Lee et al. (2021), equation 1 (LAMP): the share of the layer's remaining energy that goes with the weight, by which
    layers of any scale and size compare. Removing the smaller ones leaves a score as it is, so that pruning step by
    step and at once take the same weights. A layer of zeros scores 0.
    """
    squares, order = weight.detach().reshape(-1).double().square().sort(stable=True)
    remaining = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / remaining.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.reshape(weight.shape)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights of the model to zero, in place; to be called after every optimizer step.

    masks: of `magnitude_masks` for this model, or one of the same shapes, on its device. Gradients, momenta and weight
    decay go on as they please: what they add to a masked weight is gone before the next forward pass.
    Raises AttributeError for a mask whose parameter the model does not have.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0.0)


def removed_share(masks: Mapping[str, Tensor]) -> float:
    """Return the share of all masked tensors' weights that go, in [0, 1]."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def _not_below(weight: Tensor, deviations: float) -> Tensor:
    size = weight.reshape(-1).abs()
    stays = size >= deviations * weight.std(correction=0)
    stays[size.argmax()] = True
    return stays.reshape(weight.shape)


def _without_lowest(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    if not weights:
        return {}
    total = sum(map(torch.numel, weights.values()))
    remove = min(math.ceil(sparsity * total - 1e-9), total - len(weights))
    scores = []
    for weight in weights.values():
        score = layer_adaptive_scores(weight).reshape(-1)
        score[weight.reshape(-1).abs().argmax()] = math.inf
        scores.append(score)
    stays = torch.ones(total, dtype=torch.bool, device=scores[0].device)
    stays[torch.cat(scores).sort(stable=True).indices[:remove]] = False
    parts = torch.split(stays, [weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
