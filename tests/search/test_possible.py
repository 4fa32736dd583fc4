from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from metasearch.errors import InputError
from metasearch.models import NetworkSpec
from metasearch.search import possible
from metasearch.search.possible import feature_losses, possible_with_task, possible_with_teacher
from metasearch.search.space import Space, load_space, parse_space
from tests.synthetic import synthetic_task

VECTORS = synthetic_task(shape=(6,))
IMAGES = synthetic_task()


def space_of(parameters: str) -> Space:
    return parse_space(f"name: s\nobjectives: [val_accuracy]\nparameters:\n  {parameters}", place="s.yaml")


def test_families_that_cannot_take_vectors_are_left_out_and_named() -> None:
    space, lines = possible_with_task(load_space("distill_compress"), VECTORS)
    assert space.fixed["student.family"] == "mlp"
    assert [line.split(":")[0] for line in lines] == [
        f"student.family leaves out {family}" for family in ("convnet", "resnet", "mobilenet")
    ]
    rng = np.random.default_rng(0)
    configurations = [space.configuration(space.sample(rng)) for _ in range(50)]
    assert {(c["student.family"], c["loss"]) for c in configurations} == {("mlp", "kd")}


def test_a_task_of_images_permits_every_family() -> None:
    space = load_space("distill_compress")
    assert possible_with_task(space, IMAGES) == (space, [])


def test_a_space_without_a_family_for_the_task_is_refused_with_the_familys_reason() -> None:
    with pytest.raises(InputError, match=r"^parameters\.student\.family: convnet needs images .*, got 'convnet'$"):
        possible_with_task(space_of("student.family: convnet"), VECTORS)


def test_losses_for_which_the_teacher_has_no_features_are_left_out() -> None:
    space, lines = possible_with_teacher(space_of("loss: {choices: [kd, at, hint, rkd]}"), ["embedding"])
    assert space.distributions()["loss"] == CategoricalDistribution(("kd", "hint", "rkd"))
    assert lines == ["loss leaves out at: at needs a teacher with feature maps"]
    alone, _ = possible_with_teacher(space, [])
    assert alone.fixed["loss"] == "kd"


def test_a_conditional_parameter_whose_conditions_are_gone_keeps_its_default() -> None:
    space, _ = possible_with_teacher(
        space_of("loss: {choices: [kd, at]}\n  feature_weight: {low: 2, high: 9, when: {loss: at}}"), []
    )
    assert space.configuration(space.sample(np.random.default_rng(0)))["feature_weight"] == 1.0


@pytest.mark.parametrize(("losses", "needed"), [("[kd, dkd]", ()), ("[rkd, kd, at]", ("at", "rkd"))])
def test_features_are_asked_for_only_where_a_loss_reads_them(losses: str, needed: tuple[str, ...]) -> None:
    space = space_of(f"loss: {{choices: {losses}}}\n  student.family: convnet")
    assert feature_losses(space) == needed


def test_a_setting_that_can_never_be_active_restricts_nothing() -> None:
    vectors, _ = possible_with_task(load_space("distill_compress"), VECTORS)
    assert feature_losses(vectors) == ()
    assert possible_with_teacher(vectors, []) == (vectors, [])
    body = "loss: {choices: [at, hint], when: {student.family: convnet}}\n  student.family: {choices: [convnet, mlp]}"
    only_mlp, _ = possible_with_task(space_of(body), VECTORS)
    assert possible_with_teacher(only_mlp, [])[1] == []


def test_logits_of_two_classes_are_not_standardized() -> None:
    two = replace(IMAGES, class_names=("a", "b"))
    space, lines = possible_with_task(load_space("distill_compress"), two)
    assert space.fixed["logit_standardization"] is False
    assert lines == ["logit_standardization leaves out True: logit_standardization needs three classes or more"]


def test_a_family_is_tried_at_a_size_that_the_space_has(monkeypatch: pytest.MonkeyPatch) -> None:
    space = parse_space(
        "name: s\nobjectives: [val_accuracy]\npolicies: {student.width: {low: 8, high: 32, step: 8}}\n"
        "parameters: {student.depth: 2}",
        place="s.yaml",
    )
    tried = []

    def build(spec: NetworkSpec, **_: object) -> None:
        tried.append((spec.width % 8, spec.depth))

    monkeypatch.setattr(possible, "build_network", build)
    possible_with_task(space, IMAGES)
    assert tried == [(0, 2)]
