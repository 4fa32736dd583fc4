from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.tasks.domains import Domain, cut_by_class
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes
from metasearch.tasks.task import Normalisation

CLASSES, PER_CLASS = 6, 7
SHAPE = EpisodeShape(ways=3, shots=2, queries=4)


def image_domain() -> Domain:
    """Return images (1, 4, 4) whose first pixel is their number; class k has numbers k, k + 6, ..."""
    count = CLASSES * PER_CLASS
    inputs = torch.full((count, 1, 4, 4), 200, dtype=torch.uint8)
    inputs[:, 0, 0, 0] = torch.arange(count, dtype=torch.uint8)
    names = tuple(f"class {index}" for index in range(CLASSES))
    normalisation = Normalisation((0.5,), (-1.0,))
    return Domain("images", inputs, torch.arange(count) % CLASSES, names, torch.zeros(count).long(), normalisation)


def numbers(inputs: Tensor) -> Tensor:
    """Return the number of each image, from its normalised first pixel."""
    return ((inputs[..., 0, 0, 0] + 1) / 0.5).round().long()


def sampled(count: int = 50, *, seed: int = 0, rotations: bool = False, domain: Domain | None = None) -> EpisodeBatch:
    """Return episodes of one domain."""
    generator = torch.Generator().manual_seed(seed)
    return sample_episodes(
        [domain or image_domain()], shape=SHAPE, count=count, generator=generator, rotations=rotations
    )


def test_shapes_are_those_of_the_episode() -> None:
    episodes = sampled(5)
    assert episodes.support_inputs.shape == (5, 6, 1, 4, 4)
    assert episodes.query_inputs.shape == (5, 12, 1, 4, 4)
    assert episodes.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 5
    assert episodes.query_labels.tolist() == [[0] * 4 + [1] * 4 + [2] * 4] * 5
    assert episodes.support_inputs.dtype == torch.float32
    assert len(episodes.part(1, 4)) == 3
    assert torch.equal(episodes.part(1, 4).query_inputs, episodes.query_inputs[1:4])


def test_a_label_stands_for_one_class_in_support_and_query() -> None:
    episodes = sampled()
    for index in range(len(episodes)):
        classes = []
        for label in range(SHAPE.ways):
            support = numbers(episodes.support_inputs[index])[episodes.support_labels[index] == label] % CLASSES
            query = numbers(episodes.query_inputs[index])[episodes.query_labels[index] == label] % CLASSES
            (found,) = set(support.tolist()) | set(query.tolist())
            classes.append(found)
        assert len(set(classes)) == SHAPE.ways


def test_no_example_is_drawn_twice_in_an_episode() -> None:
    episodes = sampled()
    for support, query in zip(numbers(episodes.support_inputs), numbers(episodes.query_inputs), strict=True):
        drawn = support.tolist() + query.tolist()
        assert len(set(drawn)) == len(drawn)


def test_every_class_and_example_is_drawn_about_as_often() -> None:
    counts = torch.bincount(numbers(sampled(2_000).support_inputs).flatten(), minlength=CLASSES * PER_CLASS)
    expected = 2_000 * SHAPE.ways * SHAPE.shots / (CLASSES * PER_CLASS)
    assert counts.min() > 0.7 * expected
    assert counts.max() < 1.3 * expected


def test_episodes_depend_on_the_generator_alone() -> None:
    first, again, other = sampled(), sampled(), sampled(seed=1)
    assert torch.equal(first.support_inputs, again.support_inputs)
    assert torch.equal(first.query_inputs, again.query_inputs)
    assert not torch.equal(first.support_inputs, other.support_inputs)


def test_an_episode_lies_in_one_domain_and_every_domain_has_its_turn() -> None:
    low, high = cut_by_class(image_domain(), {"low": [0, 1, 2], "high": [3, 4, 5]})
    episodes = sample_episodes([low, high], shape=SHAPE, count=40, generator=torch.Generator().manual_seed(0))
    sides = (numbers(episodes.support_inputs) % CLASSES) // 3
    assert (sides == sides[:, :1]).all()
    assert set(sides[:, 0].tolist()) == {0, 1}


