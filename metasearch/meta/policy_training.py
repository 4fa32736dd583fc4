"""How a policy network is trained: by the validation loss after short trainings, over a family of tasks.

The outer loss is the validation loss after a whole, unrolled training under the network's policies. Its gradient with
respect to the network's weights comes from an evolution strategy with antithetic pairs (Salimans et al. 2017, section
2). Backpropagation through the unrolled training costs the memory of every step, and its gradients explode where the
learning rate is at the edge of what is stable, which is just where the best rates lie (Metz et al. 2019, section 3); an
evolution strategy smooths the loss over that edge. Trainings here are short enough to be run whole, so that nothing is
truncated and the persistent variant (Vicol et al. 2021) has no bias to remove. Both of a pair train the same student
on the same batches of the same task: what differs between them is the policy's doing.

Symbols: T tasks, R learning-rate policies, F features, n pairs, P weights of the network in all, sigma the size of a
perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metasearch.meta.meta_training import Gradient, Parameters
from metasearch.meta.policy_network import FEATURES, NAMES, PolicyNetwork, shapes
from metasearch.meta.short_training import PolicyTask, ShortTraining, Value, outer_loss
from metasearch.policies import Policy

Floats = npt.NDArray[np.float64]
HIDDEN = 8
RIDGE = 4.0
"""The penalty of the starting network's regression: as much as four tasks that say nothing of a feature."""
SMALL_LOSS = 0.05
"""In nats: losses well below it count as one, or the logarithm would make the easiest task the most important."""


def scored(loss: float) -> float:
    """Return ln(loss + SMALL_LOSS), what policies are trained and chosen by: tasks of all difficulties weigh alike."""
    return math.log(loss + SMALL_LOSS)


def family_scores(
    candidates: Sequence[Policy],
    tasks: Sequence[PolicyTask],
    *,
    temperature: Value,
    training: ShortTraining,
    seeds: Sequence[int],
) -> Floats:
    """Return the mean score over seeds of each of R learning-rate policies on each of T tasks, (R, T)."""
    return np.array(
        [
            [
                np.mean([scored(outer_loss(task, rate, temperature, training=training, seed=s)[0]) for s in seeds])
                for task in tasks
            ]
            for rate in candidates
        ]
    )


def best_peaks(peaks: Sequence[float], scores: Floats) -> list[float]:
    """Return the best peak of each task, between those tried: the vertex of a parabola through the best and its two
    neighbours on the logarithmic scale. peaks: R, rising by about one factor. scores: (R, T)."""
    logs, found = np.log(peaks), []
    for column in scores.T:
        middle = int(np.clip(np.argmin(column), 1, len(peaks) - 2))
        near = slice(middle - 1, middle + 2)
        square, slope, _ = np.polyfit(logs[near], column[near], 2)
        vertex = -slope / (2 * square) if square > 1e-9 else logs[int(np.argmin(column))]
        found.append(float(np.exp(np.clip(vertex, logs[middle - 1], logs[middle + 1]))))
    return found


def starting_network(
    tasks: Sequence[PolicyTask],
    *,
    peaks: Sequence[float],
    temperature: float,
    training: ShortTraining,
    seed: int,
    outputs: tuple[str, ...] = ("learning_rate",),
) -> PolicyNetwork:
    """Return a policy network that says a cosine, from the peak that the task's features predict, and a constant
    temperature.

    peaks: the best of each task; their logarithms are fitted by ridge regression, so that equal ones are said of every
    task. Features are standardized over the tasks; those in which all are equal are left out.
    """
    values = np.array([[task.features[name] for name in FEATURES] for task in tasks])
    rng = np.random.default_rng(seed)
    sizes = shapes(len(FEATURES), HIDDEN, len(outputs))
    weights = {name: np.zeros(sizes[name]) for name in NAMES}
    weights["U"] = rng.normal(size=sizes["U"]) / math.sqrt(sizes["U"][1])
    first = {"learning_rate": float(np.exp(np.mean(np.log(peaks)))), "temperature": temperature}
    weights["b"] = np.log([first[name] for name in outputs])
    spread = values.std(axis=0)
    spread[spread < 1e-9] = 0.0
    network = PolicyNetwork(weights, FEATURES, values.mean(axis=0), spread, outputs, training.optimizer)
    z = np.array([network.standardized(task.features) for task in tasks])
    row = weights["S"][outputs.index("learning_rate")]
    row[: len(FEATURES)] = np.linalg.solve(
        z.T @ z + RIDGE * np.eye(len(FEATURES)), z.T @ (np.log(peaks) - np.mean(np.log(peaks)))
    )
    row[len(FEATURES) + 1] = 1.0  # of the logarithm of the half cosine
    return network


