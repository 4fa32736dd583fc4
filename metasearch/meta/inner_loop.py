"""The inner loop: a few gradient steps on one task's support set, as a function that can be differentiated through.

Symbols: theta parameters, a their learning rate, L the loss on the support set, T episodes, S support rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.func import grad, vmap

from metasearch.measure import count_macs
from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.tasks.episodes import EpisodeBatch

Rate = float | Mapping[str, Tensor]
"""One learning rate, or one a parameter: name -> a tensor that broadcasts to it."""

SupportLoss = Callable[[Parameters], Tensor]
"""Parameters -> the loss on the support set, a scalar."""


def adapt(
    loss: SupportLoss,
    parameters: Parameters,
    *,
    steps: int,
    inner_lr: Rate,
    first_order: bool = False,
    names: Collection[str] | None = None,
) -> Parameters:
    """Return the parameters after `steps` of theta <- theta - a * dL/dtheta: Finn et al. (2017), equation 1.

    The result can be differentiated in `parameters` and in the rates; with first_order the gradients count as constants
    (FOMAML, section 5.2), so that only theta and the rates are. names: of the parameters that are adapted, all where
    None; the others are returned as they are.
    """
    fixed = {name: value for name, value in parameters.items() if names is not None and name not in names}
    adapted = {name: value for name, value in parameters.items() if name not in fixed}

    def of_adapted(values: Parameters) -> Tensor:
        return loss(fixed | values)

    for _ in range(steps):
        gradients = grad(of_adapted)(adapted)
        adapted = {
            name: value - rate_of(inner_lr, name) * (gradients[name].detach() if first_order else gradients[name])
            for name, value in adapted.items()
        }
    return {name: adapted.get(name, fixed.get(name, value)) for name, value in parameters.items()}


def rate_of(inner_lr: Rate, name: str) -> Tensor | float:
    """Return the learning rate of one parameter."""
    return inner_lr[name] if isinstance(inner_lr, Mapping) else inner_lr


def per_episode(function: Callable[..., Tensor], tensors: tuple[Tensor | None, ...], *, vmapped: bool) -> Tensor:
    """Return function(tensors of one episode) of every episode, stacked, (T, ...).

    tensors: (T, ...) each; a None is handed on. vmapped: all episodes in one pass of torch.func.vmap, or one by one.
    """
    if vmapped:
        return vmap(function, in_dims=tuple(None if tensor is None else 0 for tensor in tensors))(*tensors)
    count = next(len(tensor) for tensor in tensors if tensor is not None)
    return torch.stack(
        [function(*(None if tensor is None else tensor[index] for tensor in tensors)) for index in range(count)]
    )


VMAP_MOST_MACS = 200_000_000
"""Multiply-accumulates of one pass over a support set up to which vmap was the faster way, on one CPU thread.

`python -m tests.bench episodes`: up to 1 M it is 2 times faster with 4 episodes and 3 to 10 times with 16, at 20 M 1.2
to 1.5 times, at 75 M 1.1 times; from 290 M (64 channels) on the loop is by 2 to 7 %. It is the overhead of many small
operations that vmap saves.
"""


def vmap_pays(network: FunctionalNetwork, episodes: EpisodeBatch) -> bool:
    """Return whether one vmapped pass over the episodes is faster than a loop.

    With a teacher's logits it is not: torch has no batching rule for the divergence, and warns.
    """
    if len(episodes) == 1 or episodes.support_logits is not None or episodes.query_logits is not None:
        return False
    rows, *shape = episodes.support_inputs.shape[1:]
    return rows * _macs(network, tuple(shape)) <= VMAP_MOST_MACS


@lru_cache(maxsize=16)
def _macs(network: FunctionalNetwork, input_shape: tuple[int, ...]) -> int:
    return count_macs(network.module, input_shape)
