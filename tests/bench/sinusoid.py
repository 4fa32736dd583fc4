"""Sinusoid regression as in Finn et al. (2017), section 5.1: MAML against pretraining on all tasks.

A task is y = A sin(x - phase), A in [0.1, 5], phase in [0, pi], x in [-5, 5]; the network has two hidden layers of 40
ReLUs. MAML is trained as in the paper: one inner step of rate 0.01 on 10 points, Adam, 25 tasks at once; it is judged
with 5 and with 10 points after 1, 5 and 10 steps of that rate. Pretraining sees the same tasks without an inner loop,
and fine-tunes at the rate that is best for it, chosen for each number of points and steps on tasks of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.maml import Maml
from metasearch.meta.method import Inner
from metasearch.tasks.episodes import EpisodeBatch
from tests.bench.sides import Verdict, conditions, print_table

ITERATIONS, QUICK_ITERATIONS = 20_000, 300
"""The paper's own code takes 70,000."""
TASKS_A_BATCH, TRAINING_SHOTS, QUERIES = 25, 10, 10
INNER_RATE, OUTER_RATE = 0.01, 1e-3
SHOTS, STEPS = (5, 10), (1, 5, 10)
TEST_TASKS, QUICK_TEST_TASKS, TEST_POINTS = 1_000, 50, 100
FINE_TUNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.02, 0.05)
TARGET = 0.5
"""After one step MAML's error is at most this share of pretraining's."""


def run(*, quick: bool) -> Verdict:
    """Train both, print their errors, and judge them after one step."""
    iterations = QUICK_ITERATIONS if quick else ITERATIONS
    started = time.process_time()
    network = sinusoid_network()
    maml = Maml(network, Inner(1, INNER_RATE), squared_error)
    learned = trained(maml.outer_loss, maml.initial(), iterations)
    pretrained = trained(lambda theta, tasks: joint_loss(network, theta, tasks), maml.initial(), iterations)
    rows, ratios = [], {}
    for shots in SHOTS:
        tasks = draw_tasks(
            QUICK_TEST_TASKS if quick else TEST_TASKS,
            shots=shots,
            queries=TEST_POINTS,
            generator=torch.Generator().manual_seed(1),
        )
        adapted = {steps: errors(maml, learned, tasks, steps) for steps in STEPS}
        tuned = {steps: fine_tuned(network, pretrained, tasks, shots=shots, steps=steps) for steps in STEPS}
        for name, found in (("MAML", adapted), ("pretraining", tuned)):
            rows.append((name, str(shots), *(with_interval(found[steps]) for steps in STEPS)))
        ratios[shots] = float(adapted[1].mean() / tuned[1].mean())
    notes = [
        conditions(),
        f"{iterations:,} iterations each of {TASKS_A_BATCH} tasks, Adam {OUTER_RATE:g}; mean squared error on "
        f"{TEST_POINTS} points of {len(tasks):,} new tasks with its 95 % interval; one seed; "
        f"{time.process_time() - started:.0f} CPU seconds in all",
        "the paper's curves, roughly: MAML after one step 0.7 and 0.4 with 5 and 10 "
        "points, then 0.3 and 0.2; pretraining 2.3 and 2.1, then 2.1 and 1.8",
    ]
    header = ("method", "points", *(f"after {steps} step{'s' * (steps > 1)}" for steps in STEPS))
    print_table("Sinusoid regression (Finn et al. 2017, section 5.1)", header, rows, notes)
    text = ", ".join(f"{ratio:.2f} with {shots} points" for shots, ratio in ratios.items())
    met = None if quick else all(ratio <= TARGET for ratio in ratios.values())
    return Verdict("sinusoid", met, f"MAML's error over pretraining's after one step: {text} (target: {TARGET:g})")


def sinusoid_network() -> FunctionalNetwork:
    """Return the paper's network, drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)]
        return FunctionalNetwork.of(nn.Sequential(*layers))


def squared_error(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    """Return the mean squared error."""
    return functional.mse_loss(outputs, labels)


def draw_tasks(count: int, *, shots: int, queries: int, generator: torch.Generator) -> EpisodeBatch:
    """Return sinusoids as episodes with real labels."""

    def uniform(low: float, high: float, *sizes: int) -> Tensor:
        return low + (high - low) * torch.rand(*sizes, 1, generator=generator)

    amplitude, phase = uniform(0.1, 5.0, count, 1), uniform(0.0, math.pi, count, 1)
    support, query = uniform(-5.0, 5.0, count, shots), uniform(-5.0, 5.0, count, queries)
    return EpisodeBatch(support, amplitude * torch.sin(support - phase), query, amplitude * torch.sin(query - phase))


def trained(loss: Callable[[Parameters, EpisodeBatch], Tensor], initial: Parameters, iterations: int) -> Parameters:
    """Return the meta-parameters after Adam's steps on batches of new tasks."""
    meta = {name: value.requires_grad_() for name, value in initial.items()}
    optimizer = torch.optim.Adam(meta.values(), lr=OUTER_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        tasks = draw_tasks(TASKS_A_BATCH, shots=TRAINING_SHOTS, queries=QUERIES, generator=generator)
        optimizer.zero_grad()
        loss(meta, tasks).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return {name: value.detach() for name, value in meta.items()}


def joint_loss(network: FunctionalNetwork, theta: Parameters, tasks: EpisodeBatch) -> Tensor:
    """Return the error of one network on the points of all tasks."""
    inputs = torch.cat([tasks.support_inputs, tasks.query_inputs], dim=1)
    labels = torch.cat([tasks.support_labels, tasks.query_labels], dim=1)
    return functional.mse_loss(network(theta, inputs.flatten(0, 1)), labels.flatten(0, 1))


def errors(method: Maml, meta: Parameters, tasks: EpisodeBatch, steps: int, rate: float | None = None) -> Tensor:
    """Return the error on each task's query points after some steps on its support points, (T,)."""
    inner = Inner(steps, rate or method.inner.rate)
    with torch.no_grad():
        return replace(method, inner=inner, first_order=True).query_losses(meta, tasks)


def fine_tuned(network: FunctionalNetwork, theta: Parameters, tasks: EpisodeBatch, *, shots: int, steps: int) -> Tensor:
    """Return the errors of plain fine-tuning at its best rate, which other tasks choose."""
    method = Maml(network, Inner(steps, INNER_RATE), squared_error)
    choosing = draw_tasks(len(tasks), shots=shots, queries=TEST_POINTS, generator=torch.Generator().manual_seed(2))
    best = min(
        FINE_TUNING_RATES, key=lambda rate: float(errors(method, theta, choosing, steps, rate).mean().nan_to_num(1e9))
    )
    return errors(method, theta, tasks, steps, best)


def with_interval(values: Tensor) -> str:
    """Return the mean of values (T,) and half of its 95 % interval."""
    return f"{float(values.mean()):.3f} ± {1.96 * float(values.std()) / math.sqrt(len(values)):.3f}"
