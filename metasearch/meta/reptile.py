"""Reptile: move the weights towards what training on each task makes of them (Nichol et al. 2018).

Symbols: theta meta-parameters, phi_t the weights after training on task t, T episodes, M rows of an inner batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from metasearch.meta.functional import FunctionalNetwork, Parameters, student_weights
from metasearch.meta.inner_loop import adapt
from metasearch.meta.method import Inner, Loss, Support, classification_loss, require_finite, with_head_for
from metasearch.tasks.episodes import EpisodeBatch


@dataclass(frozen=True, eq=False)
class Reptile:
    """Reptile bound to a network. Meta-parameters: the network's parameters.

    batches: the examples of a task, support and query together as in the paper, are dealt to so many batches, which the
    inner steps take in turn; with several of them the paper's section 5 finds the second-order part that one lacks.
    """

    network: FunctionalNetwork
    inner: Inner = field(default_factory=Inner)
    loss: Loss = field(default_factory=classification_loss)
    batches: int = 1

    def initial(self) -> Parameters:
        """Return the network's own parameters."""
        return self.network.parameters()

    def outer_loss(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return sum over parameters of |theta - phi_t|^2 / 2, averaged over the episodes, phi_t being constant.

        Its gradient, theta - mean of phi_t, is the paper's: plain SGD of rate epsilon on it is algorithm 2, and Adam
        takes it as section 3 says. Raises TrialFailure("diverged") where it is not finite.
        """
        theta = {name: value.detach() for name, value in meta.items()}
        distances = []
        for index in range(len(episodes)):
            phi = self._trained(theta, _examples(episodes, index))
            distances.append(torch.stack([(meta[name] - phi[name]).square().sum() for name in meta]).sum() / 2)
        losses = torch.stack(distances)
        require_finite(losses.detach(), what=f"{self.inner.steps} inner steps at rate {self.inner.rate:g}")
        return losses.mean()

    def adapt(self, meta: Parameters, support: Support, *, steps: int | None = None) -> Parameters:
        """Return phi after the inner steps, or as many as `steps` says, each on the whole support set."""
        theta = {name: value.detach() for name, value in meta.items()}
        return self._steps(theta, [support], self.inner.steps if steps is None else steps)

    def initialisation(self, meta: Parameters, support: Support) -> Parameters:
        """Return theta as a student's state_dict; see `with_head_for` where it has another number of classes."""
        return student_weights(self.network, with_head_for(self.network, meta, support.classes), support.inputs)

    def _trained(self, theta: Parameters, task: Support) -> Parameters:
        logits = task.logits
        parts = [slice(first, None, self.batches) for first in range(min(self.batches, len(task.inputs)))]
        batches = [
            Support(task.inputs[part], task.labels[part], task.classes, None if logits is None else logits[part])
            for part in parts
        ]
        return self._steps(theta, batches, self.inner.steps)

    def _steps(self, theta: Parameters, batches: list[Support], steps: int) -> Parameters:
        phi = theta
        for step in range(steps):
            loss = partial(self._loss, batch=batches[step % len(batches)])
            phi = adapt(loss, phi, steps=1, inner_lr=self.inner.rate, first_order=True)
        return phi

    def _loss(self, values: Parameters, batch: Support) -> Tensor:
        return self.loss(self.network(values, batch.inputs), batch.labels, batch.logits)


def _examples(episodes: EpisodeBatch, index: int) -> Support:
    """Return support and query of one episode together."""
    labels = torch.cat([episodes.support_labels[index], episodes.query_labels[index]])
    inputs = torch.cat([episodes.support_inputs[index], episodes.query_inputs[index]])
    logits = None
    if episodes.support_logits is not None and episodes.query_logits is not None:
        logits = torch.cat([episodes.support_logits[index], episodes.query_logits[index]])
    return Support(inputs, labels, int(labels.max()) + 1, logits)
