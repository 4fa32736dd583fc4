"""Prototypical networks: a class is the mean of its embedded support examples (Snell et al. 2017).

Symbols: z an embedding (D,), c_k the prototype of class k, K classes, S support rows, R query rows, T episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from metasearch.meta.functional import FunctionalNetwork, Parameters, student_weights
from metasearch.meta.method import Loss, Support, classification_loss, require_finite
from metasearch.tasks.episodes import EpisodeBatch


def prototypes(embedded: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean embedding of each class, (K, D): Snell et al. (2017), equation 1.

    embedded: (S, D). labels: (S,) in 0..K-1; a class without an example gets the origin.
    """
    membership = functional.one_hot(labels, classes).to(embedded.dtype)
    return (membership.T @ embedded) / membership.sum(dim=0).clamp_min(1)[:, None]


def prototype_head(centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (K, D) and bias (K,) of the linear layer that classifies by squared distance to K centres (K, D).

    -|z - c|^2 = 2 c z - |c|^2 - |z|^2, of which the last is the same for all classes: Snell et al. (2017), section 2.3.
    """
    return 2 * centres, -centres.square().sum(dim=1)


@dataclass(frozen=True, eq=False)
class ProtoNet:
    """A prototypical network, its embedding the network without its head. Meta-parameters: those of the trunk."""

    network: FunctionalNetwork
    loss: Loss = field(default_factory=classification_loss)

    def initial(self) -> Parameters:
        """Return the trunk's own parameters. Raises InputError where the network does not end in a linear layer."""
        return self.network.without_head(self.network.parameters())

    def outer_loss(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return the loss of the query set by the prototypes of the support set, averaged over the episodes.

        A teacher's logits enter as in any loss of logits. Raises TrialFailure("diverged") where it is not finite.
        """
        losses = torch.stack([self._query_loss(meta, episodes, index) for index in range(len(episodes))])
        require_finite(losses.detach(), what="the embedding")
        return losses.mean()

    def adapt(self, meta: Parameters, support: Support, *, steps: int | None = None) -> Parameters:
        """Return the trunk and the head that the prototypes make; `steps` is not read: there is no inner loop."""
        with torch.no_grad():
            return self._with_head(meta, self.network.embed(meta, support.inputs), support.labels, support.classes)

    def initialisation(self, meta: Parameters, support: Support) -> Parameters:
        """Return a student's state_dict: the embedding, and the head of the support set's prototypes."""
        return student_weights(self.network, self.adapt(meta, support), support.inputs)

    def _query_loss(self, meta: Parameters, episodes: EpisodeBatch, index: int) -> Tensor:
        support, labels = episodes.support_inputs[index], episodes.support_labels[index]
        rows = len(support)
        both = self.network.embed(meta, torch.cat([support, episodes.query_inputs[index]]), rows=rows)
        weight, bias = prototype_head(prototypes(both[:rows], labels, int(labels.max()) + 1))
        said = None if episodes.query_logits is None else episodes.query_logits[index]
        return self.loss(functional.linear(both[rows:], weight, bias), episodes.query_labels[index], said)

    def _with_head(self, meta: Parameters, embedded: Tensor, labels: Tensor, classes: int) -> Parameters:
        values = prototype_head(prototypes(embedded, labels, classes))
        return meta | dict(zip(self.network.head_names(), values, strict=True))
