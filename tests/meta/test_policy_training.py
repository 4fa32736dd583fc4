from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from metasearch.errors import InputError
from metasearch.meta.meta_training import LoopSettings, Parameters, meta_train
from metasearch.meta.policy_making import DRAWN, PolicyRequest, compare, policy_tasks
from metasearch.meta.policy_network import FEATURES, PolicyNetwork, save_policy_network
from metasearch.meta.policy_training import (
    Floats,
    antithetic_gradient,
    best_peaks,
    family_scores,
    parameters_of,
    policies_of,
    policy_gradient,
    policy_value,
    starting_network,
    with_weights,
)
from metasearch.meta.short_training import (
    DIVERGED_LOSS,
    MOST_VALIDATION,
    PolicyTask,
    ShortTraining,
    few_examples,
    outer_loss,
)
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective
from metasearch.policies import Policy
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.tasks.domains import whole_domain
from metasearch.training import Schedule, TrainingData, train

MLP = ShortTraining(NetworkSpec("mlp", width=2, depth=1))


@cache
def digits() -> Task:
    return load_task(TaskSource("digits"))


def task(examples: int = 64, steps: int = 10) -> PolicyTask:
    return PolicyTask(few_examples(digits(), examples=examples, seed=0), steps)


def four(progress: float) -> float:
    return 4.0


def test_the_evolution_strategy_finds_the_gradient_of_a_linear_loss() -> None:
    slope = np.array([1.0, -2.0, 0.0, 3.0])
    found, mean = antithetic_gradient(
        lambda point, draw: float(slope @ point) + draw % 7,  # what both of a pair share does not matter
        np.array([1.0, 1.0, 1.0, 1.0]),
        sigma=0.3,
        pairs=3000,
        generator=torch.Generator().manual_seed(0),
    )
    assert np.abs(found - slope).max() < 0.4
    assert mean == pytest.approx(2 + 3, abs=0.3)


