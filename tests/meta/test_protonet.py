from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from metasearch.distill import distillation_loss
from metasearch.errors import InputError
from metasearch.meta.functional import FunctionalNetwork
from metasearch.meta.method import classification_loss, support_of
from metasearch.meta.protonet import ProtoNet, prototype_head, prototypes
from metasearch.models import NetworkSpec, build_network
from tests.meta.known import WAYS, noise_episodes, plain_network, student_network


def test_a_prototype_is_the_mean_of_its_class() -> None:
    embedded = torch.tensor([[0.0, 2.0], [4.0, 0.0], [2.0, 6.0], [1.0, 1.0]])
    means = prototypes(embedded, torch.tensor([0, 2, 0, 2]), 3)
    assert torch.equal(means, torch.tensor([[1.0, 4.0], [0.0, 0.0], [2.5, 0.5]]))


def test_logits_equal_the_class_mean_formula() -> None:
    """-|z - c_k|^2, up to |z|^2, which all classes share."""
    generator = torch.Generator().manual_seed(0)
    z, centres = (torch.randn(rows, 7, generator=generator, dtype=torch.float64) for rows in (20, 4))
    weight, bias = prototype_head(centres)
    logits = nn.functional.linear(z, weight, bias)
    distances = torch.stack([((example - centres) ** 2).sum(dim=1) for example in z])
    assert torch.allclose(logits - z.square().sum(dim=1, keepdim=True), -distances, rtol=1e-12)
    assert torch.allclose(logits.softmax(dim=1), (-distances).softmax(dim=1), rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_outer_loss_is_that_of_distances_to_class_means(alpha: float) -> None:
    network, episodes = student_network("convnet:width=2,depth=2"), noise_episodes(shape=(1, 8, 8), taught=True)
    method = ProtoNet(network, classification_loss(temperature=2.0, alpha=alpha))
    meta = method.initial()
    assert episodes.query_logits is not None
    losses = []
    for index in range(len(episodes)):
        support, query = episodes.support_inputs[index], episodes.query_inputs[index]
        both = network.embed(meta, torch.cat([support, query]), rows=len(support))
        embedded, z = both[: len(support)], both[len(support) :]
        means = torch.stack([embedded[episodes.support_labels[index] == k].mean(dim=0) for k in range(WAYS)])
        logits = -((z[:, None] - means[None]) ** 2).sum(dim=2)
        teacher, labels = episodes.query_logits[index], episodes.query_labels[index]
        losses.append(distillation_loss(logits, teacher, labels, temperature=2.0, alpha=alpha))
    assert torch.allclose(method.outer_loss(meta, episodes), torch.stack(losses).mean(), rtol=1e-10)


def test_a_student_initialised_by_prototypes_classifies_by_the_nearest() -> None:
    spec = NetworkSpec("convnet", 2, 2)
    network, episodes = student_network(str(spec)), noise_episodes(count=1, shape=(1, 8, 8))
    method, task = ProtoNet(network), support_of(episodes, 0)
    student = build_network(spec, input_shape=(1, 8, 8), classes=WAYS, seed=5).double()
    student.load_state_dict(method.initialisation(method.initial(), task))
    student.eval()
    trunk = student[:-1]  # type: ignore[index]  # a Sequential
    means = prototypes(trunk(task.inputs), task.labels, WAYS)
    distances = torch.cdist(trunk(episodes.query_inputs[0]), means)
    assert torch.equal(student(episodes.query_inputs[0]).argmax(dim=1), distances.argmin(dim=1))


def test_a_student_may_have_more_classes_than_the_episodes() -> None:
    spec = NetworkSpec("convnet", 2, 2)
    method = ProtoNet(student_network(str(spec)))
    wide = replace(support_of(noise_episodes(count=1, shape=(1, 8, 8)), 0), classes=8)
    student = build_network(spec, input_shape=(1, 8, 8), classes=8, seed=5).double()
    student.load_state_dict(method.initialisation(method.initial(), wide))
    assert student.eval()(wide.inputs).shape == (6, 8)


def test_the_head_is_no_part_of_what_is_learned() -> None:
    network = plain_network()
    assert set(ProtoNet(network).initial()) == set(network.parameters()) - set(network.head_names())


@pytest.mark.parametrize("module", [nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(3, 2, bias=False)])
def test_a_network_without_a_linear_layer_at_its_end_is_refused(module: nn.Module) -> None:
    with pytest.raises(InputError, match="network: must end in a linear layer with a bias"):
        ProtoNet(FunctionalNetwork.of(module)).initial()
