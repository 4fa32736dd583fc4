"""Small networks and episodes, in float64, for which an answer is known or can be worked out by brute force."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.method import Support
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks.episodes import EpisodeBatch

WAYS, FEATURES = 3, 4


def plain_network(*, seed: int = 0) -> FunctionalNetwork:
    """Return a network of two linear layers with a smooth nonlinearity, without BatchNorm: a gradient is exact."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, WAYS))
    return FunctionalNetwork.of(module.double())


def normalised_network() -> FunctionalNetwork:
    """Return a smooth network of images (1, 6, 6) with BatchNorm: no kink spoils a finite difference."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        module = nn.Sequential(*layers, nn.Linear(3, WAYS))
    return FunctionalNetwork.of(module.double())


def student_network(
    student: str, *, input_shape: tuple[int, ...] = (1, 8, 8), classes: int = WAYS
) -> FunctionalNetwork:
    """Return a network of our families in float64."""
    module = build_network(NetworkSpec.parse(student), input_shape=input_shape, classes=classes, seed=1)
    return FunctionalNetwork.of(module.double())


def noise_episodes(
    *,
    count: int = 3,
    shots: int = 2,
    queries: int = 3,
    shape: tuple[int, ...] = (FEATURES,),
    taught: bool = False,
    seed: int = 0,
) -> EpisodeBatch:
    """Return episodes of noise in float64, each class around a centre of its own. taught: with logits of noise."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    centres = noise(count, WAYS, *shape)
    labels = torch.arange(WAYS)
    parts = []
    for each in (shots, queries):
        inputs = centres.repeat_interleave(each, dim=1) + 0.3 * noise(count, WAYS * each, *shape)
        parts += [inputs, labels.repeat_interleave(each).expand(count, -1)]
    episodes = EpisodeBatch(*parts)
    if not taught:
        return episodes
    return replace(
        episodes,
        support_logits=noise(count, WAYS * shots, WAYS),
        query_logits=noise(count, WAYS * queries, WAYS),
    )


def meta_gradient(loss: Tensor, meta: Parameters) -> Tensor:
    """Return the gradient of a loss in all meta-parameters, one after the other."""
    gradients = torch.autograd.grad(loss, list(meta.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def learnable(parameters: Parameters) -> Parameters:
    """Return copies that ask for gradients."""
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def support(episodes: EpisodeBatch, index: int = 0) -> Support:
    """Return the support set of one episode."""
    return Support(episodes.support_inputs[index], episodes.support_labels[index], WAYS)
