from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.measure import accuracy, count_macs, count_parameters, expected_calibration_error
from metasearch.models import NetworkSpec
from metasearch.records import EpochReport
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import Augmentation, Normalisation, Task
from metasearch.teachers import (
    LABEL_MARGIN,
    VIEWS,
    TeacherMember,
    TeacherSource,
    check_teacher,
    default_teacher,
    ensemble_logits,
    open_teacher,
    opening,
    recipe,
    teacher_for,
    teacher_from_flags,
    train_teacher,
)
from metasearch.teachers.cache import write_cache
from metasearch.teachers.networks import build_teacher
from tests.synthetic import synthetic_task, with_augmentation

CPU = torch.device("cpu")
SPEC = NetworkSpec("convnet", width=2, depth=2)
SHIFTED = Augmentation(1, True)


class Trainer:
    """In place of `train_teacher`: an untrained network, and a count of how often one was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, task: Task, network: NetworkSpec | str, *, seed: int, **_: object) -> nn.Module:
        self.calls += 1
        model = build_teacher(str(network), input_shape=task.input_shape, classes=task.classes, seed=seed)
        model(task.normalisation(task.train.inputs))  # BatchNorm gets statistics
        return model.eval()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    spy = Trainer()
    monkeypatch.setattr(opening, "train_teacher", spy)
    return spy


def cached(home: Path) -> list[Path]:
    """Return the files of the cache: a trained teacher has one of weights and one of logits."""
    return sorted((home / "cache" / "teachers").iterdir())


def test_a_teacher_learns_its_task_and_says_how_well() -> None:
    task = synthetic_task()
    reports: list[EpochReport] = []
    teacher = teacher_for(task, SPEC, progress=reports.append)
    assert [report.epoch for report in reports] == list(range(1, 31))
    assert {report.stage for report in reports} == {"teacher"}
    assert teacher.metrics["val_accuracy"] > 0.7  # chance is 1/3; what one CPU learns, another does not to the digit
    assert teacher.metrics["val_accuracy"] == accuracy(teacher.logits["validation"], task.validation.labels)
    assert teacher.metrics["test_accuracy"] == accuracy(teacher.logits["test"], task.test.labels)
    assert accuracy(teacher.logits["train"][0], task.train.labels) > 0.7
    assert (teacher.spec, teacher.seed) == (str(SPEC), 0)


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
    assert trainer.calls == 6
    assert len(cached(metasearch_home)) == 12


def test_a_new_recipe_or_torch_makes_new_teachers(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task()
    teacher_for(task, SPEC)
    monkeypatch.setattr(recipe, "RECIPE", recipe.RECIPE + 1)
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
    assert len(cached(metasearch_home)) == 3


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


def test_a_trained_network_is_opened_from_the_cache(trainer: Trainer) -> None:
    task = synthetic_task()
    teacher = teacher_for(task, SPEC, seed=3)
    network = open_teacher(TeacherMember(str(SPEC)), task, seed=3)
    assert trainer.calls == 1
    with torch.inference_mode():
        torch.testing.assert_close(network.logits(task.test.inputs), teacher.logits["test"])


class Tied(nn.Module):
    """Uses one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.out(self.second(self.first(inputs.flatten(1))))
        return logits


def test_tied_weights_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "train_teacher", lambda *_, **__: Tied())
    monkeypatch.setattr(opening, "build_teacher", lambda *_, **__: Tied())
    first, again = (open_teacher(TeacherMember(str(SPEC)), synthetic_task()) for _ in range(2))
    inputs = synthetic_task().test.inputs
    assert torch.equal(first.logits(inputs), again.logits(inputs))


IMPORTED = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.{activation}(), nn.Linear(width, 3))
"""
OWN_FUNCTION = """
import torch
from imported_part import Net
def build():
    return Net(4)
