"""Features of tasks: what counting says, what cheap learners reach, and that all of it can be computed again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metasearch import features
from metasearch.errors import StorageError
from metasearch.features import landmarkers, statistics, task_features, teacher_features
from metasearch.tasks import Split, Task, TaskSource, load_task
from metasearch.tasks.prepared import fit_normalisation
from tests.synthetic import knowing_teacher, synthetic_task

NAMES = {
    *("log_examples", "log_unlabelled", "log_classes", "log_channels", "log_height", "log_width", "is_image"),
    *("balance", "pixel_mean", "pixel_std", "pixel_skewness", "pixel_kurtosis"),
    *("linear_probe_accuracy", "one_nn_accuracy"),
}
OF_TEACHER = {"teacher_accuracy", "teacher_entropy"}


def with_train(task: Task, inputs: torch.Tensor, labels: torch.Tensor) -> Task:
    train = Split(inputs, labels)
    return replace(task, train=train, normalisation=fit_normalisation(train), fingerprint="changed")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (1, 3, 2), (8, 16, 16), (5,), (1000,), (1,)])
def test_every_feature_is_there_and_finite_for_images_and_vectors(shape: tuple[int, ...]) -> None:
    task = synthetic_task(shape=shape)
    found = task_features(task, knowing_teacher(task))
    assert set(found) == NAMES | OF_TEACHER
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    assert found["is_image"] == (len(shape) == 3)
    sizes = [math.exp(found[f"log_{name}"]) for name in ("channels", "height", "width")]
    assert sizes == pytest.approx(shape if len(shape) == 3 else (*shape, 1, 1))


def test_features_of_the_documentation_are_those_that_are_computed() -> None:
    documented = {word.strip(",") for word in str(features.__doc__).split()}
    assert documented >= NAMES | OF_TEACHER


def test_counts_and_moments_are_those_of_the_data() -> None:
    task = synthetic_task(counts=(120, 60, 60), shape=(2, 6, 5))
    found = statistics(task, seed=0)
    values = task.train.inputs.double().numpy().ravel() / 255
    assert math.expm1(found["log_examples"]) == pytest.approx(120)
    assert math.exp(found["log_classes"]) == pytest.approx(3)
    assert found["pixel_mean"] == pytest.approx(values.mean())
    assert found["pixel_std"] == pytest.approx(values.std())
    assert found["pixel_skewness"] == pytest.approx((((values - values.mean()) / values.std()) ** 3).mean(), abs=1e-9)
    assert found["pixel_kurtosis"] == pytest.approx((((values - values.mean()) / values.std()) ** 4).mean())


def test_balance_is_1_for_equal_classes_and_falls_with_imbalance() -> None:
    task = synthetic_task(counts=(120, 60, 60))

    def balance(counts: list[int]) -> float:
        labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
        return statistics(with_train(task, task.train.inputs[: len(labels)], labels), seed=0)["balance"]

    assert balance([40, 40, 40]) == pytest.approx(1.0)
    assert balance([60, 60, 0]) == pytest.approx(math.log(2) / math.log(3))
    assert 1 > balance([60, 30, 30]) > balance([100, 10, 10]) > balance([120, 0, 0]) == 0


def test_a_task_that_is_easy_has_better_landmarks_than_one_of_noise() -> None:
    easy = landmarkers(synthetic_task(noise=0.1), seed=0)
    noise = landmarkers(synthetic_task(noise=100.0), seed=0)
    for name in ("linear_probe_accuracy", "one_nn_accuracy"):
        assert easy[name] > 0.95
        assert noise[name] < 0.7


def test_the_nearest_neighbour_is_that_of_brute_force() -> None:
    task = synthetic_task(counts=(60, 40, 3), shape=(4,), noise=2.0)
    inputs, others = task.train.inputs.double().numpy(), task.validation.inputs.double().numpy()
    scale = inputs.std(axis=0)
    distances = ((others[:, None] / scale - inputs[None] / scale) ** 2).sum(axis=-1)
    expected = task.train.labels.numpy()[distances.argmin(axis=1)] == task.validation.labels.numpy()
    assert landmarkers(task, seed=0)["one_nn_accuracy"] == pytest.approx(expected.mean(), abs=0.026)  # one near tie


def blank(task: Task) -> Task:
    return with_train(task, torch.zeros_like(task.train.inputs), task.train.labels)


def of_one_class(task: Task) -> Task:
    return with_train(task, task.train.inputs, torch.zeros_like(task.train.labels))


def of_one_example(task: Task) -> Task:
    return with_train(task, task.train.inputs[:1], task.train.labels[:1])


@pytest.mark.parametrize("change", [blank, of_one_class, of_one_example])
@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_degenerate_tasks_have_finite_features(change: Callable[[Task], Task], shape: tuple[int, ...]) -> None:
    found = task_features(change(synthetic_task(shape=shape)))
    assert set(found) == NAMES
    assert all(math.isfinite(value) for value in found.values())


def test_a_sure_teacher_has_no_entropy_and_a_clueless_one_has_all() -> None:
    task = synthetic_task()
    sure = knowing_teacher(task)
    assert teacher_features(task, sure)["teacher_accuracy"] == 1.0
    assert teacher_features(task, sure)["teacher_entropy"] < 0.05
    clueless = replace(sure, logits={**sure.logits, "validation": torch.zeros(len(task.validation), 3)})
    assert teacher_features(task, clueless)["teacher_entropy"] == pytest.approx(1.0)
    certain = replace(sure, logits={**sure.logits, "validation": 1e4 * sure.logits["validation"]})
    assert teacher_features(task, certain)["teacher_entropy"] == 0.0


def test_features_are_the_same_again_and_read_from_the_cache(
    metasearch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = synthetic_task(counts=(1500, 600, 60), shape=(3, 12, 12), noise=3.0)
    first = task_features(task)
    (file,) = (metasearch_home / "cache" / "features").iterdir()
    file.unlink()
    assert task_features(task) == first
    monkeypatch.setattr(features, "landmarkers", None)  # nothing is computed again
    assert task_features(task) == first
    assert set(task_features(task, knowing_teacher(task))) == NAMES | OF_TEACHER


def test_another_task_or_seed_has_features_of_its_own() -> None:
    task = synthetic_task(counts=(1500, 600, 60), noise=3.0)
    other = replace(synthetic_task(counts=(1500, 600, 60), noise=0.1), fingerprint="other")
    assert task_features(task) != task_features(other)
    assert task_features(task)["pixel_mean"] != task_features(task, seed=1)["pixel_mean"]


@pytest.mark.parametrize("damage", ["", "{", "null and void"])
def test_a_damaged_cache_file_is_made_again(metasearch_home: Path, damage: str) -> None:
    task = synthetic_task()
    first = task_features(task)
    (file,) = (metasearch_home / "cache" / "features").iterdir()
    file.write_text(damage)
    assert task_features(task) == first
    assert file.read_text() != damage


def test_a_cache_that_cannot_be_written_is_a_storage_error(metasearch_home: Path) -> None:
    (metasearch_home / "cache").write_text("a file in place of the folder")
    with pytest.raises(StorageError, match="features cannot be written") as caught:
        task_features(synthetic_task())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_large_task_takes_seconds_at_most(shared_data: Path) -> None:
    task = load_task(TaskSource("fashion_mnist", data_root=str(shared_data)))
    started = time.process_time()
    found = task_features(task)
    assert time.process_time() - started < 5
    assert 0.7 < found["linear_probe_accuracy"] < 0.9
    assert 0.6 < found["one_nn_accuracy"] < 0.9


def test_landmarks_do_not_depend_on_the_global_random_state() -> None:
    task = synthetic_task(counts=(1500, 600, 60), shape=(3, 16, 16), noise=3.0)
    np.random.seed(1)  # noqa: NPY002 - the state that is not to be read
    first = landmarkers(task, seed=0)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    assert landmarkers(task, seed=0) == first
