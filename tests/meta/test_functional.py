from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metasearch.meta.functional import EpisodeNorm, FunctionalNetwork, student_weights
from tests.meta.known import noise_episodes, student_network

STUDENTS = ["mlp:width=2,depth=2", "convnet:width=4,depth=3", "resnet:width=4,depth=3", "mobilenet:width=4,depth=3"]
SHAPE = (1, 8, 8)


@pytest.mark.parametrize("student", STUDENTS)
def test_without_a_number_of_rows_it_is_the_module_in_training_mode(student: str) -> None:
    network = student_network(student)
    inputs = noise_episodes(shape=SHAPE).query_inputs[0]
    module = copy.deepcopy(network.module).train()
    assert torch.allclose(network(network.parameters(), inputs), module(inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_in_eval_mode_answers_as_in_the_episode(student: str) -> None:
    network, episodes = student_network(student), noise_episodes(shape=SHAPE)
    support, query = episodes.support_inputs[0], episodes.query_inputs[0]
    theta = {name: value + 0.1 for name, value in network.parameters().items()}
    module = copy.deepcopy(network.module)
    module.load_state_dict(student_weights(network, theta, support))
    module.eval()
    assert torch.allclose(module(query), network.query_outputs(theta, support, query), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("student", STUDENTS)
def test_an_answer_depends_on_no_other_query(student: str) -> None:
    network, episodes = student_network(student), noise_episodes(shape=SHAPE)
    theta, support, query = network.parameters(), episodes.support_inputs[0], episodes.query_inputs[0]
    together = network.query_outputs(theta, support, query)
    alone = torch.cat([network.query_outputs(theta, support, example[None]) for example in query])
    assert torch.allclose(together, alone, rtol=1e-8, atol=1e-11)
    transductive = network.query_outputs(theta, support, query, transductive=True)
    assert not torch.allclose(together, transductive, atol=1e-3)
    assert torch.allclose(transductive, network(theta, query))


def test_the_embedding_is_what_the_head_reads() -> None:
    network = student_network("resnet:width=4,depth=3")
    inputs = noise_episodes(shape=SHAPE).query_inputs[0]
    theta = network.parameters()
    weight, bias = (theta[name] for name in network.head_names())
    outputs = nn.functional.linear(network.embed(theta, inputs), weight, bias)
    assert torch.allclose(outputs, network(theta, inputs), rtol=1e-10, atol=1e-13)


def test_a_call_changes_neither_module_nor_parameters() -> None:
    network = student_network("convnet:width=4,depth=3")
    before = copy.deepcopy(network.module.state_dict())
    theta = network.parameters()
    kept = {name: value.clone() for name, value in theta.items()}
    episodes = noise_episodes(shape=SHAPE)
    network.query_outputs(theta, episodes.support_inputs[0], episodes.query_inputs[0])
    student_weights(network, {name: value + 1 for name, value in theta.items()}, episodes.support_inputs[0])
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in theta.items())


def test_a_norm_without_weights_only_normalises() -> None:
    norm = EpisodeNorm(nn.BatchNorm1d(3, affine=False))
    outputs = norm(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2)
    assert torch.allclose(outputs.mean(dim=0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(outputs.var(dim=0, correction=0), torch.ones(3), atol=1e-3)


def test_a_network_without_batchnorm_needs_no_support_to_answer() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    network = FunctionalNetwork.of(module)
    query = torch.randn(5, 4)
    assert torch.equal(network.query_outputs(network.parameters(), torch.empty(0, 4), query), module(query))
