from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from metasearch.distill import distillation_loss


def logits(seed: int, *, batch: int = 6, classes: int = 4, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER, LABELS = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0, 1])


def by_hand(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> float:
    """Return the loss of Hinton et al. (2015), written out sum by sum."""
    total = 0.0
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        p, q = torch.softmax(t / temperature, 0), torch.softmax(s / temperature, 0)
        divergence = sum(float(pi * (pi.log() - qi.log())) for pi, qi in zip(p, q, strict=True))
        cross_entropy = -float(torch.softmax(s, 0)[label].log())
        total += (1 - alpha) * cross_entropy + alpha * temperature**2 * divergence
    return total / len(labels)


@given(temperature=st.floats(0.1, 100), alpha=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_loss_is_the_formula_written_out(temperature: float, alpha: float, seed: int) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    loss = distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    assert float(loss) == pytest.approx(by_hand(student, teacher, LABELS, temperature, alpha), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_alpha_of_zero_is_the_cross_entropy_exactly(smoothing: float) -> None:
    loss = distillation_loss(STUDENT, TEACHER, LABELS, temperature=4, alpha=0, label_smoothing=smoothing)
    assert torch.equal(loss, functional.cross_entropy(STUDENT, LABELS, label_smoothing=smoothing))


def test_at_alpha_zero_the_teacher_is_not_read_and_at_one_the_labels_are_not() -> None:
    nothing = torch.full_like(TEACHER, torch.nan)
    assert distillation_loss(STUDENT, nothing, LABELS, temperature=4, alpha=0).isfinite()
    loss = distillation_loss(STUDENT, TEACHER, LABELS, temperature=4, alpha=1)
    assert torch.equal(loss, distillation_loss(STUDENT, TEACHER, LABELS.flip(0), temperature=4, alpha=1))


@given(temperature=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_equal_logits_give_zero_divergence(temperature: float, shift: float) -> None:
    """Logits that differ by a constant are equal, too."""
    loss = distillation_loss(STUDENT, STUDENT + shift, LABELS, temperature=temperature, alpha=1)
    assert abs(float(loss)) < 1e-9 * temperature**2


@given(temperature=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_the_divergence_is_never_negative(temperature: float, seed: int) -> None:
    assert distillation_loss(logits(seed), TEACHER, LABELS, temperature=temperature, alpha=1) >= -1e-9


def test_the_gradient_does_not_fade_with_temperature() -> None:
    """T^2 balances the 1 / T^2 of the soft targets' gradient: section 2.1, (s - t) / C for zero-mean logits."""
    student = (STUDENT - STUDENT.mean(1, keepdim=True)).requires_grad_()
    teacher = TEACHER - TEACHER.mean(1, keepdim=True)
    gradients = []
    for temperature in (100.0, 1000.0):
        loss = distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=1)
        gradients.append(torch.autograd.grad(loss, student)[0])
    limit = (student - teacher).detach() / student.shape[1] / len(student)
    torch.testing.assert_close(gradients[1], limit, atol=1e-3 * float(limit.abs().max()), rtol=1e-2)
    torch.testing.assert_close(gradients[0], limit, atol=1e-2 * float(limit.abs().max()), rtol=1e-1)


def test_the_loss_agrees_with_torch_kl_div() -> None:
    loss = distillation_loss(STUDENT, TEACHER, LABELS, temperature=3, alpha=1)
    expected = functional.kl_div(
        functional.log_softmax(STUDENT / 3, 1), functional.softmax(TEACHER / 3, 1), reduction="batchmean"
    )
    torch.testing.assert_close(loss, 9 * expected)


def test_the_gradient_reaches_the_student_through_both_parts() -> None:
    student = STUDENT.clone().requires_grad_()
    parts = []
    for alpha in (0.0, 1.0, 0.3):
        loss = distillation_loss(student, TEACHER, LABELS, temperature=2, alpha=alpha)
        parts.append(torch.autograd.grad(loss, student)[0])
    torch.testing.assert_close(parts[2], 0.7 * parts[0] + 0.3 * parts[1])


def test_float32_and_large_logits_stay_finite() -> None:
    student, teacher = logits(2, scale=1e4).float(), logits(3, scale=1e4).float()
    for temperature in (0.1, 1.0, 100.0):
        assert distillation_loss(student, teacher, LABELS, temperature=temperature, alpha=0.5).isfinite()


def test_logits_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got student=\(6, 4\), teacher=\(6, 3\)"):
        distillation_loss(STUDENT, TEACHER[:, :3], LABELS, temperature=1, alpha=0.5)
