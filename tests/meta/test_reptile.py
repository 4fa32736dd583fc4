from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from metasearch.errors import TrialFailure
from metasearch.meta.method import Inner, support_of
from metasearch.meta.reptile import Reptile
from tests.meta.known import learnable, meta_gradient, noise_episodes, plain_network, student_network


@pytest.mark.parametrize("student", ["plain", "convnet:width=2,depth=2"])
def test_with_one_inner_step_it_is_joint_training(student: str) -> None:
    """theta - phi is then rate times the gradient of the mean loss over all tasks (Nichol et al. 2018, section 3)."""
    plain = student == "plain"
    network = plain_network() if plain else student_network(student)
    episodes = noise_episodes() if plain else noise_episodes(shape=(1, 8, 8))
    method = Reptile(network, Inner(steps=1, rate=0.3))
    theta = learnable(method.initial())
    inputs = torch.cat([episodes.support_inputs, episodes.query_inputs], dim=1)
    labels = torch.cat([episodes.support_labels, episodes.query_labels], dim=1)
    losses = [functional.cross_entropy(network(theta, inputs[t]), labels[t]) for t in range(len(episodes))]
    joint = meta_gradient(torch.stack(losses).mean(), theta)
    assert torch.allclose(meta_gradient(method.outer_loss(theta, episodes), theta), 0.3 * joint, rtol=1e-10, atol=1e-14)


def test_with_several_inner_steps_it_is_not() -> None:
    network, episodes = plain_network(), noise_episodes()
    theta = learnable(network.parameters())
    one, three = (
        meta_gradient(Reptile(network, Inner(steps, 0.3)).outer_loss(theta, episodes), theta) for steps in (1, 3)
    )
    assert (three - 3 * one).norm() > 0.01 * three.norm()


def test_a_step_of_plain_descent_moves_towards_the_mean_of_the_adapted_weights() -> None:
    network, episodes = plain_network(), noise_episodes()
    method = Reptile(network, Inner(4, 0.3))
    theta = learnable(method.initial())
    gradient = meta_gradient(method.outer_loss(theta, episodes), theta)
    before = torch.cat([value.detach().flatten() for value in theta.values()])
    adapted = []
    for index in range(len(episodes)):
        whole = replace(
            support_of(episodes, index),
            inputs=torch.cat([episodes.support_inputs[index], episodes.query_inputs[index]]),
            labels=torch.cat([episodes.support_labels[index], episodes.query_labels[index]]),
        )
        adapted.append(torch.cat([value.flatten() for value in method.adapt(theta, whole).values()]))
    assert torch.allclose(before - gradient, torch.stack(adapted).mean(dim=0), rtol=1e-10, atol=1e-14)


def test_inner_batches_change_the_gradient_and_use_every_example() -> None:
    network, episodes = plain_network(), noise_episodes(count=1)
    theta = learnable(network.parameters())
    whole, dealt = (
        meta_gradient(Reptile(network, Inner(3, 0.3), batches=batches).outer_loss(theta, episodes), theta)
        for batches in (1, 3)
    )
    assert (whole - dealt).norm() > 1e-3 * whole.norm()
    for row in range(episodes.query_inputs.shape[1]):
        other = episodes.query_inputs.clone()
        other[0, row] += 1
        changed = Reptile(network, Inner(3, 0.3), batches=3).outer_loss(theta, replace(episodes, query_inputs=other))
        assert not torch.equal(meta_gradient(changed, theta), dealt)


def test_a_diverging_inner_loop_is_one_line() -> None:
    method = Reptile(plain_network(), Inner(8, 1e200))
    with pytest.raises(
        TrialFailure, match=r"^diverged: the loss of \d of 3 episodes is not finite after 8 inner steps"
    ):
        method.outer_loss(method.initial(), noise_episodes())
