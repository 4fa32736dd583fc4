"""How much a meta-learned initialisation helps: on episodes of domains that it has not seen, against random weights.

Symbols: E episodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.inner_loop import adapt
from metasearch.meta.method import Loss, Method, Support, query_accuracies, support_of
from metasearch.tasks.domains import Domain
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes

RANDOM_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""The learning rates of which random weights get their best."""
CHOOSING_EPISODES = 30
DEVIATIONS = 1.96
"""Of the mean, on either side: a 95 % interval."""


@dataclass(frozen=True)
class Gain:
    """Query accuracy on held-out episodes, in [0, 1], after the same few gradient steps; each with the half width of
    its 95 % interval over episodes. gain: the mean difference between the two on the same episode. random_rate: the
    learning rate of the random weights, the best of RANDOM_RATES on validation domains."""

    accuracy: float
    accuracy_interval: float
    random: float
    random_interval: float
    gain: float
    gain_interval: float
    random_rate: float
    steps: int
    episodes: int

    def record(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    def text(self) -> str:
        """Return it in a line."""
        return (
            f"{100 * self.accuracy:.1f} % ± {100 * self.accuracy_interval:.1f} against {100 * self.random:.1f} % ± "
            f"{100 * self.random_interval:.1f} from random weights: {100 * self.gain:+.1f} ± "
            f"{100 * self.gain_interval:.1f} points, {self.steps} steps, {self.episodes} episodes"
        )


def held_out_gain(
    method: Method,
    meta: Mapping[str, Tensor],
    *,
    loss: Loss,
    validation: Sequence[Domain],
    test: Sequence[Domain],
    shape: EpisodeShape,
    steps: int,
    episodes: int,
    seed: int,
) -> Gain:
    """Return the gain on episodes of the test domains.

    The method adapts as it does by itself (prototypical networks and hypernetworks without a step); the random weights
    take `steps` steps of plain gradient descent. loss: of both, on the support set.
    """
    generator = torch.Generator().manual_seed(seed)
    choosing = sample_episodes(validation, shape=shape, count=CHOOSING_EPISODES, generator=generator)
    judging = sample_episodes(test, shape=shape, count=episodes, generator=generator)
    network, start = method.network, method.network.parameters()
    by_rate = {
        rate: float(scratch_accuracies(network, start, choosing, loss=loss, steps=steps, rate=rate).mean())
        for rate in RANDOM_RATES
    }
    rate = max(by_rate, key=lambda candidate: by_rate[candidate])
    learned = query_accuracies(method, dict(meta), judging)
    random = scratch_accuracies(network, start, judging, loss=loss, steps=steps, rate=rate)
    (accuracy, within), (of_random, random_within), (gain, gain_within) = map(
        _interval, (learned, random, learned - random)
    )
    return Gain(accuracy, within, of_random, random_within, gain, gain_within, rate, steps, episodes)


def scratch_accuracies(
    network: FunctionalNetwork, start: Parameters, episodes: EpisodeBatch, *, loss: Loss, steps: int, rate: float
) -> Tensor:
    """Return the query accuracy of each episode, (E,), after plain gradient descent from `start` on its support set."""
    accuracies = []
    for index in range(len(episodes)):
        support = support_of(episodes, index)

        def of_weights(values: Parameters, support: Support = support) -> Tensor:
            return loss(network(values, support.inputs), support.labels, support.logits)

        with torch.no_grad():
            weights = adapt(of_weights, start, steps=steps, inner_lr=rate, first_order=True)
            outputs = network.query_outputs(weights, support.inputs, episodes.query_inputs[index])
        accuracies.append((outputs.argmax(dim=1) == episodes.query_labels[index]).double().mean())
    return torch.stack(accuracies)


def _interval(values: Tensor) -> tuple[float, float]:
    """Return the mean and the half width of its interval. values: (E,)."""
    return float(values.mean()), DEVIATIONS * float(values.std()) / math.sqrt(len(values))