def test_a_symmetric_loss_has_no_gradient_at_its_optimum() -> None:
    found, _ = antithetic_gradient(
        lambda point, draw: float(point @ point),
        np.zeros(5),
        sigma=0.3,
        pairs=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert np.abs(found).max() < 1e-12


STIFFNESS = (0.3, 1.0, 3.0)
"""Of a parabola h x^2 / 2, whose minimum one gradient step of rate 1 / h reaches."""


def test_the_network_learns_the_best_rate_of_each_task_of_a_family_of_parabolas() -> None:
    features = [dict.fromkeys(FEATURES, 1.0) | {"log_steps": math.log(h)} for h in STIFFNESS]
    start = parabola_network(features)

    def loss_of(network: PolicyNetwork, index: int, position: float) -> float:
        rate = network.policy_for(features[index], "learning_rate")(0.0)
        return abs((1 - rate * STIFFNESS[index]) * position)

    def gradient(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
        names = list(parameters)
        sizes = [parameters[name].numel() for name in names]

        def rebuild(point: Floats) -> dict[str, torch.Tensor]:
            parts = torch.split(torch.from_numpy(point), sizes)
            return {name: part.reshape(parameters[name].shape) for name, part in zip(names, parts, strict=True)}

        def loss(point: Floats, draw: int) -> float:
            return loss_of(with_weights(start, rebuild(point)), draw % 3, 1 + draw % 5)

        point = torch.cat([value.flatten() for value in parameters.values()]).numpy()
        found, mean = antithetic_gradient(loss, point, sigma=0.1, pairs=8, generator=generator)
        return rebuild(found), mean

    found = meta_train(
        parameters_of(start),
        gradient,
        lambda parameters: -sum(loss_of(with_weights(start, parameters), index, 1.0) for index in range(3)),
        settings=LoopSettings(250, rate=0.05, every=10),
        generator=torch.Generator().manual_seed(0),
    )
    learned = with_weights(start, found.parameters)
    for one, h in zip(features, STIFFNESS, strict=True):
        assert learned.policy_for(one, "learning_rate")(0.0) * h == pytest.approx(1, abs=0.35)


def parabola_network(features: list[dict[str, float]]) -> PolicyNetwork:
    values = np.array([[one[name] for name in FEATURES] for one in features])
    start = starting_network([task()], peaks=[0.1], temperature=4.0, training=MLP, seed=0)
    return replace(start, centre=values.mean(axis=0), spread=values.std(axis=0))


def test_a_starting_network_of_one_peak_says_its_cosine_whatever_the_task() -> None:
    start = starting_network([task(), task(32, 30)], peaks=[0.03] * 2, temperature=2.0, training=MLP, seed=0)
    for one in (task(), task(40, 90)):
        rate, temperature = policies_of(start, one)
        for progress in (0.0, 0.3, 0.8):
            expected = 0.03 * ((1 + math.cos(math.pi * progress)) / 2 + 1e-3)
            assert rate(progress) == pytest.approx(expected)
            assert temperature(progress) == 4.0  # it has no such output


def test_few_examples_are_balanced_and_the_test_split_stays() -> None:
    few = few_examples(digits(), examples=50, seed=1)
    assert few.train.labels.bincount().tolist() == [5] * 10
    assert len(few.validation) == min(MOST_VALIDATION, len(digits().validation))
    assert few.test is digits().test
    assert few.fingerprint != digits().fingerprint
    assert few_examples(digits(), examples=50, seed=1).fingerprint == few.fingerprint


def test_a_short_training_is_that_of_the_training_loop() -> None:
    one = task(64, 2)  # one epoch of two batches
    model = build_network(MLP.student, input_shape=one.task.input_shape, classes=10, seed=3)
    schedule = Schedule(
        lambda p: 0.02, four, epochs=1, batch_size=MLP.batch_size, momentum=MLP.momentum, weight_decay=MLP.weight_decay
    )
    *_, (_, report) = train(
        model,
        TrainingData.without_teacher(one.task, device=torch.device("cpu")),
        objective=DistillationObjective("kd", 0.0, one.task.input_shape),
        schedule=schedule,
        generator=torch.Generator().manual_seed(3),
        stage="distill",
    )
    _, accuracy = outer_loss(one, lambda p: 0.02, four, training=MLP, seed=3)
    assert accuracy == pytest.approx(report.val_accuracy)


def test_a_diverged_training_counts_the_most_and_ends_nothing() -> None:
    loss, accuracy = outer_loss(task(), lambda p: 1e18, four, training=replace(MLP, optimizer="sgd"), seed=0)
    assert loss == pytest.approx(DIVERGED_LOSS * math.log(10))
    assert 0 <= accuracy <= 0.3


def test_the_best_of_a_family_is_the_one_of_least_score() -> None:
    rates = [Policy("constant", {"value": value}) for value in (1e-6, 0.03, 5.0)]
    scores = family_scores(rates, [task(steps=30), task(100, 30)], temperature=four, training=MLP, seeds=(0,))
    assert scores.shape == (3, 2)
    assert scores.argmin(axis=0).tolist() == [1, 1]


def test_the_best_peak_lies_at_the_vertex_of_a_parabola() -> None:
    peaks = [0.01, 0.02, 0.04, 0.08]
    scores = np.array([[(math.log(peak) - math.log(best)) ** 2 for best in (0.025, 0.055, 1.0)] for peak in peaks])
    assert best_peaks(peaks, scores) == pytest.approx([0.025, 0.055, 0.08])


def test_a_starting_network_predicts_the_peak_from_the_features() -> None:
    tasks = [task(64, steps) for steps in (10, 30, 100, 300)] * 6
    peaks = [0.3 / math.sqrt(one.steps) for one in tasks]
    start = starting_network(tasks, peaks=peaks, temperature=4.0, training=MLP, seed=0)
    for one, peak in zip(tasks, peaks, strict=True):
        assert policies_of(start, one)[0](0.0) == pytest.approx(peak, rel=0.3)


def test_a_teacher_makes_the_temperature_matter() -> None:
    few = few_examples(digits(), examples=64, seed=0)
    logits = 3 * torch.nn.functional.one_hot(few.train.labels, 10).float()
    taught, training = PolicyTask(few, 10, logits), replace(MLP, alpha=0.9)
    losses = {
        outer_loss(taught, lambda p: 0.02, lambda p, t=t: t, training=training, seed=0)[0]  # type: ignore[misc]
        for t in (1.0, 8.0)
    }
    assert len(losses) == 2
    start = starting_network(
        [taught], peaks=[0.02], temperature=3.0, training=training, seed=0, outputs=("learning_rate", "temperature")
    )
    assert policies_of(start, taught)[1](0.5) == pytest.approx(3.0)


@pytest.mark.slow
def test_a_network_that_starts_with_far_too_low_a_rate_is_trained_to_a_better_one() -> None:
    tasks = [task(steps=40)]
    start = starting_network(tasks, peaks=[0.001], temperature=4.0, training=MLP, seed=0)
    value = policy_value(start, tasks, training=MLP, seeds=(11,))
    found = meta_train(
        parameters_of(start),
        policy_gradient(start, tasks, training=MLP, sigma=0.3, pairs=2),
        value,
        settings=LoopSettings(12, rate=0.3, every=4),
        generator=torch.Generator().manual_seed(1),
    )
    assert found.value > value(parameters_of(start)) + 0.2


def test_a_policy_is_compared_with_the_same_seeds() -> None:
    start = starting_network([task()], peaks=[0.02], temperature=4.0, training=MLP, seed=0)
    for name in start.weights:
        start.weights[name][...] = 0.0
    start.weights["b"][0] = math.log(0.02)  # the very constant that it is compared with
    found = compare(start, {"constant": Policy("constant", {"value": 0.02})}, [task()], training=MLP, seeds=(1, 2))
    assert found.losses["policy"] == pytest.approx(found.losses["constant"], rel=1e-4)
    assert found.record()["judged"] == 1


def test_tasks_of_a_family_differ_in_examples_and_steps_within_their_ranges() -> None:
    drawn = policy_tasks([whole_domain(digits())], each=4, seed=0)
    (few, many), (short, long) = DRAWN
    assert all(few <= len(one.task.train) <= many and short <= one.steps <= long for one in drawn)
    assert len({one.steps for one in drawn}) > 1
    assert drawn[0].features["log_steps"] == pytest.approx(math.log(drawn[0].steps))


def test_a_network_for_another_optimizer_is_not_trained_on(tmp_path: Path) -> None:
    start = starting_network([task()], peaks=[0.02], temperature=4.0, training=replace(MLP, optimizer="sgd"), seed=0)
    save_policy_network(start, tmp_path / "sgd")
    with pytest.raises(InputError, match="--continue: must be a policy network for adamw, got 'sgd'"):
        PolicyRequest("digits@classes:3", start=str(tmp_path / "sgd"))


def test_a_task_without_steps_is_refused() -> None:
    with pytest.raises(InputError, match="steps: must be at least 1, got 0"):
        PolicyTask(digits(), 0)
