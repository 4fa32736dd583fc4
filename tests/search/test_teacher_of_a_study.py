"""A search's teacher: checked before the study is made, kept with it, opened by the driver."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.storages import RDBStorage

import metasearch
from metasearch.errors import InputError, NotFoundError
from metasearch.records import EpochReport
from metasearch.search.launch import Watcher, _Search
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import load_space
from metasearch.search.stopping import StopFlag
from metasearch.search.store import description_of, load_study, study_names
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import Teacher, TeacherMember, TeacherSource
from metasearch.teachers.networks import build_teacher
from tests.fakes import new_storage

SOURCE = TaskSource("digits", max_train=100, augment="none")
NETWORK = "mlp:width=4,depth=1"


@pytest.fixture
def task() -> Task:
    return load_task(SOURCE)


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return new_storage(f"sqlite:///{tmp_path / 'studies.db'}")


def prepare(storage: RDBStorage, teacher: TeacherSource | str) -> str:
    options = Options(source=SOURCE, space=load_space("quick"), trials=1, teacher=teacher)
    return prepare_study(storage, options)[1]


def opened(storage: RDBStorage, name: str, task: Task) -> Teacher:
    """Return the teacher as a driver, of this process or another one, opens it."""
    study = load_study(storage, name)
    search = _Search(storage, study, description_of(study), Resources(), Watcher(), StopFlag())
    teacher = search._teacher(task, search.description.parsed_space())
    assert load_study(storage, name).user_attrs["teacher"]["metrics"] == teacher.metrics
    return teacher


def save_weights(path: Path, task: Task) -> torch.nn.Module:
    model = build_teacher(NETWORK, input_shape=task.input_shape, classes=task.classes, seed=0)
    torch.save(model.state_dict(), path)
    return model.eval()


def test_a_teacher_of_relative_files_is_found_from_another_folder(
    storage: RDBStorage, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_weights(tmp_path / "w.pt", task)
    monkeypatch.chdir(tmp_path)
    name = prepare(storage, TeacherSource((TeacherMember(NETWORK, "w.pt"),), labels_only=True))
    monkeypatch.chdir(os.sep)
    teacher = opened(storage, name, task)
    assert teacher.labels_only
    with torch.no_grad():
        wanted = model(task.normalisation(task.test.inputs)).argmax(dim=1)
    assert torch.equal(teacher.logits["test"].argmax(dim=1), wanted)


def test_a_teacher_that_does_not_fit_leaves_no_study(storage: RDBStorage, task: Task, tmp_path: Path) -> None:
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: lacks "):
        prepare(storage, TeacherSource((TeacherMember(NETWORK, str(tmp_path / "w.pt")),)))
    with pytest.raises(NotFoundError, match=r"nowhere\.npz"):
        prepare(storage, "nowhere.npz")
    with pytest.raises(InputError, match=r"--teacher: must be one of"):
        prepare(storage, "resnet")
    assert study_names(storage) == []


def test_one_configuration_is_run_with_logits_of_a_file(task: Task, tmp_path: Path) -> None:
    arrays = {name: getattr(task, name).labels.numpy() for name in ("train", "validation", "test")}
    np.savez(tmp_path / "a.npz", **arrays)
    config = {"student.family": "mlp", "student.width": 8, "student.depth": 1, "epochs": 1, "fine_tune_epochs": 0}
    result = metasearch.run_configuration(SOURCE, config, teacher=str(tmp_path / "a.npz"))
    assert result.metrics["teacher_agreement"] == result.metrics["val_accuracy"]


@pytest.mark.parametrize(
    ("teacher", "loss", "message"),
    [
        (TeacherSource((TeacherMember(NETWORK),), features=("frist",)), "rkd", "--teacher-features: .*got 'frist'"),
        (TeacherSource((TeacherMember(NETWORK),), labels_only=True), "rkd", "rkd needs a teacher with features"),
    ],
)
def test_one_configuration_refuses_a_teacher_that_does_not_fit_before_it_is_trained(
    teacher: TeacherSource, loss: str, message: str
) -> None:
    trained: list[EpochReport] = []
    config = {"student.width": 4, "student.depth": 1, "loss": loss, "epochs": 1}
    with pytest.raises(InputError, match=message):
        metasearch.run_configuration(SOURCE, config, teacher=teacher, report=trained.append)
    assert trained == []
