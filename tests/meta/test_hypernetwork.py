from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metasearch.errors import InputError
from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.hypernetwork import PREFIX, Hypernetwork
from metasearch.meta.inner_loop import adapt
from metasearch.meta.meta_training import LoopSettings, meta_train, outer_gradient
from metasearch.meta.method import Support, classification_loss, query_accuracies, support_of
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes
from tests.meta.family import NUMBERS, noisy_domain

WAYS = 4
SPECS = ["convnet:width=4,depth=3", "resnet:width=4,depth=3", "mlp:width=2,depth=2"]


def hypernetwork(spec: str = "mlp:width=4,depth=2", *, shape: tuple[int, ...] = (NUMBERS,)) -> Hypernetwork:
    network = build_network(NetworkSpec.parse(spec), input_shape=shape, classes=WAYS, seed=0)
    return Hypernetwork(FunctionalNetwork.of(network), classification_loss(), hidden=16)


def episodes_of(*seeds: int, count: int = 8, shots: int = 2) -> EpisodeBatch:
    return sample_episodes(
        [noisy_domain(seed) for seed in seeds],
        shape=EpisodeShape(WAYS, shots, 6),
        count=count,
        generator=torch.Generator().manual_seed(seeds[0]),
    )


def image_episode(seed: int = 0) -> tuple[Support, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS).repeat_interleave(3)
    return Support(torch.randn(12, 1, 8, 8, generator=generator), labels, WAYS), torch.randn(
        5, 1, 8, 8, generator=generator
    )


@pytest.mark.parametrize("spec", SPECS)
def test_untrained_it_is_the_class_mean_classifier(spec: str) -> None:
    method = hypernetwork(spec, shape=(1, 8, 8))
    meta = method.initial()
    support, query = image_episode()
    weights = method.adapt(meta, support)
    network = method.network
    both = network.embed(network.parameters(), torch.cat([support.inputs, query]), rows=12)
    centres = both[:12].reshape(WAYS, 3, -1).mean(dim=1)
    distances = torch.cdist(both[12:], centres).square() * meta[PREFIX + "log_scale"].exp() / 2
    got = network.query_outputs(weights, support.inputs, query)
    assert torch.allclose(got.log_softmax(dim=1), (-distances).log_softmax(dim=1), atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_a_student_of_its_initialisation_gives_its_answers(spec: str) -> None:
    method = hypernetwork(spec, shape=(1, 8, 8))
    meta = randomised(method.initial())
    support, query = image_episode()
    student = build_network(NetworkSpec.parse(spec), input_shape=(1, 8, 8), classes=WAYS, seed=5)
    student.load_state_dict(method.initialisation(meta, support))
    expected = method.network.query_outputs(method.adapt(meta, support), support.inputs, query)
    assert torch.allclose(student.eval()(query), expected, atol=1e-4)


def randomised(meta: Parameters) -> Parameters:
    """Return meta-parameters of which none is 0 any more."""
    generator = torch.Generator().manual_seed(7)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in meta.items()}


