from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from metasearch import teachers
from metasearch.errors import StorageError
from metasearch.measure import accuracy, count_macs, count_parameters
from metasearch.models import NetworkSpec, build_network
from metasearch.records import EpochReport
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import Augmentation, Normalisation, Task
from metasearch.teachers import VIEWS, default_teacher, teacher_for, train_teacher
from tests.synthetic import synthetic_task, with_augmentation

CPU = torch.device("cpu")
SPEC = NetworkSpec("convnet", width=2, depth=2)
SHIFTED = Augmentation(1, True)


class Trainer:
    """In place of `train_teacher`: an untrained network, and a count of how often one was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, task: Task, spec: NetworkSpec, *, seed: int, **_: object) -> nn.Module:
        self.calls += 1
        model = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=seed)
        model(task.normalisation(task.train.inputs))  # BatchNorm gets statistics
        return model.eval()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    spy = Trainer()
    monkeypatch.setattr(teachers, "train_teacher", spy)
    return spy


def cached(home: Path) -> list[Path]:
    return sorted((home / "cache" / "teachers").iterdir())


def test_a_teacher_learns_its_task_and_says_how_well() -> None:
    task, spec = synthetic_task(), NetworkSpec("convnet", width=8, depth=2)
    reports: list[EpochReport] = []
    teacher = teacher_for(task, spec, progress=reports.append)
    assert [report.epoch for report in reports] == list(range(1, 31))
    assert {report.stage for report in reports} == {"teacher"}
    assert teacher.metrics["val_accuracy"] > 0.9
    assert teacher.metrics["val_accuracy"] == accuracy(teacher.logits["validation"], task.validation.labels)
    assert teacher.metrics["test_accuracy"] == accuracy(teacher.logits["test"], task.test.labels)
    assert accuracy(teacher.logits["train"][0], task.train.labels) > 0.9
    assert (teacher.spec, teacher.seed) == (str(spec), 0)


def test_a_teacher_trained_twice_is_the_same() -> None:
    task = synthetic_task(counts=(30, 6, 6), augmentation=SHIFTED)
    first, again = (train_teacher(task, SPEC, seed=1, device=CPU) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training


def test_the_logits_are_those_of_the_network(trainer: Trainer) -> None:
    task = synthetic_task()
    teacher = teacher_for(task, SPEC, seed=3)
    model = Trainer()(task, SPEC, seed=3)
    with torch.no_grad():
        for name, split in (("validation", task.validation), ("test", task.test)):
            torch.testing.assert_close(teacher.logits[name], model(task.normalisation(split.inputs)))
        train = model(task.normalisation(task.train.inputs))
    torch.testing.assert_close(teacher.logits["train"], train[None])
    assert len(teacher.logits["views"]) == 0
    assert teacher.metrics["parameters"] == count_parameters(model)
    assert teacher.metrics["macs"] == count_macs(model, task.input_shape)


def test_the_second_call_reads_the_cache(trainer: Trainer) -> None:
    task = synthetic_task()
    first, second = teacher_for(task, SPEC), teacher_for(task, SPEC)
    assert trainer.calls == 1
    assert first.metrics == second.metrics
    assert first.logits.keys() == second.logits.keys()
    assert all(torch.equal(first.logits[name], second.logits[name]) for name in first.logits)


def test_whatever_changes_the_teacher_gives_it_an_entry_of_its_own(trainer: Trainer, metasearch_home: Path) -> None:
    task = synthetic_task()
    scale, shift = task.normalisation.scale, task.normalisation.shift
    teacher_for(task, SPEC)
    teacher_for(synthetic_task(seed=1), SPEC)
    teacher_for(with_augmentation(task, SHIFTED), SPEC)
    teacher_for(replace(task, normalisation=Normalisation(tuple(2 * s for s in scale), shift)), SPEC)
    teacher_for(task, NetworkSpec("convnet", width=3, depth=2))
    teacher_for(task, SPEC, seed=1)
    assert trainer.calls == len(cached(metasearch_home)) == 6


def test_a_new_recipe_or_torch_makes_new_teachers(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task()
    teacher_for(task, SPEC)
    monkeypatch.setattr(teachers, "RECIPE", teachers.RECIPE + 1)
    teacher_for(task, SPEC)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    teacher_for(task, SPEC)
    assert trainer.calls == 3


def test_the_name_of_a_task_does_not_matter(trainer: Trainer) -> None:
    teacher_for(synthetic_task(), SPEC)
    teacher_for(replace(synthetic_task(), name="another"), SPEC)
    assert trainer.calls == 1


def test_view_logits_are_the_networks_on_the_replayed_views(trainer: Trainer) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    teacher = teacher_for(task, SPEC, seed=3, views=True)
    model = Trainer()(task, SPEC, seed=3)
    assert teacher.logits["views"].shape == (VIEWS, len(task.train), task.classes)
    for view, logits in enumerate(teacher.logits["views"]):
        choices = view_choices(SHIFTED, count=len(task.train), view=view, seed=3)
        with torch.no_grad():
            expected = model(task.normalisation(apply_choices(task.train.inputs, choices)))
        torch.testing.assert_close(logits, expected)
    assert not torch.allclose(teacher.logits["views"][0], teacher.logits["views"][1])


def test_views_are_added_to_a_cached_teacher_without_training(trainer: Trainer, metasearch_home: Path) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    plain = teacher_for(task, SPEC)
    first, second = (teacher_for(task, SPEC, views=True) for _ in range(2))
    assert trainer.calls == 1
    assert torch.equal(first.logits["views"], second.logits["views"])
    assert torch.equal(first.logits["train"], plain.logits["train"])
    assert len(cached(metasearch_home)) == 2


def test_a_task_without_augmentation_has_no_views(trainer: Trainer) -> None:
    assert len(teacher_for(synthetic_task(), SPEC, views=True).logits["views"]) == 0


@pytest.mark.parametrize("length", [0, 7, 500])
def test_a_damaged_cache_file_is_made_again(length: int, trainer: Trainer, metasearch_home: Path) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    before = teacher_for(task, SPEC, views=True)
    for path in cached(metasearch_home):
        path.write_bytes(path.read_bytes()[:length])
    after = teacher_for(task, SPEC, views=True)
    assert trainer.calls == 2
    assert all(torch.equal(before.logits[name], after.logits[name]) for name in before.logits)
    teacher_for(task, SPEC, views=True)
    assert trainer.calls == 2


def test_a_killed_training_leaves_nothing(metasearch_home: Path) -> None:
    def kill(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_for(synthetic_task(), SPEC, progress=kill)
    assert list(metasearch_home.rglob("*.safetensors*")) == []


def test_a_cache_that_cannot_be_written_is_a_storage_error(trainer: Trainer, metasearch_home: Path) -> None:
    (metasearch_home / "cache").write_text("a file where a folder belongs")
    with pytest.raises(StorageError, match="teacher cannot be written") as failure:
        teacher_for(synthetic_task(), SPEC)
    assert "METASEARCH_HOME names another place" in str(failure.value)


def test_the_default_teacher_fits_the_inputs() -> None:
    assert default_teacher(synthetic_task()).family == "convnet"
    assert default_teacher(synthetic_task(shape=(5,))).family == "mlp"
