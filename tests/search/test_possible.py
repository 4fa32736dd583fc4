from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from metasearch.errors import InputError
from metasearch.models import NetworkSpec
from metasearch.search import possible
from metasearch.search.possible import (
    feature_losses,
    needs_network,
    possible_with_initial,
    possible_with_source,
    possible_with_task,
    possible_with_teacher,
)
from metasearch.search.space import Space, load_space, parse_space
from metasearch.search.starts import initial_families
from metasearch.teachers import TeacherMember, TeacherSource
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


# Starts


STARTS = "student.init: {choices: [random, teacher_slice, prior_student, maml]}\n  student.family: "


def choices(space: Space, path: str = "student.init") -> tuple[object, ...]:
    return next(setting.choices for setting in space.settings if setting.path == path)


def test_starts_that_are_not_to_be_had_are_left_out_and_named() -> None:
    space, lines = possible_with_initial(space_of(STARTS + "convnet"), {"maml": "convnet"})
    assert choices(space) == ("random", "maml")
    assert lines == [
        "student.init leaves out teacher_slice: needs a teacher whose weights are open: "
        "a network of convnet, mlp, resnet, mobilenet",
        "student.init leaves out prior_student: needs --init-from STUDY or FILE",
    ]


def test_starts_that_lack_the_same_are_left_out_in_one_line() -> None:
    starts = "student.init: {choices: [random, maml, reptile]}\n  student.family: convnet"
    _, lines = possible_with_initial(space_of(starts), {})
    assert lines == [
        "student.init leaves out maml, reptile: needs a --meta FILE of this method, which `metasearch meta-train` makes"
    ]


def test_a_teacher_of_onnx_leaves_the_slice_out_of_the_default_space() -> None:
    source = TeacherSource((TeacherMember("teacher.onnx"),))
    space, lines = possible_with_initial(load_space("distill_compress"), initial_families(source, {}, IMAGES))
    assert space.fixed["student.init"] == "random"
    assert [line.partition(":")[0] for line in lines] == ["student.init leaves out teacher_slice"]
    assert not needs_network(space)


def test_a_start_is_proposed_to_students_of_its_family_alone() -> None:
    source = TeacherSource.of("resnet:width=8,depth=4")
    space, lines = possible_with_initial(load_space("distill_compress"), initial_families(source, {}, IMAGES))
    assert lines == ["student.init is chosen where student.family is resnet, as its start is"]
    assert needs_network(space)
    rng = np.random.default_rng(0)
    drawn = [space.configuration(space.sample(rng)) for _ in range(200)]
    assert {c["student.family"] for c in drawn if c["student.init"] == "teacher_slice"} == {"resnet"}
    assert {c["student.family"] for c in drawn} == {"convnet", "resnet", "mobilenet", "mlp"}
    assert len({c["student.init"] for c in drawn if c["student.family"] == "resnet"}) == 2


def test_a_start_that_the_spaces_own_condition_excludes_is_left_out() -> None:
    source = TeacherSource.of("mlp:width=8,depth=2")
    space, lines = possible_with_initial(load_space("distill_compress"), initial_families(source, {}, IMAGES))
    assert space.fixed["student.init"] == "random"
    assert lines == [
        "student.init leaves out teacher_slice: starts from a network of family mlp, not convnet or resnet or mobilenet"
    ]


def test_a_start_of_a_family_that_the_task_rules_out_is_left_out() -> None:
    asked = space_of(
        STARTS.replace("maml]", "maml], when: {student.family: [convnet, mlp]}") + "{choices: [convnet, mlp]}"
    )
    vectors, _ = possible_with_task(asked, VECTORS)
    space, lines = possible_with_initial(vectors, {"teacher_slice": "convnet", "maml": "mlp"})
    assert choices(space) == ("random", "maml")
    assert lines[0] == "student.init leaves out teacher_slice: starts from a network of family convnet, not mlp"


def test_starts_of_two_families_keep_the_first() -> None:
    families = {"teacher_slice": "convnet", "prior_student": "resnet", "maml": "convnet"}
    space, lines = possible_with_initial(space_of(STARTS + "{choices: [convnet, resnet]}"), families)
    assert choices(space) == ("random", "teacher_slice", "maml")
    assert lines == [
        "student.init leaves out prior_student: starts from a network of family resnet, not convnet",
        "student.init is chosen where student.family is convnet, as its start is",
    ]


def test_a_space_that_insists_on_a_start_keeps_the_families_that_can_have_it() -> None:
    insists = space_of("student.init: teacher_slice\n  student.family: {choices: [convnet, resnet]}")
    space, lines = possible_with_initial(insists, {"teacher_slice": "resnet"})
    assert space.fixed["student.family"] == "resnet"
    assert lines == ["student.family leaves out convnet: student.init starts from a resnet"]
    with pytest.raises(InputError, match=r"^parameters\.student\.init: needs a teacher whose .*, got 'teacher_slice'$"):
        possible_with_initial(insists, {})


def test_a_space_without_other_starts_is_left_as_it_is() -> None:
    space = load_space("quick")
    assert possible_with_initial(space, {"teacher_slice": "resnet"}) == (space, [])


@pytest.mark.parametrize("weights", ["{low: 0, high: 1}", "{choices: [0, 0.5]}", "0"])
def test_without_a_source_nothing_is_trained_jointly(weights: str) -> None:
    asked = space_of(f"source_weight: {weights}\n  target_weight: {{low: 0.5, high: 1}}")
    space, lines = possible_with_source(asked, there=False)
    assert space.fixed["source_weight"] == 0
    assert lines == ([] if weights == "0" else ["source_weight is 0: there is no --source TASK"])
    if weights != "0":
        assert possible_with_source(asked, there=True) == (asked, [])


def test_a_source_and_a_space_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"^parameters\.source_weight: needs a source task: --source TASK, got 0\.1$"):
        possible_with_source(space_of("source_weight: {low: 0.1, high: 1}"), there=False)
    with pytest.raises(InputError, match=r"^--source: needs a space that gives source_weight a value above 0: quick"):
        possible_with_source(load_space("quick"), there=True)
