"""A learning rate that adapts while training: hypergradient descent, Baydin et al. (2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.policies import KINDS, Policy


class Hypergradient:
    """The learning rate r, moved at every step by the derivative of the loss with respect to itself.

    With g the gradient at step t and d the change that step t - 1 made to the parameters, times -1 (r times the
    optimizer's direction), the loss falls with a larger rate where g d > 0:

        r <- r * (1 + beta * g d / (|g| |d|))

    This is the paper's rule (section 3) in its multiplicative form: with both vectors at unit length, beta needs to
    know neither the scale of the loss nor that of the network. It serves any optimizer, for d is read off the
    parameters. start: the first rate. beta: in (0, 1), the largest relative change in one step.
    """

    @classmethod
    def of(cls, policy: Policy, *, scale: float = 1.0) -> Hypergradient:
        """Return the rate that a policy of kind hypergradient describes, its start times `scale`."""
        defaults = KINDS[policy.kind].__kwdefaults__ or {}
        return cls(scale * policy(0.0), beta=policy.parameters.get("beta", defaults["beta"]))

    def __init__(self, start: float, *, beta: float) -> None:
        self.rate, self._beta = start, beta
        self._before: list[Tensor] = []

    @torch.no_grad()
    def adapted(self, model: nn.Module) -> float:
        """Return the rate of the step to come. Called after the backward pass, before the optimizer's step.

        Raises TrialFailure("diverged") where the rate leaves the range of floats.
        """
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        now = [parameter.detach().clone() for parameter in trained]
        if [x.shape for x in self._before] == [x.shape for x in now]:
            pairs = [
                (parameter.grad.flatten(), (before - after).flatten())
                for parameter, before, after in zip(trained, self._before, now, strict=True)
                if parameter.grad is not None
            ]
            gradient, change = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            cosine = torch.nn.functional.cosine_similarity(gradient, change, dim=0, eps=1e-30)
            self.rate *= 1 + self._beta * float(cosine)
        if not 1e-30 < self.rate < 1e30:
            raise TrialFailure("diverged", f"the hypergradient took the learning rate to {self.rate:g}")
        self._before = now
        return self.rate
