"""Model-agnostic meta-learning: weights from which a few gradient steps go far.

Second order or first order (Finn et al. 2017), and ANIL (Raghu et al. 2020), in which the inner loop adapts the head
alone. Symbols: theta meta-parameters, phi_t the weights adapted to task t, T episodes, N ways, S support rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from metasearch.meta.functional import FunctionalNetwork, Parameters, student_weights
from metasearch.meta.inner_loop import Rate, adapt, per_episode, vmap_pays
from metasearch.meta.method import Inner, Loss, Support, classification_loss, require_finite, with_head_for
from metasearch.tasks.episodes import EpisodeBatch


@dataclass(frozen=True, eq=False)
class Maml:
    """MAML, its first-order form and ANIL, bound to a network. Meta-parameters: the network's parameters.

    first_order: leave out the derivative of the inner gradients. head_only: adapt nothing but the head. vmapped:
    see `per_episode`; None picks what was measured to be faster.
    """

    network: FunctionalNetwork
    inner: Inner = field(default_factory=Inner)
    loss: Loss = field(default_factory=classification_loss)
    first_order: bool = False
    head_only: bool = False
    vmapped: bool | None = None

    def initial(self) -> Parameters:
        """Return the network's own parameters."""
        return self.network.parameters()

    def rates(self, meta: Parameters) -> Rate:
        """Return the learning rate of the inner loop."""
        return self.inner.rate

    def weights(self, meta: Parameters) -> Parameters:
        """Return theta, the part of the meta-parameters that are the network's."""
        return meta

    def outer_loss(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return the mean over the episodes of L_query(phi_t): Finn et al. (2017), algorithm 2, line 10.

        Raises TrialFailure("diverged") where it is not finite.
        """
        losses = self.query_losses(meta, episodes)
        require_finite(losses.detach(), what=f"{self.inner.steps} inner steps at rate {self.inner.rate:g}")
        return losses.mean()

    def query_losses(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return L_query(phi_t) of each episode, (T,)."""

        def of_episode(
            support: Tensor,
            labels: Tensor,
            logits: Tensor | None,
            query: Tensor,
            query_labels: Tensor,
            said: Tensor | None,
        ) -> Tensor:
            phi = self._adapted(meta, support, labels, logits, self.inner.steps)
            outputs = self.network.query_outputs(phi, support, query)
            return self.loss(outputs, query_labels, said)

        tensors = (
            episodes.support_inputs,
            episodes.support_labels,
            episodes.support_logits,
            episodes.query_inputs,
            episodes.query_labels,
            episodes.query_logits,
        )
        vmapped = vmap_pays(self.network, episodes) if self.vmapped is None else self.vmapped
        return per_episode(of_episode, tensors, vmapped=vmapped)

    def adapt(self, meta: Parameters, support: Support, *, steps: int | None = None) -> Parameters:
        """Return phi for one support set, after the inner steps or as many as `steps` says; no gradient is kept."""
        meta = {name: value.detach() for name, value in meta.items()}
        steps = self.inner.steps if steps is None else steps
        phi = self._adapted(meta, support.inputs, support.labels, support.logits, steps)
        return {name: value.detach() for name, value in phi.items()}

    def initialisation(self, meta: Parameters, support: Support) -> Parameters:
        """Return theta as a student's state_dict; see `with_head_for` where it has another number of classes."""
        theta = with_head_for(self.network, self.weights(meta), support.classes)
        return student_weights(self.network, theta, support.inputs)

    def _adapted(
        self, meta: Parameters, inputs: Tensor, labels: Tensor, logits: Tensor | None, steps: int
    ) -> Parameters:
        theta, rates = self.weights(meta), self.rates(meta)
        if not self.head_only:
            return adapt(
                lambda values: self.loss(self.network(values, inputs), labels, logits),
                theta,
                steps=steps,
                inner_lr=rates,
                first_order=self.first_order,
            )
        head = self.network.head_names()
        features = self.network.embed(theta, inputs)  # the trunk stays as it is: once is enough
        return adapt(
            lambda values: self.loss(functional.linear(features, *(values[name] for name in head)), labels, logits),
            theta,
            steps=steps,
            inner_lr=rates,
            first_order=self.first_order,
            names=head,
        )
