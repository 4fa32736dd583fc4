"""Meta-SGD: MAML whose inner learning rates, one a parameter, are learned with the weights (Li et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasearch.meta.functional import Parameters
from metasearch.meta.inner_loop import Rate
from metasearch.meta.maml import Maml

PREFIX = "inner_lr:"
"""Before a parameter's name: the name of its learning rates among the meta-parameters."""


@dataclass(frozen=True, eq=False)
class MetaSgd(Maml):
    """MAML with theta <- theta - a * dL/dtheta, a vector a of theta's size: Li et al. (2017), equation 2.

    Meta-parameters: the network's parameters and, under `inner_lr:NAME`, the rates, of the same shapes, all of
    `inner.rate` at first. They may become negative, as in the paper.
    """

    def initial(self) -> Parameters:
        """Return the network's parameters and a rate for each of their elements."""
        theta = self.network.parameters()
        return theta | {PREFIX + name: torch.full_like(value, self.inner.rate) for name, value in theta.items()}

    def rates(self, meta: Parameters) -> Rate:
        """Return the learned rates by the parameter's name."""
        return {name.removeprefix(PREFIX): value for name, value in meta.items() if name.startswith(PREFIX)}

    def weights(self, meta: Parameters) -> Parameters:
        """Return theta, without the rates."""
        return {name: value for name, value in meta.items() if not name.startswith(PREFIX)}
