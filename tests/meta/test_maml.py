from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metasearch.errors import InputError, TrialFailure
from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.inner_loop import adapt
from metasearch.meta.maml import Maml
from metasearch.meta.method import Inner, classification_loss, query_accuracies, support_of
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks.episodes import EpisodeBatch
from tests.meta.known import (
    learnable,
    meta_gradient,
    noise_episodes,
    normalised_network,
    plain_network,
    student_network,
)

TWO_STEPS = Inner(steps=2, rate=0.3)
INPUT_SHAPES = {"mlp:width=2,depth=2": (5,), "convnet:width=2,depth=2": (1, 8, 8), "resnet:width=2,depth=2": (1, 8, 8)}


def hand_written_gradient(network: FunctionalNetwork, theta: Parameters, episodes: EpisodeBatch, rate: float) -> Tensor:
    """Return the meta-gradient of two inner steps, written out with torch.autograd on the whole graph."""
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(episodes)):
        first = functional.cross_entropy(network(theta, episodes.support_inputs[index]), episodes.support_labels[index])
        slopes = torch.autograd.grad(first, list(theta.values()), create_graph=True)
        once = {name: value - rate * slope for (name, value), slope in zip(theta.items(), slopes, strict=True)}
        second = functional.cross_entropy(network(once, episodes.support_inputs[index]), episodes.support_labels[index])
        slopes = torch.autograd.grad(second, list(once.values()), create_graph=True)
        twice = {name: value - rate * slope for (name, value), slope in zip(once.items(), slopes, strict=True)}
        outputs = network.query_outputs(twice, episodes.support_inputs[index], episodes.query_inputs[index])
        total = total + functional.cross_entropy(outputs, episodes.query_labels[index])
    return meta_gradient(total / len(episodes), theta)


def moved(theta: Parameters, step: Tensor) -> Parameters:
    """Return theta plus a step (P,) that runs through all its elements, one parameter after the other."""
    parts = step.split([value.numel() for value in theta.values()])  # type: ignore[no-untyped-call]  # torch's own
    return {
        name: value.detach() + part.reshape(value.shape)
        for (name, value), part in zip(theta.items(), parts, strict=True)
    }


def slope_along(method: Maml, theta: Parameters, episodes: EpisodeBatch, direction: Tensor, *, h: float) -> float:
    """Return the derivative of the outer loss along a direction, by central differences of fourth order."""
    values = {k: float(method.outer_loss(moved(theta, k * h * direction), episodes)) for k in (-2, -1, 1, 2)}
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)


@pytest.mark.parametrize("vmapped", [False, True])
def test_second_order_gradient_agrees_with_finite_differences(vmapped: bool) -> None:
    method = Maml(plain_network(), TWO_STEPS, vmapped=vmapped)
    episodes, theta = noise_episodes(), learnable(method.initial())
    gradient = meta_gradient(method.outer_loss(theta, episodes), theta)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = functional.normalize(torch.randn(len(gradient), generator=generator, dtype=torch.float64), dim=0)
        measured = slope_along(method, theta, episodes, along, h=1e-3)
        assert abs(measured - float(gradient @ along)) <= 1e-7 * float(gradient.norm())


@pytest.mark.parametrize("vmapped", [False, True])
def test_the_gradient_goes_through_the_statistics_of_batchnorm(vmapped: bool) -> None:
    method = Maml(normalised_network(), TWO_STEPS, vmapped=vmapped)
    episodes, theta = noise_episodes(shape=(1, 6, 6)), learnable(method.initial())
    gradient = meta_gradient(method.outer_loss(theta, episodes), theta)
    slope = slope_along(method, theta, episodes, gradient / gradient.norm(), h=1e-3)
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-6)


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("student", ["plain", *INPUT_SHAPES])
def test_second_order_gradient_agrees_with_a_hand_written_two_step_loop(student: str, vmapped: bool) -> None:
    if student == "plain":
        network, episodes = plain_network(), noise_episodes()
    else:
        shape = INPUT_SHAPES[student]
        network, episodes = student_network(student, input_shape=shape), noise_episodes(shape=shape)
    method = Maml(network, TWO_STEPS, vmapped=vmapped)
    theta = learnable(method.initial())
    gradient = meta_gradient(method.outer_loss(theta, episodes), theta)
    written = hand_written_gradient(network, theta, episodes, TWO_STEPS.rate)
    assert (gradient - written).norm() <= 1e-9 * written.norm()


