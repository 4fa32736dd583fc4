"""What a teacher says beside its logits on the labelled splits: features, and logits of unlabelled inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.models import NetworkSpec
from metasearch.objective import FEATURE_LOSSES
from metasearch.search.pipeline_worker import PipelineWorker
from metasearch.taps import Features
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import UNLABELLED, Augmentation, Task
from metasearch.teachers import VIEWS, TeacherMember, TeacherNetwork, network_member, open_teacher, opening, teacher_for
from metasearch.teachers.networks import build_teacher
from tests.synthetic import synthetic_task

SPEC = "convnet:width=2,depth=2"


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(task: Task, network: NetworkSpec | str, *, seed: int, **_: object) -> nn.Module:
        model = build_teacher(str(network), input_shape=task.input_shape, classes=task.classes, seed=seed)
        model(task.normalisation(task.train.inputs))  # BatchNorm gets statistics
        return model.eval()

    monkeypatch.setattr(opening, "train_teacher", build)


def test_features_are_those_of_the_network_and_come_from_the_cache_again(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task()
    assert teacher_for(task, SPEC).features == {}
    teacher = teacher_for(task, SPEC, features=FEATURE_LOSSES)
    assert teacher.feature_names == {"attention.0", "attention.1", "hint", "embedding"}
    network = open_teacher(TeacherMember(SPEC), task)
    assert isinstance(network.module, nn.Sequential)
    with torch.no_grad():
        embedding = network.module[:-1](task.normalisation(task.train.inputs))
    torch.testing.assert_close(
        teacher.features["train.embedding"][0].float(), embedding.flatten(1), atol=1e-3, rtol=1e-2
    )
    monkeypatch.setattr("metasearch.teachers.network_member.open_teacher", None)  # the cache alone is asked
    again = teacher_for(task, SPEC, features=FEATURE_LOSSES)
    assert all(torch.equal(values, again.features[name]) for name, values in teacher.features.items())


@pytest.mark.parametrize(
    ("losses", "groups"),
    [
        (("kd", "dkd"), []),
        (("rkd",), ["embedding"]),
        (("at",), ["attention"]),
        (("hint", "kd"), ["embedding", "hint"]),
        (FEATURE_LOSSES, ["attention", "embedding", "hint"]),
    ],
)
def test_only_the_features_that_the_losses_read_are_made_and_kept(
    losses: tuple[str, ...], groups: list[str], metasearch_home: Path
) -> None:
    teacher = teacher_for(synthetic_task(), SPEC, features=losses)
    assert sorted({name.partition(".")[0] for name in teacher.feature_names}) == groups
    kept = [path.stem.partition("-features-")[2] for path in (metasearch_home / "cache" / "teachers").iterdir()]
    assert sorted(group for group in kept if group) == groups
    for loss in losses:
        assert len(teacher.teaching("train", loss=loss)) > (loss in FEATURE_LOSSES)


def test_features_that_are_kept_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task(augmentation=Augmentation(1, False))
    made: list[list[str]] = []

    def spy(network: TeacherNetwork, inputs: Tensor, groups: list[str]) -> dict[str, Tensor]:
        made.append(groups)
        return make(network, inputs, groups)

    make = network_member.show_features
    monkeypatch.setattr(network_member, "show_features", spy)
    before = teacher_for(task, SPEC, views=True, features=("rkd",)).features
    after = teacher_for(task, SPEC, views=True, features=("rkd", "at")).features
    assert made == [["embedding"]] * (1 + VIEWS) + [["attention"]] * (1 + VIEWS)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert after["views.attention.0"].shape[:2] == (VIEWS, len(task.train))


def test_features_of_other_rules_are_not_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task()
    teacher_for(task, SPEC, features=FEATURE_LOSSES)
    monkeypatch.setattr("metasearch.teachers.network_member.RULES", -1)
    monkeypatch.setattr(opening, "found_features", lambda *_: lambda inputs: Features({}, torch.ones(len(inputs), 2)))
    assert teacher_for(task, SPEC, features=FEATURE_LOSSES).features.keys() == {"train.embedding"}


def test_features_of_views_are_those_of_the_replayed_views() -> None:
    task = synthetic_task(augmentation=Augmentation(2, True))
    shown = teacher_for(task, SPEC, views=True, features=FEATURE_LOSSES).features["views.embedding"]
    network = open_teacher(TeacherMember(SPEC), task)
    assert isinstance(network.module, nn.Sequential)
    assert len(shown) == VIEWS
    for view in range(VIEWS):
        choices = view_choices(task.augmentation, count=len(task.train), view=view, seed=0)
        with torch.no_grad():
            embedding = network.module[:-1](task.normalisation(apply_choices(task.train.inputs, choices)))
        torch.testing.assert_close(shown[view].float(), embedding, atol=1e-3, rtol=1e-2)


def test_unlabelled_inputs_follow_the_train_split() -> None:
    plain = synthetic_task()
    extra = synthetic_task(seed=1).test.inputs
    task = replace(plain, unlabelled=extra, fingerprint="with unlabelled")
    assert torch.equal(task.taught.labels[len(plain.train) :], torch.full((len(extra),), UNLABELLED))
    teacher = teacher_for(task, SPEC, features=FEATURE_LOSSES)
    assert len(teacher.logits["train"][0]) == len(plain.train) + len(extra)
    assert len(teacher.features["train.hint"][0]) == len(plain.train) + len(extra)
    network = open_teacher(TeacherMember(SPEC), task)
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits["train"][0, len(plain.train) :], network.logits(extra))


def test_logits_of_a_file_cannot_speak_of_unlabelled_inputs(tmp_path: Path) -> None:
    plain = synthetic_task()
    task = replace(plain, unlabelled=plain.train.inputs[:5])
    np.savez(
        tmp_path / "a.npz", **{name: getattr(task, name).labels.numpy() for name in ("train", "validation", "test")}
    )
    with pytest.raises(InputError, match=r"a\.npz: has no logits of unlabelled images: needs a network"):
        teacher_for(task, str(tmp_path / "a.npz"))


def test_a_worker_has_what_the_driver_has() -> None:
    source = TaskSource("digits", max_train=100, augment="none")
    teacher = teacher_for(load_task(source), SPEC, features=FEATURE_LOSSES)
    shared = PipelineWorker.of(source, teacher, device="cpu", threads=1)()
    task, received, device = shared.task, shared.teacher, shared.device
    assert (task.name, device) == ("digits", "cpu")
    assert received is not None
    for sent, got in ((teacher.logits, received.logits), (teacher.features, received.features)):
        assert sent.keys() == got.keys()
        assert all(torch.equal(values, got[name]) for name, values in sent.items())