def test_the_order_of_support_examples_does_not_matter() -> None:
    method = hypernetwork(shape=(1, 8, 8))
    meta = randomised(method.initial())
    support, _ = image_episode()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = Support(support.inputs[order], support.labels[order], WAYS)
    for one, other in zip(method.adapt(meta, support).values(), method.adapt(meta, shuffled).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_renaming_the_classes_renames_the_rows_of_the_head_and_nothing_else() -> None:
    method = hypernetwork(shape=(1, 8, 8))
    meta = randomised(method.initial())
    support, _ = image_episode()
    renamed = Support(support.inputs, (support.labels + 1) % WAYS, WAYS)
    before, after = method.adapt(meta, support), method.adapt(meta, renamed)
    head = method.network.head_names()
    for name, value in before.items():
        assert torch.allclose(value.roll(1, dims=0) if name in head else value, after[name], atol=1e-5)


def test_it_takes_another_number_of_classes_than_it_was_trained_with() -> None:
    method = hypernetwork(shape=(1, 8, 8))
    labels = torch.arange(7).repeat(2)
    support = Support(torch.randn(14, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels, 7)
    student = build_network(NetworkSpec.parse("mlp:width=4,depth=2"), input_shape=(1, 8, 8), classes=7, seed=0)
    student.load_state_dict(method.initialisation(method.initial(), support))
    assert student.eval()(support.inputs).shape == (14, 7)


def test_the_outer_loss_is_the_mean_query_loss_of_the_proposals() -> None:
    method = hypernetwork()
    meta, episodes = randomised(method.initial()), episodes_of(1, 2)
    losses = []
    for index in range(len(episodes)):
        support = support_of(episodes, index)
        weights = method.adapt(meta, support)
        outputs = method.network.query_outputs(weights, support.inputs, episodes.query_inputs[index])
        losses.append(functional.cross_entropy(outputs, episodes.query_labels[index]))
    assert float(method.outer_loss(meta, episodes)) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_every_meta_parameter_gets_a_gradient() -> None:
    method = hypernetwork("convnet:width=4,depth=2", shape=(1, 8, 8))
    meta = {name: value.requires_grad_() for name, value in randomised(method.initial()).items()}
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(WAYS).repeat_interleave(2).expand(2, -1)
    inputs, query = (torch.randn(2, 2 * WAYS, 1, 8, 8, generator=generator) for _ in range(2))
    method.outer_loss(meta, EpisodeBatch(inputs, labels, query, labels)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, value in meta.items():
        assert value.grad is not None, name
        assert float(value.grad.abs().max()) > 0, name


@pytest.mark.slow
def test_on_new_domains_of_its_family_it_beats_training_from_scratch_by_far() -> None:
    method = hypernetwork()
    domains = [noisy_domain(seed) for seed in range(20)]
    found = meta_train(
        method.initial(),
        outer_gradient(
            method, lambda g: sample_episodes(domains, shape=EpisodeShape(WAYS, 2, 6), count=8, generator=g)
        ),
        lambda meta: float(query_accuracies(method, dict(meta), episodes_of(500, 501)).mean()),
        settings=LoopSettings(100, rate=5e-3, every=50),
        generator=torch.Generator().manual_seed(0),
    )
    unseen = episodes_of(*range(1000, 1010), count=20)
    learned = float(query_accuracies(method, found.parameters, unseen).mean())
    scratch = max(scratch_accuracy(method, unseen, rate=rate) for rate in (0.03, 0.1, 0.3))
    assert learned > scratch + 0.2
    assert learned > 0.8


def support_loss(method: Hypernetwork, support: Support, weights: Parameters) -> Tensor:
    return method.loss(method.network(weights, support.inputs), support.labels, None)


def scratch_accuracy(method: Hypernetwork, episodes: EpisodeBatch, *, rate: float) -> float:
    network, correct = method.network, []
    for index in range(len(episodes)):
        support = support_of(episodes, index)
        weights = adapt(
            partial(support_loss, method, support), network.parameters(), steps=30, inner_lr=rate, first_order=True
        )
        outputs = network.query_outputs(weights, support.inputs, episodes.query_inputs[index])
        correct.append((outputs.argmax(dim=1) == episodes.query_labels[index]).double().mean())
    return float(torch.stack(correct).mean())


def test_gradient_steps_on_the_support_set_may_follow_the_proposal() -> None:
    method = hypernetwork()
    meta, support = method.initial(), support_of(episodes_of(3), 0)
    after, before = (support_loss(method, support, method.adapt(meta, support, steps=n)) for n in (5, 0))
    assert float(after) < float(before)


def test_a_class_without_a_support_example_is_refused_in_one_line() -> None:
    method = hypernetwork(shape=(1, 8, 8))
    support, _ = image_episode()
    with pytest.raises(InputError) as refusal:
        method.adapt(method.initial(), Support(support.inputs, support.labels.clamp(max=2), WAYS))
    assert str(refusal.value) == "support: must hold examples of every class and of no other, got [3, 3, 6, 0]"