def test_first_order_gradient_is_the_query_gradient_at_the_adapted_weights() -> None:
    method = Maml(plain_network(), TWO_STEPS, first_order=True)
    episodes, theta = noise_episodes(), learnable(method.initial())
    expected = torch.zeros(sum(value.numel() for value in theta.values()), dtype=torch.float64)
    for index in range(len(episodes)):
        phi = learnable(method.adapt(theta, support_of(episodes, index)))
        outputs = method.network(phi, episodes.query_inputs[index])
        expected += meta_gradient(functional.cross_entropy(outputs, episodes.query_labels[index]), phi) / len(episodes)
    assert torch.allclose(meta_gradient(method.outer_loss(theta, episodes), theta), expected, rtol=1e-9, atol=1e-12)


def test_first_order_has_the_loss_of_second_order_and_another_gradient() -> None:
    second, episodes = Maml(plain_network(), TWO_STEPS), noise_episodes()
    first, theta = replace(second, first_order=True), learnable(second.initial())
    assert torch.equal(first.outer_loss(theta, episodes), second.outer_loss(theta, episodes))
    gradients = [meta_gradient(method.outer_loss(theta, episodes), theta) for method in (first, second)]
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[1].norm()


def test_first_and_second_order_agree_where_the_support_loss_has_no_curvature() -> None:
    network = plain_network()
    episodes = noise_episodes()

    def linear_loss(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        return outputs.gather(1, labels[:, None]).mean()

    head = network.head_names()
    theta = learnable(network.parameters())
    features = network.embed(theta, episodes.support_inputs[0]).detach()
    adapted = [
        adapt(
            lambda values: linear_loss(
                functional.linear(features, *(values[name] for name in head)), episodes.support_labels[0], None
            ),
            theta,
            steps=2,
            inner_lr=0.3,
            first_order=first_order,
            names=head,
        )
        for first_order in (False, True)
    ]
    gradients = [meta_gradient(torch.stack([p.square().sum() for p in phi.values()]).sum(), theta) for phi in adapted]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-12)


def test_anil_moves_nothing_but_the_head() -> None:
    method = Maml(student_network("convnet:width=2,depth=2"), TWO_STEPS, head_only=True)
    episodes, theta = noise_episodes(shape=(1, 8, 8)), method.initial()
    phi = method.adapt(theta, support_of(episodes, 0))
    moved = {name for name in theta if not torch.equal(phi[name], theta[name])}
    assert moved == set(method.network.head_names())


def test_anil_agrees_with_maml_on_the_head_alone() -> None:
    network, episodes = plain_network(), noise_episodes(count=1)
    theta, task = network.parameters(), support_of(noise_episodes(count=1), 0)
    phi = adapt(
        lambda values: functional.cross_entropy(network(values, task.inputs), task.labels),
        theta,
        steps=2,
        inner_lr=0.3,
        names=network.head_names(),
    )
    anil = Maml(network, TWO_STEPS, head_only=True).adapt(theta, support_of(episodes, 0))
    assert all(torch.allclose(anil[name], phi[name], rtol=1e-12) for name in theta)


def test_a_teacher_without_a_say_changes_nothing() -> None:
    """alpha = 0: exactly the loss of the labels."""
    network = plain_network()
    taught = noise_episodes(taught=True)
    plain = replace(taught, support_logits=None, query_logits=None)
    theta = network.parameters()
    losses = [Maml(network, TWO_STEPS, vmapped=False).outer_loss(theta, episodes) for episodes in (taught, plain)]
    assert torch.equal(losses[0], losses[1])


def test_a_teacher_is_heard_in_the_inner_and_in_the_outer_loss() -> None:
    taught = noise_episodes(taught=True)
    assert taught.support_logits is not None
    assert taught.query_logits is not None
    network = plain_network()
    method = Maml(network, TWO_STEPS, classification_loss(alpha=0.5))
    loss = method.outer_loss(network.parameters(), taught)
    for other in (
        replace(taught, support_logits=-taught.support_logits),
        replace(taught, query_logits=-taught.query_logits),
    ):
        assert abs(float(method.outer_loss(network.parameters(), other) - loss)) > 1e-3


