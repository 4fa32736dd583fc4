"""The meta-network: a task encoder z = g(support set, task features), and a generator theta = h(z) of weights of f.

Symbols: S support examples, K classes, D features before the classifier, H hidden units, C channels of all BatchNorms
together, E task features. The base network f is one of ours; its trunk t is shared by all tasks.

    e_i = t(x_i)                                    embedded support images
    r_k = mean over class k of phi(e_i)             (K, H): a set function of each class (Zaheer et al. 2017)
    z   = rho(mean r_k, deviation of r_k, features) (H,): the task
    gamma' = gamma (1 + M_s z),  beta' = beta + M_b z     modulation of the trunk's channels (Requeima et al. 2019)
    c_k = mean over class k of t'(x_i)              (K, D) class means under the modulated trunk t'
    w_k = s (c_k + psi_w(c_k, z)),  b_k = -s |c_k|^2 / 2 + psi_b(c_k, z)      the classifier

M_s, M_b and psi are 0 and s is 2 at first, where f is the class-mean classifier of Snell et al. (2017) on the plain
trunk: logits differ from -|t(x) - c_k|^2 by what all classes have in common. Weights from a network: Ha et al. (2017).
Everything, t included, is trained through the loss of f on the query set. Means over classes make it indifferent to the
classes' order and number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from metasearch.errors import InputError
from metasearch.meta.functional import FunctionalNetwork, Parameters, student_weights
from metasearch.meta.inner_loop import adapt, per_episode, vmap_pays
from metasearch.meta.method import Inner, Loss, Support, require_finite
from metasearch.tasks.episodes import EpisodeBatch

PREFIX = "hypernetwork."
TASK_FEATURES = 2
"""The share of the embedding's variance that lies between the classes, and the logarithm of all of it. Not the numbers
of classes and shots: where all episodes have the same, they would be free to mean anything for others."""
LOGIT_SCALE = "log_scale"


@dataclass(frozen=True, eq=False)
class Hypernetwork:
    """Learns to propose weights for a support set; a `Method`.

    hidden: H. inner: of the gradient steps that `adapt` may be asked to add; by itself it takes none. seed: of the
    encoder's first weights.
    """

    network: FunctionalNetwork
    loss: Loss
    inner: Inner = field(default_factory=Inner)
    hidden: int = 64
    seed: int = 0

    def initial(self) -> Parameters:
        """Return the trunk's weights, and those of encoder and generator under names that begin with PREFIX."""
        trunk = self.network.without_head(self.network.parameters())
        width, channels = self.embedding_width, sum(len(trunk[scale]) for scale, _ in self.modulated)
        h = self.hidden
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            layers = {"phi": nn.Linear(width, h), "rho": nn.Linear(2 * h + TASK_FEATURES, h)}
            layers |= {"psi": nn.Linear(width + h, h), "psi_out": nn.Linear(h, width + 1)}
            layers |= {"modulation": nn.Linear(h, 2 * channels)} if channels else {}
        for name in ("psi_out", "modulation"):
            if name in layers:
                nn.init.zeros_(layers[name].weight)
                nn.init.zeros_(layers[name].bias)
        like = next(iter(trunk.values()))
        own = {
            f"{PREFIX}{name}.{key}": value.detach().to(like, copy=True)
            for name, layer in layers.items()
            for key, value in layer.named_parameters()
        }
        own[PREFIX + LOGIT_SCALE] = like.new_tensor(math.log(2.0))  # that of Snell et al.: -|t(x) - c_k|^2
        return trunk | own

    def outer_loss(self, meta: Parameters, episodes: EpisodeBatch) -> Tensor:
        """Return the mean loss on the query sets under the proposed weights."""
        ways = int(episodes.support_labels.max()) + 1

        def query_loss(
            inputs: Tensor, labels: Tensor, query: Tensor, expected: Tensor, logits: Tensor | None
        ) -> Tensor:
            weights = self._proposed(meta, inputs, labels, ways)
            return self.loss(self.network.query_outputs(weights, inputs, query), expected, logits)

        tensors = (
            episodes.support_inputs,
            episodes.support_labels,
            episodes.query_inputs,
            episodes.query_labels,
            episodes.query_logits,
        )
        losses = per_episode(query_loss, tensors, vmapped=vmap_pays(self.network, episodes))
        require_finite(losses, what="the hypernetwork's proposal")
        return losses.mean()

    def adapt(self, meta: Parameters, support: Support, *, steps: int | None = None) -> Parameters:
        """Return the proposed weights. steps: of gradient descent on the support set to add, none where None.

        Raises InputError where a class has no support example.
        """
        counts = torch.bincount(support.labels, minlength=support.classes)
        if len(counts) > support.classes or not bool(counts.all()):
            raise InputError("support", "must hold examples of every class and of no other", counts.tolist())
        with torch.no_grad():
            proposed = self._proposed(meta, support.inputs, support.labels, support.classes)
        weights = adapt(
            lambda values: self.loss(self.network(values, support.inputs), support.labels, support.logits),
            proposed,
            steps=steps or 0,
            inner_lr=self.inner.rate,
        )
        return {name: value.detach() for name, value in weights.items()}

    def initialisation(self, meta: Parameters, support: Support) -> Parameters:
        """Return the state_dict of a student with the proposed weights, its running statistics those of the support."""
        return student_weights(self.network, self.adapt(meta, support), support.inputs)

    @cached_property
    def embedding_width(self) -> int:
        """D."""
        head = self.network.module.get_submodule(self.network.head_names()[0].rpartition(".")[0])
        assert isinstance(head, nn.Linear)
        if head.bias is None:
            raise InputError("network", "must end in a linear layer with a bias, for the hypernetwork")
        return head.in_features

    @cached_property
    def modulated(self) -> list[tuple[str, str]]:
        """The names of scale and shift of each BatchNorm."""
        return [
            (f"{name}.weight", f"{name}.bias")
            for name, layer in self.network.module.named_modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine
        ]

    def _proposed(self, meta: Parameters, inputs: Tensor, labels: Tensor, classes: int) -> Parameters:
        """Return the network's parameters for a support set, differentiable in `meta`."""
        trunk = {name: value for name, value in meta.items() if not name.startswith(PREFIX)}
        member = functional.one_hot(labels, classes).to(inputs.dtype)  # (S, K)
        mean = member / member.sum(dim=0)
        z = self._task(meta, self.network.embed(trunk, inputs), mean)
        trunk |= self._modulation(meta, trunk, z)
        centres = mean.T @ self.network.embed(trunk, inputs)
        both = torch.cat([centres, z.expand(classes, -1)], dim=1)
        change = _linear(meta, "psi_out", functional.relu(_linear(meta, "psi", both)))
        scale = meta[PREFIX + LOGIT_SCALE].exp()
        weight, bias = self.network.head_names()
        return trunk | {
            weight: scale * (centres + change[:, :-1]),
            bias: -0.5 * scale * centres.square().sum(dim=1) + change[:, -1],
        }

    def _task(self, meta: Parameters, embedded: Tensor, mean: Tensor) -> Tensor:
        """Return z (H,). embedded: (S, D). mean: (S, K), the weights of the mean over each class."""
        centres, total = mean.T @ embedded, embedded.var(dim=0, correction=0).sum() + 1e-6
        features = torch.stack([centres.var(dim=0, correction=0).sum() / total, total.log()])
        of_class = mean.T @ functional.relu(_linear(meta, "phi", embedded))
        # the root of a variance of 0 has no gradient
        deviation = (of_class.var(dim=0, correction=0) + 1e-6).sqrt()
        return functional.relu(_linear(meta, "rho", torch.cat([of_class.mean(dim=0), deviation, features])))

    def _modulation(self, meta: Parameters, trunk: Parameters, z: Tensor) -> Parameters:
        """Return the modulated scales and shifts of every BatchNorm."""
        if not self.modulated:
            return {}
        sizes = [len(trunk[scale]) for scale, _ in self.modulated]
        scales, shifts = (torch.split(part, sizes) for part in _linear(meta, "modulation", z).chunk(2))
        changed: Parameters = {}
        for (scale, shift), by, plus in zip(self.modulated, scales, shifts, strict=True):
            changed |= {scale: trunk[scale] * (1 + by), shift: trunk[shift] + plus}
        return changed


def _linear(meta: Parameters, name: str, inputs: Tensor) -> Tensor:
    return functional.linear(inputs, meta[f"{PREFIX}{name}.weight"], meta[f"{PREFIX}{name}.bias"])