def trained():
    network = Net(4)
    network.load_state_dict(torch.load("{path}"))
    return network
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes and forgets a module whose networks are defined in another module, with the named activation."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_function.py").write_text(OWN_FUNCTION.format(path=tmp_path / "w.pt"))

    def write(activation: str) -> None:
        (tmp_path / "imported_part.py").write_text(IMPORTED.format(activation=activation))
        for name in ("own_function", "imported_part"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    return write


def test_a_change_in_an_imported_architecture_makes_another_teacher(
    imported: Callable[[str], None], trainer: Trainer
) -> None:
    for activation, trainings in (("ReLU", 1), ("ReLU", 1), ("Tanh", 2)):
        imported(activation)
        teacher_for(synthetic_task(), "own_function:build")
        assert trainer.calls == trainings


def test_other_weights_that_a_function_loads_make_another_teacher(
    imported: Callable[[str], None], tmp_path: Path
) -> None:
    imported("ReLU")
    found = []
    for scale in (0.5, 0.5, 2.0):
        network = importlib.import_module("imported_part").Net(4)
        torch.save(
            {name: torch.full_like(value, scale) for name, value in network.state_dict().items()}, tmp_path / "w.pt"
        )
        source = TeacherSource((TeacherMember("own_function:trained", "own"),))
        found.append(teacher_for(synthetic_task(), source).logits["test"])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_cached_weights_that_do_not_fit_are_trained_again(trainer: Trainer, metasearch_home: Path) -> None:
    open_teacher(TeacherMember(str(SPEC)), synthetic_task())
    (path,) = cached(metasearch_home)
    write_cache(path, {"0.weight": torch.zeros(2, 2)}, {})
    open_teacher(TeacherMember(str(SPEC)), synthetic_task())
    assert trainer.calls == 2


def test_equal_members_are_different_networks_and_each_is_trained_once(trainer: Trainer) -> None:
    task = synthetic_task()
    source = teacher_from_flags([str(SPEC)] * 3)
    assert source is not None
    teacher = teacher_for(task, source, seed=5)
    single = [teacher_for(task, SPEC, seed=5 + index) for index in range(3)]
    assert trainer.calls == 3
    mean = torch.stack([s.logits["validation"].softmax(dim=1) for s in single]).mean(dim=0)
    torch.testing.assert_close(teacher.logits["validation"].softmax(dim=1), mean)
    assert len({s.metrics["val_ece"] for s in single} | {float(s.logits["test"].sum()) for s in single}) == 6
    assert teacher.metrics["parameters"] == 3 * single[0].metrics["parameters"]
    assert teacher.metrics["macs"] == 3 * single[0].metrics["macs"]
    expected = expected_calibration_error(mean.log(), task.validation.labels)
    assert teacher.metrics["val_ece"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_shares_weigh_the_mean(mean: str) -> None:
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    mixed = ensemble_logits([first, second], [3.0, 1.0], mean=mean)
    if mean == "logits":
        torch.testing.assert_close(mixed, 0.75 * first + 0.25 * second)
    else:
        torch.testing.assert_close(mixed.softmax(dim=1), 0.75 * first.softmax(dim=1) + 0.25 * second.softmax(dim=1))


def test_members_of_an_ensemble_share_the_views_of_the_first_seed(trainer: Trainer) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    teacher = teacher_for(task, teacher_from_flags([str(SPEC)] * 2, mean="logits"), seed=3, views=True)
    choices = view_choices(SHIFTED, count=len(task.train), view=1, seed=3)
    inputs = task.normalisation(apply_choices(task.train.inputs, choices))
    with torch.no_grad():
        expected = sum(Trainer()(task, SPEC, seed=seed)(inputs) for seed in (3, 4)) / 2
    torch.testing.assert_close(teacher.logits["views"][1], expected)


def test_labels_only_keeps_the_predicted_class_and_nothing_else(trainer: Trainer) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    source = TeacherSource.of(SPEC)
    whole = teacher_for(task, source, views=True)
    labels = teacher_for(task, replace(source, labels_only=True), views=True)
    assert (whole.labels_only, labels.labels_only) == (False, True)
    for name, logits in labels.logits.items():
        assert torch.equal(logits.argmax(dim=-1), whole.logits[name].argmax(dim=-1))
        assert set(logits.flatten().tolist()) == {0.0, LABEL_MARGIN}
    assert labels.metrics == whole.metrics


def test_a_normalisation_is_what_a_teacher_is_trained_and_asked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Normalisation] = []

    def train(task: Task, network: str, **options: object) -> nn.Module:
        seen.append(task.normalisation)
        return Trainer()(task, network, seed=0)

    monkeypatch.setattr(opening, "train_teacher", train)
    task = synthetic_task()
    teacher = teacher_for(task, replace(TeacherSource.of(SPEC), normalisation="0.25/0.5"))
    inputs = (task.test.inputs.float() / 255 - 0.25) / 0.5
    torch.testing.assert_close(seen[0](task.test.inputs), inputs)
    model = Trainer()(replace(task, normalisation=seen[0]), SPEC, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits["test"], model(inputs), atol=1e-5, rtol=1e-4)


def save_npz(path: Path, task: Task, *, labels: bool = False, **changes: Any) -> str:
    """Write what a knowing teacher says of a task's splits, or `changes` in place of it; return the path as text."""
    arrays: dict[str, object] = {}
    for name in ("train", "validation", "test"):
        truth = getattr(task, name).labels
        arrays[name] = truth.numpy() if labels else 3.0 * np.eye(task.classes)[truth.numpy()]
    arrays |= changes
    given: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    np.savez(path, **given)
    return str(path)


def test_logits_of_a_file_are_taken_as_they_are(tmp_path: Path, metasearch_home: Path) -> None:
    task = synthetic_task()
    teacher = teacher_for(task, save_npz(tmp_path / "a.npz", task))
    expected = 3 * torch.nn.functional.one_hot(task.train.labels, task.classes).float()
    assert torch.equal(teacher.logits["train"], expected[None])
    assert teacher.logits["test"].dtype == torch.float32
    assert teacher.metrics.keys() == {"val_accuracy", "test_accuracy", "val_ece"}
    assert (teacher.metrics["test_accuracy"], teacher.labels_only) == (1.0, False)


def test_labels_of_a_file_say_nothing_of_confidence(tmp_path: Path) -> None:
    task = synthetic_task()
    teacher = teacher_for(task, save_npz(tmp_path / "a.npz", task, labels=True))
    assert teacher.labels_only
    assert teacher.metrics == {"val_accuracy": 1.0, "test_accuracy": 1.0}
    probability = float(teacher.logits["train"].softmax(dim=-1).max(dim=-1).values.min())
    assert 0.999 < probability < 1


def nan_at(row: int, task: Task) -> np.ndarray:
    logits = np.zeros((len(task.test), task.classes))
    logits[row, 1] = np.nan
    return logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, r"must have exactly the arrays train, validation, test, got \['train', 'validation'\]"),
        ({"extra": 1}, r"must have exactly the arrays"),
        ({"train": np.zeros((5, 3))}, r"train: must have shape \(120, 3\): a row an example.*got shape=\(5, 3\)"),
        ({"test": np.zeros((60, 4))}, r"test: must have shape \(60, 3\).*got shape=\(60, 4\)"),
        ({"test": np.zeros(60, np.int64)}, r"must have labels for every split or logits for every split"),
        ({"test": np.zeros((60, 3), bool)}, r"test: must be floats \(logits\) or integers \(labels\), got 'bool'"),
        ({"test": nan_at(7, synthetic_task())}, r"must give finite logits, but does not for 1 of 60 on test"),
    ],
)
def test_a_file_of_other_logits_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    task = synthetic_task()
    with pytest.raises(InputError, match=message):
        teacher_for(task, save_npz(tmp_path / "a.npz", task, **changes))


