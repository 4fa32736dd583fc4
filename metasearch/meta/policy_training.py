"""How a policy network is trained: by the validation loss after short trainings, over a family of tasks.

The outer loss is the validation loss after a whole, unrolled training under the network's policies. Its gradient with
respect to the network's weights comes from an evolution strategy with antithetic pairs (Salimans et al. 2017, section
2). Backpropagation through the unrolled training costs the memory of every step, and its gradients explode where the
learning rate is at the edge of what is stable, which is just where the best rates lie (Metz et al. 2019, section 3); an
evolution strategy smooths the loss over that edge. Trainings here are short enough to be run whole, so that nothing is
truncated and the persistent variant (Vicol et al. 2021) has no bias to remove. Both of a pair train the same student
on the same batches of the same task: what differs between them is the policy's doing.

Symbols: T tasks, F features, n pairs, P weights of the network in all, sigma the size of a perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from metasearch.errors import InputError
from metasearch.measure import predict
from metasearch.meta.meta_training import Gradient, Parameters
from metasearch.meta.policy_network import FEATURES, NAMES, PolicyNetwork, policy_features, shapes
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective
from metasearch.policies import Policy
from metasearch.tasks import Split, Task
from metasearch.tasks.prepared import fingerprint
from metasearch.tasks.splits import SPLITS, choose, equal_counts
from metasearch.training import Schedule, TrainingData, laid_out

Floats = npt.NDArray[np.float64]
Value = Callable[[float], float]
HIDDEN = 8
MOST_VALIDATION = 500
DIVERGED_LOSS = 10.0
"""In units of log K, the loss of guessing: the most that a diverged training counts."""
SMALL_LOSS = 0.05
"""In nats: losses well below it count as one, or the logarithm would make the easiest task the most important."""


@dataclass(frozen=True)
class ShortTraining:
    """How the students of the inner trainings are made and trained; alpha is 0 without a teacher."""

    student: NetworkSpec
    optimizer: str = "adamw"
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-4
    alpha: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class PolicyTask:
    """A task that is to be learnt in so many steps. teacher_logits: (N, K) on the train split, or None."""

    task: Task
    steps: int
    teacher_logits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("steps", "must be at least 1", self.steps)

    @cached_property
    def features(self) -> dict[str, float]:
        """What the policy network is told of it."""
        return policy_features(self.task, steps=self.steps)

    @cached_property
    def data(self) -> TrainingData:
        """The train split with what the teacher says of it, zeros without one."""
        plain = TrainingData.without_teacher(self.task, device=torch.device("cpu"))
        return plain if self.teacher_logits is None else replace(plain, teaching={"logits": self.teacher_logits[None]})


def few_examples(task: Task, *, examples: int, seed: int) -> Task:
    """Return the task with so many training examples, balanced over the classes, and at most MOST_VALIDATION others."""
    rng = np.random.default_rng(seed)
    splits = {name: getattr(task, name) for name in SPLITS}
    for name, count in (("train", examples), ("validation", MOST_VALIDATION)):
        split: Split = splits[name]
        kept = choose(split.labels.numpy(), count, counts_rule=equal_counts, classes=task.classes, rng=rng)
        positions = torch.from_numpy(kept)
        splits[name] = Split(split.inputs[positions], split.labels[positions])
    return replace(
        task,
        train=splits["train"],
        validation=splits["validation"],
        fingerprint=fingerprint(splits, task.class_names),
        unlabelled=None,
    )


def outer_loss(
    task: PolicyTask, learning_rate: Value, temperature: Value, *, training: ShortTraining, seed: int
) -> tuple[float, float]:
    """Return cross-entropy on the validation split, and accuracy, after a training under two policies.

    seed: of the student's first weights and of the order of examples. A diverged training counts DIVERGED_LOSS log K.
    """
    model = _trained(task, learning_rate, temperature, training, seed)
    validation, classes = task.task.validation, task.task.classes
    logits = predict(model, validation.inputs, prepare=task.task.normalisation, device=torch.device(training.device))
    loss = float(functional.cross_entropy(logits, validation.labels))
    most = DIVERGED_LOSS * math.log(classes)
    accuracy = float((logits.argmax(dim=1) == validation.labels).double().mean())
    return (min(loss, most), accuracy) if math.isfinite(loss) else (most, 1 / classes)


def _trained(
    task: PolicyTask, learning_rate: Value, temperature: Value, training: ShortTraining, seed: int
) -> nn.Module:
    """Return a student after `task.steps` optimizer steps, as `metasearch.training` takes them.

    That loop validates after every epoch, which costs more here than the training: an epoch is a few steps long.
    """
    device = torch.device(training.device)
    model = build_network(training.student, input_shape=task.task.input_shape, classes=task.task.classes, seed=seed)
    model = laid_out(model.to(device))
    model.train()
    objective = DistillationObjective("kd", training.alpha, task.task.input_shape)
    schedule = Schedule(
        learning_rate,
        temperature,
        epochs=1,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    optimizer = schedule.new_optimizer(model)
    batch_at, examples = task.data.epoch(0), len(task.data.labels)
    batch_size = min(training.batch_size, examples)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(task.steps):
        if len(order) < batch_size:
            order = torch.randperm(examples, generator=generator)
        indices, order = order[:batch_size], order[batch_size:]
        progress = step / task.steps
        inputs, teaching = batch_at(indices)
        teaching = {name: values.to(device) for name, values in teaching.items()}
        labels = task.data.labels[indices].to(device)
        loss = objective(model, inputs.to(device), teaching, labels, temperature=temperature(progress))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        optimizer.step()
    return model


def scored(loss: float) -> float:
    """Return ln(loss + SMALL_LOSS), what policies are trained and chosen by: tasks of all difficulties weigh alike."""
    return math.log(loss + SMALL_LOSS)


def best_on_family(
    candidates: Sequence[Policy],
    tasks: Sequence[PolicyTask],
    *,
    temperature: Value,
    training: ShortTraining,
    seeds: Sequence[int],
) -> tuple[Policy, float]:
    """Return the learning-rate policy of the least mean score over tasks and seeds, and that score."""
    losses = [
        float(
            np.mean(
                [
                    scored(outer_loss(task, policy, temperature, training=training, seed=seed)[0])
                    for task in tasks
                    for seed in seeds
                ]
            )
        )
        for policy in candidates
    ]
    best = int(np.argmin(losses))
    return candidates[best], losses[best]


def starting_network(
    tasks: Sequence[PolicyTask],
    *,
    peak: float,
    temperature: float,
    training: ShortTraining,
    seed: int,
    outputs: tuple[str, ...] = ("learning_rate",),
) -> PolicyNetwork:
    """Return a policy network that says a cosine from `peak` and a constant temperature, whatever the task.

    Its features are standardized over the tasks; those in which all are equal are left out.
    """
    values = np.array([[task.features[name] for name in FEATURES] for task in tasks])
    rng = np.random.default_rng(seed)
    sizes = shapes(len(FEATURES), HIDDEN, len(outputs))
    weights = {name: np.zeros(sizes[name]) for name in NAMES}
    weights["U"] = rng.normal(size=sizes["U"]) / math.sqrt(sizes["U"][1])
    first = {"learning_rate": peak, "temperature": temperature}
    weights["b"] = np.log([first[name] for name in outputs])
    weights["S"][outputs.index("learning_rate"), len(FEATURES) + 1] = 1.0  # of the logarithm of the half cosine
    spread = values.std(axis=0)
    spread[spread < 1e-9] = 0.0
    return PolicyNetwork(weights, FEATURES, values.mean(axis=0), spread, outputs, training.optimizer)


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
