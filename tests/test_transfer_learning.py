"""Runs that start from other networks, or train on a source task beside their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metasearch import run_configuration
from metasearch.errors import InputError
from metasearch.measure import predict
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective, JointObjective
from metasearch.pipeline import WEIGHTS_FILE, run_pipeline
from metasearch.records import TrialResult
from metasearch.tasks import Task, TaskSource
from metasearch.tasks.task import Split
from metasearch.teachers import Teacher, TeacherMember, TeacherSource, open_teacher, teacher_for
from metasearch.training import TrainingData
from tests.synthetic import knowing_teacher, synthetic_task

TASK = synthetic_task()
SMALL: dict[str, Any] = {
    "student.width": 4,
    "student.depth": 2,
    "batch_size": 30,
    "epochs": 3,
    "fine_tune_epochs": 2,
    "learning_rate": 0.01,
    "quantize": "none",
}
SPEC = NetworkSpec("convnet", width=8, depth=3)


def run(config: dict[str, Any], *, task: Task = TASK, teacher: Teacher | None = None, **options: Any) -> TrialResult:
    return run_pipeline(task, SMALL | config, teacher=teacher or knowing_teacher(task), **options)


def without_seconds(result: TrialResult) -> TrialResult:
    """Return the result without its configuration and every time in it."""
    return replace(
        result,
        config={},
        metrics={name: value for name, value in result.metrics.items() if name != "train_seconds"},
        stages=tuple(replace(stage, seconds=0.0) for stage in result.stages),
        curve=tuple(replace(epoch, seconds=0.0) for epoch in result.curve),
    )


# Starts


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    with pytest.MonkeyPatch.context() as patch:  # the home of a test is made later than this
        patch.setenv("METASEARCH_HOME", str(tmp_path_factory.mktemp("home")))
        return teacher_for(TASK, SPEC, network=True)


def test_a_teacher_that_is_asked_shows_the_network_whose_logits_it_gave(teacher: Teacher) -> None:
    assert teacher.network is not None
    logits = predict(teacher.network.model, TASK.validation.inputs, prepare=TASK.normalisation)
    torch.testing.assert_close(logits, teacher.logits["validation"], atol=1e-5, rtol=1e-4)
    assert teacher_for(TASK, SPEC).network is None


def test_an_ensemble_shows_its_first_network_of_our_families_unless_only_labels_are_to_be_seen(tmp_path: Path) -> None:
    members = (TeacherMember("vit:width=8,depth=1"), TeacherMember(str(SPEC)))
    both = TeacherSource(members)
    assert both.open_member is members[1]
    assert replace(both, labels_only=True).open_member is None
    assert TeacherSource((TeacherMember(str(tmp_path / "a.onnx")), TeacherMember("resnet18"))).open_member is None


def test_a_students_own_start_counts_before_any_training(teacher: Teacher) -> None:
    barely = {"learning_rate": 1e-8, "epochs": 1, "fine_tune_epochs": 0, "student.width": 8, "student.depth": 3}
    sliced = run(barely | {"student.init": "teacher_slice"}, teacher=teacher)
    random = run(barely, teacher=teacher)
    assert sliced.details["initialised"] == 1
    assert sliced.metrics["val_accuracy"] >= teacher.metrics["val_accuracy"] - 0.05
    assert random.metrics["val_accuracy"] < sliced.metrics["val_accuracy"] - 0.2
    assert "initialised" not in random.details


def test_a_start_is_trained_pruned_and_deployed_like_any_other(teacher: Teacher) -> None:
    config = {"student.init": "teacher_slice", "pruning_ratio": 0.4, "quantize": "int8"}
    result = run(config, teacher=teacher)
    assert result.details["initialised"] == pytest.approx(1, abs=0.3)
    assert result.details["channels_removed"] > 0
    assert result.metrics["val_accuracy"] > 0.6


def test_a_teacher_that_shows_no_network_cannot_be_sliced() -> None:
    with pytest.raises(InputError, match=r"^student\.init: needs a teacher whose weights are open: .*'teacher_slice'$"):
        run({"student.init": "teacher_slice"})


def test_a_configuration_that_slices_gets_its_teacher_even_if_it_does_not_learn_from_it() -> None:
    config = SMALL | {"student.init": "teacher_slice", "alpha": 0.0, "epochs": 1, "fine_tune_epochs": 0}
    source = TaskSource("digits", max_train=100, augment="none")
    assert run_configuration(source, config, teacher=str(SPEC)).details["initialised"] > 0.7
    with pytest.raises(InputError, match=r"^student\.init: needs a teacher whose weights are open: "):
        run_configuration(source, config, teacher="vit:width=8,depth=1")


def test_an_earlier_student_starts_one_for_other_classes(tmp_path: Path) -> None:
    run({"epochs": 8}, save_to=tmp_path)
    files = {"prior_student": tmp_path / WEIGHTS_FILE}
    start = {"student.init": "prior_student", "learning_rate": 1e-8}
    again = run(start, initial=files)
    assert again.details["initialised"] == 1
    assert again.metrics["val_accuracy"] > run({"learning_rate": 1e-8}).metrics["val_accuracy"] + 0.2
    renamed = replace(TASK, class_names=("a", "b", "c"))
    assert 0.5 < run(start, task=renamed, initial=files).details["initialised"] < 1


# Joint training


def related() -> Task:
    """Return a source of many examples of the same patterns under more noise, its classes in another order."""
    source = synthetic_task(counts=(600, 6, 6), noise=3.0)
    return replace(source, train=Split(source.train.inputs, (source.train.labels + 1) % 3), name="source")


def test_a_source_without_weight_changes_nothing_to_the_last_bit() -> None:
    plain = run({"loss": "dkd", "pruning_ratio": 0.3})
    for extra in ({}, {"source_weight": 0.0}, {"source_weight": 0.0, "target_weight": 0.5}):
        beside = run({"loss": "dkd", "pruning_ratio": 0.3} | extra, source=related())
        assert without_seconds(beside) == without_seconds(plain)


@pytest.mark.parametrize("change", [{"source_weight": 0.5}, {"source_weight": 1.0, "target_weight": 0.2}])
def test_the_weights_of_a_joint_training_change_the_result(change: dict[str, float]) -> None:
    one = run({"source_weight": 1.0}, source=related())
    assert run(change, source=related()).curve[-1].train_loss != one.curve[-1].train_loss
    assert run({}).curve[-1].train_loss != one.curve[-1].train_loss


def test_few_examples_gain_from_many_of_a_related_source() -> None:
    few = synthetic_task(counts=(45, 300, 30), noise=3.0)
    config = {"student.family": "mlp", "epochs": 20, "fine_tune_epochs": 0, "batch_size": 15, "alpha": 0.0}
    gains = []
    for seed in range(4):
        alone = run(config, task=few, seed=seed).metrics["val_accuracy"]
        both = run(config | {"source_weight": 1.0}, task=few, seed=seed, source=related())
        gains.append(both.metrics["val_accuracy"] - alone)
    assert sum(gains) / len(gains) > 0.03


@pytest.mark.parametrize("family", ["convnet", "mlp", "resnet", "mobilenet"])
def test_the_joint_loss_is_the_weighted_sum_and_leaves_the_targets_statistics_alone(family: str) -> None:
    spec = NetworkSpec(family, 4, 3)
    inputs, labels = TASK.normalisation(TASK.train.inputs[:30]), TASK.train.labels[:30]
    teaching = {"logits": torch.zeros(30, 3)}
    target = DistillationObjective("kd", alpha=0.0, input_shape=TASK.input_shape)

    def step(source_weight: float, target_weight: float) -> tuple[float, dict[str, Tensor]]:
        model = build_network(spec, input_shape=TASK.input_shape, classes=3, seed=0).train()
        source = TrainingData.without_teacher(related(), device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        joint = JointObjective(target, source, source_weight, target_weight, batch_size=20, generator=generator)
        head = joint.attach(model)
        assert [len(p) for p in head] == [3, 3]
        loss = joint(model, inputs, teaching, labels, temperature=1.0)
        return loss.item(), dict(model.named_buffers())

    alone, source_alone = step(0.0, 1.0)[0], step(1.0, 0.0)[0]
    both, buffers = step(0.5, 2.0)
    assert both == pytest.approx(0.5 * source_alone + 2 * alone, rel=1e-5)
    plain = build_network(spec, input_shape=TASK.input_shape, classes=3, seed=0).train()
    target(plain, inputs, teaching, labels, temperature=1.0)
    assert all(torch.equal(value, buffers[name]) for name, value in plain.named_buffers())


def test_a_joint_training_without_a_source_or_with_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"^source_weight: needs a source task: --source TASK, got 0\.5$"):
        run({"source_weight": 0.5})
    with pytest.raises(InputError, match=r"^--source synthetic: must have the task's inputs \(1, 8, 8\), got"):
        run({"source_weight": 0.5}, source=synthetic_task(shape=(3, 8, 8)))


def test_a_teachers_weights_are_those_that_the_opened_network_has(teacher: Teacher) -> None:
    opened = open_teacher(TeacherMember(str(SPEC)), TASK)
    assert teacher.network is not None
    assert opened.module is not None
    mine = teacher.network.model.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in opened.module.state_dict().items())