def test_a_teacher_who_is_not_there_is_missed() -> None:
    method = Maml(plain_network(), TWO_STEPS, classification_loss(alpha=0.5))
    with pytest.raises(
        InputError, match=r"alpha: needs episodes with a teacher's logits where it is above 0, got 0\.5"
    ):
        method.outer_loss(method.initial(), noise_episodes())


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_diverging_inner_loop_is_one_line_and_leaves_the_weights(vmapped: bool) -> None:
    def steep(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        return outputs.pow(4).sum() + functional.cross_entropy(outputs, labels)

    method = Maml(plain_network(), Inner(steps=8, rate=1e6), steep, vmapped=vmapped)
    meta = learnable(method.initial())
    with pytest.raises(TrialFailure, match=r"^diverged: the loss of 3 of 3 episodes is not finite after 8 inner steps"):
        method.outer_loss(meta, noise_episodes())
    assert all(torch.equal(meta[name], value) for name, value in method.initial().items())


@pytest.mark.parametrize(("steps", "rate", "place"), [(0, 0.1, "inner_steps"), (1, 0.0, "inner_lr")])
def test_an_inner_loop_that_does_nothing_is_refused(steps: int, rate: float, place: str) -> None:
    with pytest.raises(InputError, match=f"^{place}: must be"):
        Inner(steps, rate)


@pytest.mark.slow
def test_learning_helps_on_a_family_that_shares_a_structure() -> None:
    """Classes differ in one feature alone, with its sign drawn anew: a few outer steps learn where to look."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> EpisodeBatch:
        signs = torch.randint(2, (count, 1), generator=generator) * 2 - 1
        parts = []
        for each in (2, 10):
            labels = torch.arange(2).repeat_interleave(each).expand(count, -1)
            inputs = torch.randn(count, 2 * each, 12, generator=generator)
            inputs[..., 0] += 1.5 * signs * (2 * labels - 1)
            parts += [inputs, labels]
        return EpisodeBatch(*parts)

    module = build_network(NetworkSpec("mlp", 4, 1), input_shape=(12,), classes=2, seed=0)
    method = Maml(FunctionalNetwork.of(module), Inner(3, 0.5))
    meta = learnable(method.initial())
    optimizer = torch.optim.Adam(meta.values(), lr=0.02)
    held_out = drawn(100)
    before = float(query_accuracies(method, meta, held_out).mean())
    for _ in range(60):
        optimizer.zero_grad()
        method.outer_loss(meta, drawn(8)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    assert float(query_accuracies(method, meta, held_out).mean()) > before + 0.1


def test_an_initialisation_is_the_state_dict_of_a_student() -> None:
    spec = NetworkSpec("convnet", 2, 2)
    network, episodes = student_network(str(spec)), noise_episodes(count=1, shape=(1, 8, 8))
    method = Maml(network, TWO_STEPS)
    task = support_of(episodes, 0)
    student = build_network(spec, input_shape=(1, 8, 8), classes=3, seed=7).double()
    student.load_state_dict(method.initialisation(method.initial(), task))
    student.eval()
    outputs = network.query_outputs(method.initial(), task.inputs, episodes.query_inputs[0])
    assert torch.allclose(student(episodes.query_inputs[0]), outputs, rtol=1e-9, atol=1e-12)


def test_a_student_of_another_number_of_classes_starts_with_equal_heads() -> None:
    spec = NetworkSpec("convnet", 2, 2)
    network, episodes = student_network(str(spec)), noise_episodes(count=1, shape=(1, 8, 8))
    method = Maml(network, TWO_STEPS)
    state = method.initialisation(method.initial(), replace(support_of(episodes, 0), classes=7))
    student = build_network(spec, input_shape=(1, 8, 8), classes=7, seed=7).double()
    student.load_state_dict(state)
    logits = student.eval()(episodes.query_inputs[0])
    assert logits.shape == (9, 7)
    assert torch.allclose(logits, logits[:, :1].expand(-1, 7))