def test_labels_out_of_range_and_pickled_arrays_are_refused(tmp_path: Path) -> None:
    task = synthetic_task()
    beyond = np.full(60, 3)
    with pytest.raises(InputError, match=r"test: must have labels in 0\.\.2, got .3\.\.3"):
        teacher_for(task, save_npz(tmp_path / "a.npz", task, labels=True, test=beyond))
    with pytest.raises(InputError, match="without pickled objects"):
        teacher_for(task, save_npz(tmp_path / "b.npz", task, test=np.array([{}], dtype=object)))
    with pytest.raises(NotFoundError, match=r"nowhere\.npz"):
        teacher_for(task, "nowhere.npz")


def test_a_file_of_logits_has_none_for_augmented_images(tmp_path: Path) -> None:
    task = synthetic_task(augmentation=SHIFTED)
    source = TeacherSource.of(save_npz(tmp_path / "a.npz", task))
    for ask in (teacher_for, check_teacher):
        with pytest.raises(InputError, match="has no logits of augmented images: needs --augment none"):
            ask(task=task, source=source, views=True)
    assert len(teacher_for(task, source).logits["views"]) == 0


class Broken(nn.Module):
    """Gives NaN for every image whose first pixel is above 128."""

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs.flatten(1)[:, :1]
        return torch.where(first > 128, torch.nan, 0.0).expand(-1, 3)


def test_logits_that_are_not_finite_are_counted_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task()
    monkeypatch.setattr(opening, "train_teacher", lambda *_, **__: Broken())
    bad = int((task.train.inputs[:, 0, 0, 0] > 128).sum())
    assert bad > 0
    with pytest.raises(InputError, match=f"must give finite logits, but does not for {bad} of 120 on train"):
        teacher_for(task, replace(TeacherSource.of(SPEC), normalisation="raw"))


def test_a_changed_checkpoint_gives_another_teacher(tmp_path: Path) -> None:
    task, path = synthetic_task(), tmp_path / "w.pt"
    logits = []
    for seed in (0, 1, 0):
        model = build_teacher(str(SPEC), input_shape=task.input_shape, classes=task.classes, seed=seed)
        torch.save(model.state_dict(), path)
        logits.append(teacher_for(task, TeacherSource((TeacherMember(str(SPEC), str(path)),))).logits["test"])
    assert not torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_what_a_study_keeps_of_a_source_gives_the_same_teacher(trainer: Trainer) -> None:
    task = synthetic_task()
    source = teacher_from_flags([f"0.2*{SPEC}", f"0.8*{SPEC}"], normalisation="unit", mean="logits")
    assert source is not None
    again = TeacherSource.of(json.loads(json.dumps(source.plain())))
    assert torch.equal(teacher_for(task, source).logits["test"], teacher_for(task, again).logits["test"])
    assert trainer.calls == 2