def test_turned_classes_are_classes_of_their_own() -> None:
    episodes = sampled(200, rotations=True)
    corners = torch.stack(
        [episodes.support_inputs[..., 0, row, column] for row, column in ((0, 0), (-1, 0), (-1, -1), (0, -1))]
    )
    turns = (corners < 99).int().argmax(dim=0)  # the dark first pixel tells how far an image was turned
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    one_turn_a_class = turns.reshape(200, SHAPE.ways, SHAPE.shots)
    assert (one_turn_a_class == one_turn_a_class[..., :1]).all()
    classes = (corners.amin(dim=0) * 2 + 2).round().long() % CLASSES
    pairs = (turns * CLASSES + classes).reshape(200, SHAPE.ways, SHAPE.shots)[..., 0]
    assert all(len(set(episode)) == SHAPE.ways for episode in pairs.tolist())
    same = [len({pair % CLASSES for pair in episode}) < SHAPE.ways for episode in pairs.tolist()]
    assert any(same)  # one class in two positions, as two classes


def test_a_teachers_logits_are_those_of_the_same_examples_and_classes() -> None:
    domain = image_domain()
    logits = 100.0 * torch.arange(len(domain.labels))[:, None] + torch.arange(CLASSES)
    episodes = sampled(20, domain=replace(domain, teacher_logits=logits))
    assert episodes.support_logits is not None
    assert episodes.query_logits is not None
    for inputs, found in (
        (episodes.support_inputs, episodes.support_logits),
        (episodes.query_inputs, episodes.query_logits),
    ):
        chosen = numbers(inputs)
        classes = numbers(episodes.support_inputs)[:, :: SHAPE.shots] % CLASSES
        assert torch.equal(found, 100.0 * chosen[..., None] + classes[:, None])


def test_without_a_teacher_of_every_domain_there_are_no_logits() -> None:
    taught, plain = cut_by_class(image_domain(), {"a": [0, 1, 2], "b": [3, 4, 5]})
    taught = replace(taught, teacher_logits=torch.zeros(len(taught.labels), 3))
    episodes = sample_episodes([taught, plain], shape=SHAPE, count=4, generator=torch.Generator())
    assert episodes.support_logits is None
    assert episodes.query_logits is None


@pytest.mark.parametrize(
    ("ways", "shots", "queries", "message"),
    [
        (7, 1, 1, "^ways: domain images has 6 classes; must be at most that, got 7$"),
        (2, 6, 2, "^shots: class class 0 of domain images has 7 examples; shots and queries together must be at most"),
        (1, 1, 1, "^ways: must be at least 2, got 1$"),
        (2, 0, 1, "^shots: must be at least 1, got 0$"),
        (2, 1, 0, "^queries: must be at least 1, got 0$"),
    ],
)
def test_more_than_the_data_have_is_one_line(ways: int, shots: int, queries: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_episodes(
            [image_domain()], shape=EpisodeShape(ways, shots, queries), count=1, generator=torch.Generator()
        )


def test_turning_makes_four_times_the_classes() -> None:
    shape = EpisodeShape(ways=24, shots=1, queries=1)
    episodes = sample_episodes(
        [image_domain()], shape=shape, count=1, generator=torch.Generator().manual_seed(0), rotations=True
    )
    assert episodes.support_labels.shape == (1, 24)


def test_what_cannot_be_turned_is_refused() -> None:
    domain = image_domain()
    taught = replace(domain, teacher_logits=torch.zeros(len(domain.labels), CLASSES))
    with pytest.raises(InputError, match="rotations: the teacher of domain images knows no turned classes"):
        sampled(domain=taught, rotations=True)
    wide = replace(domain, inputs=domain.inputs[..., :3])
    with pytest.raises(InputError, match=r"rotations: domain images must hold square images, got \(1, 4, 3\)"):
        sampled(domain=wide, rotations=True)


def test_no_domain_is_one_line() -> None:
    with pytest.raises(InputError, match="episodes: need at least one domain"):
        sample_episodes([], shape=SHAPE, count=1, generator=torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_episodes_on_a_gpu_are_those_of_the_cpu() -> None:
    drawn = [
        sample_episodes([image_domain()], shape=SHAPE, count=8, generator=torch.Generator().manual_seed(0), device=name)
        for name in ("cpu", "cuda")
    ]
    for field in fields(EpisodeBatch)[:4]:
        assert torch.equal(getattr(drawn[0], field.name), getattr(drawn[1], field.name).cpu())
