from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metasearch.errors import TrialFailure
from metasearch.hypergradient import Hypergradient


class Quadratic(nn.Module):
    """f(theta) = sum of curvature * theta^2 / 2."""

    def __init__(self, *curvatures: float) -> None:
        super().__init__()
        self.curvatures = torch.tensor(curvatures)
        self.theta = nn.Parameter(torch.ones(len(curvatures)))

    def forward(self) -> Tensor:
        return (self.curvatures * self.theta.square()).sum() / 2


def descend(model: Quadratic, rate: Hypergradient, *, steps: int, momentum: float = 0.0) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        rates.append(rate.adapted(model))
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.step()
    return rates


def test_the_first_step_is_made_at_the_start_rate() -> None:
    assert descend(Quadratic(1.0), Hypergradient(0.3, beta=0.1), steps=1) == [0.3]


def test_a_rate_too_small_grows_by_beta_at_every_step() -> None:
    """In one dimension gradient and last change point the same way until the minimum is passed."""
    rates = descend(Quadratic(1.0), Hypergradient(1e-3, beta=0.1), steps=10)
    assert rates == pytest.approx([1e-3 * 1.1**step for step in range(10)])


def test_a_rate_that_overshoots_shrinks() -> None:
    rates = descend(Quadratic(1.0), Hypergradient(1.5, beta=0.1), steps=5)
    assert rates == pytest.approx([1.5 * 0.9**step for step in range(5)])


def test_the_change_is_beta_times_the_cosine_of_gradient_and_last_change() -> None:
    model, rate = Quadratic(1.0, 4.0), Hypergradient(0.3, beta=0.05)
    first, second = descend(model, rate, steps=2)
    before, after = torch.ones(2), torch.tensor([1 - 0.3, 1 - 0.3 * 4])
    gradient, change = model.curvatures * after, before - after
    cosine = float(gradient @ change / (gradient.norm() * change.norm()))
    assert second == pytest.approx(first * (1 + 0.05 * cosine))


def test_a_poor_start_ends_lower_with_it_than_without() -> None:
    adaptive, fixed = Quadratic(1.0, 3.0), Quadratic(1.0, 3.0)
    descend(adaptive, Hypergradient(1e-3, beta=0.1), steps=100, momentum=0.5)
    descend(fixed, Hypergradient(1e-3, beta=1e-9), steps=100, momentum=0.5)
    assert float(adaptive().detach()) < 0.1 * float(fixed().detach())


def test_a_reshaped_network_starts_without_a_last_change() -> None:
    rate = Hypergradient(0.1, beta=0.1)
    descend(Quadratic(1.0, 2.0), rate, steps=2)
    before = rate.rate
    assert descend(Quadratic(1.0), rate, steps=1) == [before]


def test_a_rate_without_bounds_is_a_diverged_trial() -> None:
    model, rate = Quadratic(1.0), Hypergradient(9e29, beta=0.9)
    rate.adapted(with_gradient(model))
    model.theta.data -= 1.0
    with pytest.raises(TrialFailure, match=r"diverged: the hypergradient took the learning rate to"):
        rate.adapted(with_gradient(model))


def with_gradient(model: Quadratic) -> Quadratic:
    model.theta.grad = torch.ones(1)
    return model