def antithetic_gradient(
    loss: Callable[[Floats, int], float], point: Floats, *, sigma: float, pairs: int, generator: torch.Generator
) -> tuple[Floats, float]:
    """Return an estimate of the gradient at `point` (P,) of the loss smoothed by noise of size sigma, and mean loss.

        1 / (2 n sigma) * sum over pairs of (L(point + sigma e) - L(point - sigma e)) e,   e ~ N(0, I)

    loss(point, draw): draw is a whole number, the same for both of a pair, from which it takes all its randomness.
    Salimans et al. (2017), section 2 and 2.1.
    """
    total, losses = np.zeros_like(point), []
    for _ in range(pairs):
        noise = torch.randn(len(point), generator=generator, dtype=torch.float64).numpy()
        draw = int(torch.randint(2**31, (), generator=generator))
        above, below = (loss(point + sign * sigma * noise, draw) for sign in (1, -1))
        total += (above - below) / (2 * sigma) * noise
        losses += [above, below]
    return total / pairs, float(np.mean(losses))


def policy_gradient(
    network: PolicyNetwork, tasks: Sequence[PolicyTask], *, training: ShortTraining, sigma: float = 0.1, pairs: int = 4
) -> Gradient:
    """Return the gradient of the score over the family, for `meta_training.meta_train`.

    Each pair has a task and a seed of its own.
    """

    def gradient(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
        point, rebuild = _flat(parameters)

        def loss(point: Floats, draw: int) -> float:
            task = tasks[draw % len(tasks)]
            changed = with_weights(network, rebuild(point))
            return scored(_loss_under(changed, task, training, seed=draw // len(tasks))[0])

        found, mean = antithetic_gradient(loss, point, sigma=sigma, pairs=pairs, generator=generator)
        return rebuild(found), mean

    return gradient


def policy_value(
    network: PolicyNetwork, tasks: Sequence[PolicyTask], *, training: ShortTraining, seeds: Sequence[int]
) -> Callable[[Parameters], float]:
    """Return what validates a policy network's weights: minus the mean score over tasks and seeds."""

    def value(parameters: Parameters) -> float:
        changed = with_weights(network, parameters)
        losses = [_loss_under(changed, task, training, seed=seed)[0] for task in tasks for seed in seeds]
        return -float(np.mean([scored(loss) for loss in losses]))

    return value


def parameters_of(network: PolicyNetwork) -> dict[str, Tensor]:
    """Return the weights as tensors, for the outer loop."""
    return {name: torch.from_numpy(network.weights[name].copy()) for name in NAMES}


def with_weights(network: PolicyNetwork, parameters: Parameters) -> PolicyNetwork:
    """Return the network with other weights."""
    return replace(network, weights={name: parameters[name].detach().cpu().double().numpy() for name in NAMES})


def policies_of(network: PolicyNetwork, task: PolicyTask) -> tuple[Value, Value]:
    """Return learning rate and temperature as the network says them for a task; 4 for a temperature it does not say."""
    says = {name: network.policy_for(task.features, name) for name in network.outputs}
    return says["learning_rate"], says.get("temperature", lambda progress: 4.0)


def _loss_under(network: PolicyNetwork, task: PolicyTask, training: ShortTraining, *, seed: int) -> tuple[float, float]:
    return outer_loss(task, *policies_of(network, task), training=training, seed=seed)


def _flat(parameters: Parameters) -> tuple[Floats, Callable[[Floats], dict[str, Tensor]]]:
    """Return all weights as one vector (P,), and what makes weights of such a vector."""
    names = list(parameters)
    sizes = [parameters[name].numel() for name in names]

    def rebuild(point: Floats) -> dict[str, Tensor]:
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(point)), sizes)
        return {name: part.reshape(parameters[name].shape) for name, part in zip(names, parts, strict=True)}

    return torch.cat([parameters[name].double().flatten() for name in names]).numpy(), rebuild
