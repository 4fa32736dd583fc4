from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from metasearch.export import write_onnx
from metasearch.measure import (
    accuracy,
    agreement,
    balanced_accuracy,
    count_macs,
    count_parameters,
    expected_calibration_error,
    latency_ms,
    predict,
)
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import lower
from metasearch.tasks.task import Normalisation


def draw(seed: int, count: int = 300, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Return logits that are right about half of the time, and uneven labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) ** 2 * classes).long()
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def ece_by_hand(logits: Tensor, labels: Tensor, bins: int) -> float:
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            right = (predicted[inside] == labels.numpy()[inside]).mean()
            error += inside.mean() * abs(right - confidence[inside].mean())
    return float(error)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_expected_calibration_error_agrees_with_a_loop_over_bins(seed: int, bins: int) -> None:
    logits, labels = draw(seed)
    assert expected_calibration_error(logits, labels, bins=bins) == pytest.approx(ece_by_hand(logits, labels, bins))


def test_calibration_error_is_zero_when_sure_and_right_and_one_when_sure_and_wrong() -> None:
    logits = torch.eye(4) * 1e4
    labels = torch.arange(4)
    assert expected_calibration_error(logits, labels) == 0
    assert expected_calibration_error(logits, labels.roll(1)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels = draw(seed, count=60)
    expected = balanced_accuracy_score(labels.numpy(), logits.argmax(dim=1).numpy())
    # scikit-learn leaves out absent classes too; two more classes than occur must change nothing.
    assert balanced_accuracy(torch.nn.functional.pad(logits, (0, 2), value=-9.0), labels, 8) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_accuracy_and_agreement_count_equal_classes(seed: int, count: int) -> None:
    logits, labels = draw(seed, count=count)
    by_hand = sum(int(max(range(6), key=row.__getitem__) == y) for row, y in zip(logits.tolist(), labels, strict=True))
    assert accuracy(logits, labels) == pytest.approx(by_hand / count)
    assert agreement(logits, nn.functional.one_hot(labels, 6).float()) == accuracy(logits, labels)
    assert agreement(logits, logits * 2 + 1) == 1


def test_macs_and_parameters_match_a_count_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    assert count_macs(model, (3, 16, 12)) == 8 * 6 * (8 * 27 + 8 * 9 + 6 * 8) + 6 * 10
    assert count_parameters(model) == 8 * 27 + 2 * 8 + (8 * 9 + 8) + (6 * 8 + 6) + (6 * 10 + 10)


def test_macs_of_the_families_match_a_count_by_hand() -> None:
    convnet = build_network(NetworkSpec("convnet", 8, 3), input_shape=(1, 28, 28), classes=10, seed=0)
    assert count_macs(convnet, (1, 28, 28)) == 9 * (28**2 * 8 + 14**2 * 8 * 16 + 7**2 * 16 * 32) + 320
    mlp = build_network(NetworkSpec("mlp", 4, 2), input_shape=(20,), classes=3, seed=0)
    assert count_macs(mlp, (20,)) == 20 * 16 + 16 * 16 + 16 * 3


def test_counting_macs_leaves_the_model_as_it_was() -> None:
    model = build_network(NetworkSpec("mlp", 2, 2), input_shape=(5,), classes=3, seed=0).train()
    frozen = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (5,))
    assert model.training
    assert not frozen.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_prediction_does_not_depend_on_the_batch_size_and_restores_training_mode() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    inputs = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = predict(model, inputs, batch_size=100), predict(model, inputs, batch_size=4)
    torch.testing.assert_close(whole, parts)
    assert model.training
    assert not whole.requires_grad
    torch.testing.assert_close(predict(lambda batch: batch * 2, inputs, batch_size=10), inputs * 2)


def test_latency_is_positive_and_larger_for_a_larger_network(tmp_path: Path) -> None:
    medians = []
    for width in (2, 32):
        model = build_network(NetworkSpec("convnet", width, 3), input_shape=(1, 28, 28), classes=10, seed=0)
        path = os.fspath(tmp_path / f"{width}.onnx")
        write_onnx(lower(model, normalisation=Normalisation((1 / 255,), (0.0,)), input_shape=(1, 28, 28)), path)
        median, spread = latency_ms(path, np.zeros((1, 1, 28, 28), dtype=np.uint8), repeats=50)
        assert spread >= 0
        medians.append(median)
    assert 0 < medians[0] < medians[1]
