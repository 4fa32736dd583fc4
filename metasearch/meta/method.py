"""What every meta-learner of initialisations offers, so that one loop can drive and one function judge any of them.

    meta = method.initial()                            a dict of tensors: what is learned across episodes
    loss = method.outer_loss(meta, episodes)           differentiable in `meta`: hand it to any optimizer
    weights = method.adapt(meta, support)              what a network has learned from one support set
    state = method.initialisation(meta, support)       the state_dict of a student, before its own training
    accuracy = query_accuracies(method, meta, episodes)

Symbols: T episodes, N ways, S support rows, R query rows, K classes of a student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from metasearch.distill import distillation_loss
from metasearch.errors import InputError, TrialFailure
from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.tasks.episodes import EpisodeBatch

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(outputs (B, N), labels (B,), a teacher's logits (B, N) or None) -> the mean loss, a scalar."""


@dataclass(frozen=True, eq=False)
class Support:
    """The labelled examples of one task. inputs: (S, ...), normalised. labels: (S,) in 0..classes-1. logits: (S, K)."""

    inputs: Tensor
    labels: Tensor
    classes: int
    logits: Tensor | None = None


class Method(Protocol):
    """A way to learn an initialisation over a family of tasks, bound to one network."""

    @property
    def network(self) -> FunctionalNetwork:
        """The network that is initialised; its head has N outputs, the ways of the episodes."""

    def initial(self) -> Parameters:
        """Return the meta-parameters before any learning, from the network's own weights."""

    def outer_loss(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return the scalar whose gradient in `meta` an outer step follows.

        Raises TrialFailure("diverged") where it is not finite; `meta` is unchanged then.
        """

    def adapt(self, meta: Parameters, support: Support, *, steps: int | None = None) -> Parameters:
        """Return the network's parameters for one task. steps: of the inner loop, the method's own where None."""

    def initialisation(self, meta: Parameters, support: Support) -> Parameters:
        """Return the state_dict of a student of the task's K classes: where its own training begins.

        support: some of its training examples; they give BatchNorm's statistics, and the head where a method has none.
        """


@dataclass(frozen=True)
class Inner:
    """The inner loop: gradient steps on the support set. Raises InputError for values out of range."""

    steps: int = 5
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("inner_steps", "must be at least 1", self.steps)
        if not self.rate > 0:
            raise InputError("inner_lr", "must be above 0", self.rate)


def classification_loss(*, temperature: float = 4.0, alpha: float = 0.0) -> Loss:
    """Return the loss of labels, or (1 - alpha) * CE + alpha * KD where a teacher has a say (alpha > 0).

    The same in the inner and the outer loop: an initialisation meta-learned for being distilled. See
    `metasearch.distill.distillation_loss`. The loss raises InputError where it needs a teacher's logits and has none.
    """

    def loss(outputs: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        if alpha == 0:
            return functional.cross_entropy(outputs, labels)
        if teacher_logits is None:
            raise InputError("alpha", "needs episodes with a teacher's logits where it is above 0", alpha)
        return distillation_loss(outputs, teacher_logits, labels, temperature=temperature, alpha=alpha)

    return loss


def support_of(episodes: EpisodeBatch, index: int) -> Support:
    """Return the support set of one episode."""
    logits = None if episodes.support_logits is None else episodes.support_logits[index]
    labels = episodes.support_labels[index]
    classes = int(labels.max()) + 1 if not labels.is_floating_point() else labels.shape[-1]
    return Support(episodes.support_inputs[index], labels, classes, logits)


def query_accuracies(
    method: Method, meta: Parameters, episodes: EpisodeBatch, *, steps: int | None = None, transductive: bool = False
) -> Tensor:
    """Return the accuracy on the query set of each episode, (T,) in [0, 1], after its own adaptation.

    transductive: normalise the query set by its own statistics rather than by those of the support set.
    """
    return torch.stack(
        [
            query_accuracy(
                method.network,
                method.adapt(meta, support_of(episodes, index), steps=steps),
                episodes,
                index,
                transductive=transductive,
            )
            for index in range(len(episodes))
        ]
    )


def query_accuracy(
    network: FunctionalNetwork, weights: Parameters, episodes: EpisodeBatch, index: int, *, transductive: bool = False
) -> Tensor:
    """Return the accuracy of adapted weights on the query set of one episode, a scalar in [0, 1]."""
    with torch.no_grad():
        outputs = network.query_outputs(
            weights, episodes.support_inputs[index], episodes.query_inputs[index], transductive=transductive
        )
    return (outputs.argmax(dim=1) == episodes.query_labels[index]).double().mean()


def with_head_for(network: FunctionalNetwork, parameters: Parameters, classes: int) -> Parameters:
    """Return parameters whose head has `classes` outputs: as they are where it has, else its mean row for every class.

    Episodes number their classes at random, so that a row of the meta-learned head is one class's as much as another's;
    one vector for all of them is what Ye and Chao (2022), section 5, find to lose nothing. The rows part in training.
    """
    weight, bias = network.head_names()
    if len(parameters[weight]) == classes:
        return parameters
    repeated = {name: parameters[name].mean(dim=0, keepdim=True) for name in (weight, bias)}
    return parameters | {name: value.expand(classes, *value.shape[1:]).clone() for name, value in repeated.items()}


def require_finite(losses: Tensor, *, what: str) -> None:
    """Raise TrialFailure("diverged"), naming `what`, unless every loss is finite. losses: (T,)."""
    wrong = int((~torch.isfinite(losses)).sum())
    if wrong:
        raise TrialFailure("diverged", f"the loss of {wrong} of {len(losses)} episodes is not finite after {what}")
