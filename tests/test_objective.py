from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from metasearch.distill import LOGIT_LOSSES, at, attention, distillation_loss, rkd
from metasearch.errors import InputError
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import (
    FEATURE_LOSSES,
    DistillationObjective,
    features_to_teach,
    needed_features,
    teacher_features,
)
from metasearch.taps import Features, Tap
from metasearch.training import Teaching

SHAPE, CLASSES = (1, 16, 16), 3


def network(family: str = "convnet", width: int = 4, seed: int = 0) -> nn.Module:
    return build_network(NetworkSpec(family, width, 3), input_shape=SHAPE, classes=CLASSES, seed=seed).eval()


def inputs(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def taught_by(teacher: nn.Module) -> Teaching:
    with torch.no_grad():
        return {"logits": teacher(inputs()), **teacher_features(shown_by(teacher), inputs())}


def shown_by(model: nn.Module) -> Callable[[Tensor], Features]:
    return partial(Tap.of(model, SHAPE).read, model)


def shapes(teaching: Teaching) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape[1:]) for name, values in teaching.items()}


def value_of(objective: DistillationObjective, student: nn.Module, teaching: Teaching) -> Tensor:
    objective.attach(student)
    return objective(student, inputs(), teaching, LABELS, temperature=2.0)


@pytest.mark.parametrize("loss", sorted(LOGIT_LOSSES))
def test_a_loss_of_logits_is_the_distillation_loss(loss: str) -> None:
    student, teaching = network(), taught_by(network(width=8, seed=1))
    objective = DistillationObjective(loss, 0.7, SHAPE, label_smoothing=0.1)
    expected = distillation_loss(
        student(inputs()), teaching["logits"], LABELS, temperature=2.0, alpha=0.7, label_smoothing=0.1, loss=loss
    )
    torch.testing.assert_close(value_of(objective, student, teaching), expected)


def test_the_features_kept_of_a_teacher_are_those_of_its_layers() -> None:
    teacher = network(width=8, seed=1)
    kept = teacher_features(shown_by(teacher), inputs(), batch_size=4)
    with torch.no_grad(), Tap.of(teacher, SHAPE).reading(teacher) as features:
        teacher(inputs())
    first, middle, last = features.maps.values()
    torch.testing.assert_close(kept["attention.0"].float(), attention(last), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept["attention.2"].float(), attention(first), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept["hint"].float(), middle, atol=1e-3, rtol=1e-2)
    assert features.embedding is not None
    torch.testing.assert_close(kept["embedding"].float(), features.embedding.flatten(1), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("loss", ["at", "rkd"])
def test_a_loss_of_features_stands_beside_kd_with_its_weight(loss: str) -> None:
    student, teacher = network(), network(width=8, seed=1)
    teaching = taught_by(teacher)
    objective = DistillationObjective(loss, 0.7, SHAPE, feature_weight=5.0, shapes=shapes(teaching))
    with Tap.of(student, SHAPE).reading(student) as features:
        logits = student(inputs())
    if loss == "at":
        maps = [attention(values) for values in features.maps.values()]
        taught = [teaching[f"attention.{index}"].float() for index in (2, 1, 0)]
        part = torch.stack([at(a, b) for a, b in zip(maps, taught, strict=True)]).sum()
    else:
        assert features.embedding is not None
        part = rkd(features.embedding.flatten(1), teaching["embedding"].float())
    kd_part = distillation_loss(logits, teaching["logits"], LABELS, temperature=2.0, alpha=0.7)
    torch.testing.assert_close(value_of(objective, student, teaching), kd_part + 0.7 * 5.0 * part)


@pytest.mark.parametrize(("student", "teacher"), [("convnet", "convnet"), ("mlp", "convnet"), ("convnet", "mlp")])
def test_a_hint_trains_its_regressor_beside_the_student(student: str, teacher: str) -> None:
    model, teaching = network(student), taught_by(network(teacher, width=8, seed=1))
    objective = DistillationObjective("hint", 1.0, SHAPE, feature_weight=10.0, shapes=shapes(teaching))
    own = objective.attach(model)
    assert own
    optimizer = torch.optim.Adam(own, lr=0.02)
    values = []
    for _ in range(40):
        value = objective(model, inputs(), teaching, LABELS, temperature=2.0)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.ndim > 1)


def test_the_regressor_depends_on_the_seed_alone_and_leaves_the_global_generator() -> None:
    teaching = taught_by(network(width=8, seed=1))
    before = torch.get_rng_state()
    first, again, other = (
        DistillationObjective("hint", 1.0, SHAPE, shapes=shapes(teaching), seed=seed).attach(network())
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_student_without_maps_cannot_transfer_attention() -> None:
    with pytest.raises(InputError, match=r"^loss: at needs a student with feature maps, got 'at'$"):
        DistillationObjective("at", 0.5, SHAPE).attach(network("mlp"))


def test_a_hint_without_a_feature_in_common_is_refused() -> None:
    objective = DistillationObjective("hint", 0.5, SHAPE, shapes={"hint": (8, 4, 4)})
    with pytest.raises(InputError, match=r"^loss: hint needs feature maps, or embeddings, of both student and teacher"):
        objective.attach(network("mlp"))


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_without_features_the_loss_is_kd(loss: str) -> None:
    student, teaching = network(), taught_by(network(width=8, seed=1))
    plain = value_of(DistillationObjective("kd", 0.7, SHAPE), student, teaching)
    torch.testing.assert_close(
        value_of(DistillationObjective(loss, 0.7, SHAPE, features=False), student, teaching), plain
    )


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_without_the_teachers_part_nothing_of_the_teacher_is_read(loss: str) -> None:
    nothing = {"logits": torch.full((6, CLASSES), torch.nan)}
    value = value_of(DistillationObjective(loss, 0.0, SHAPE), network(), nothing)
    torch.testing.assert_close(value, nn.functional.cross_entropy(network()(inputs()), LABELS))


def test_a_loss_names_the_features_that_it_reads() -> None:
    available = dict.fromkeys(["attention.0", "attention.1", "hint", "embedding"])
    assert needed_features("at", available=available) == ["attention.0", "attention.1"]
    assert needed_features("hint", available=available) == ["hint", "embedding"]
    assert needed_features("rkd", available=available) == ["embedding"]
    assert needed_features("kd", available=available) == []


def test_a_teacher_without_maps_cannot_transfer_attention() -> None:
    kept = features_to_teach_of(network("mlp"))
    with pytest.raises(InputError, match=r"^loss: at needs a teacher with feature maps, got 'at'$"):
        needed_features("at", available=kept)


def features_to_teach_of(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad(), Tap.of(model, SHAPE).reading(model) as features:
        model(inputs())
    return features_to_teach(features)
