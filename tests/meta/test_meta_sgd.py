from __future__ import annotations

import pytest
import torch

from metasearch.meta.maml import Maml
from metasearch.meta.meta_sgd import PREFIX, MetaSgd
from metasearch.meta.method import Inner, support_of
from tests.meta.known import learnable, meta_gradient, noise_episodes, plain_network, student_network

TWO_STEPS = Inner(steps=2, rate=0.3)


@pytest.mark.parametrize("vmapped", [False, True])
def test_with_equal_rates_it_is_maml(vmapped: bool) -> None:
    network, episodes = plain_network(), noise_episodes()
    sgd, maml = MetaSgd(network, TWO_STEPS, vmapped=vmapped), Maml(network, TWO_STEPS, vmapped=vmapped)
    theta = learnable(maml.initial())
    frozen = {name: value for name, value in sgd.initial().items() if name.startswith(PREFIX)}
    losses = sgd.outer_loss(theta | frozen, episodes), maml.outer_loss(theta, episodes)
    assert torch.allclose(*losses, rtol=1e-14)
    gradients = [meta_gradient(loss, theta) for loss in losses]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-12, atol=1e-15)


def test_the_gradient_of_a_rate_agrees_with_finite_differences() -> None:
    network, episodes = plain_network(), noise_episodes()
    method = MetaSgd(network, TWO_STEPS)
    meta = learnable(method.initial())
    name = next(name for name in meta if name.startswith(PREFIX))
    (gradient,) = torch.autograd.grad(method.outer_loss(meta, episodes), [meta[name]])
    h = 1e-5
    for element in range(gradient.numel()):
        step = torch.zeros(gradient.numel(), dtype=torch.float64)
        step[element] = h
        up, down = (
            float(method.outer_loss(meta | {name: meta[name] + sign * step.reshape(gradient.shape)}, episodes).detach())
            for sign in (1, -1)
        )
        assert (up - down) / (2 * h) == pytest.approx(float(gradient.flatten()[element]), rel=1e-5, abs=1e-9)


def test_a_parameter_without_a_rate_stays() -> None:
    method = MetaSgd(plain_network(), TWO_STEPS)
    meta = method.initial()
    still = next(iter(method.weights(meta)))
    meta[PREFIX + still] = torch.zeros_like(meta[still])
    phi = method.adapt(meta, support_of(noise_episodes(), 0))
    moved = {name for name in phi if not torch.equal(phi[name], meta[name])}
    assert moved == set(phi) - {still}


def test_an_initialisation_holds_weights_and_no_rates() -> None:
    network = student_network("convnet:width=2,depth=2")
    method = MetaSgd(network, TWO_STEPS)
    state = method.initialisation(method.initial(), support_of(noise_episodes(shape=(1, 8, 8)), 0))
    assert state.keys() == network.module.state_dict().keys()
