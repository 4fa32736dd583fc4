from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from metasearch.distill import (
    LOGIT_LOSSES,
    at,
    attention,
    cross_entropy,
    dist,
    distillation_loss,
    dkd,
    hard,
    hint,
    kd,
    rkd,
    standardize,
)
from metasearch.parameters import LOSS_NAMES
from metasearch.tasks.task import UNLABELLED


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
def test_alpha_of_zero_is_the_cross_entropy(smoothing: float) -> None:
    loss = distillation_loss(STUDENT, TEACHER, LABELS, temperature=4, alpha=0, label_smoothing=smoothing)
    torch.testing.assert_close(loss, functional.cross_entropy(STUDENT, LABELS, label_smoothing=smoothing))


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


def probabilities(z: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in z.tolist()]
    return [value / sum(exponentials) for value in exponentials]


def dkd_by_hand(temperature: float) -> float:
    """Return equation 7 of Zhao et al. (2022), example by example and class by class."""
    total = 0.0
    for s, t, label in zip(STUDENT, TEACHER, LABELS.tolist(), strict=True):
        q, p = probabilities(s, temperature), probabilities(t, temperature)
        target = p[label] * math.log(p[label] / q[label])
        target += (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        rest = [index for index in range(len(p)) if index != label]
        shares = [(p[index] / (1 - p[label]), q[index] / (1 - q[label])) for index in rest]
        total += temperature**2 * (target + 8 * sum(a * math.log(a / b) for a, b in shares))
    return total / len(LABELS)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_the_formula_written_out(temperature: float) -> None:
    assert float(dkd(STUDENT, TEACHER, LABELS, temperature=temperature)) == pytest.approx(dkd_by_hand(temperature))


def test_dkd_of_weight_one_minus_the_targets_probability_is_kd() -> None:
    """Zhao et al. (2022), equation 5: KD = TCKD + (1 - p_target) NCKD, here for a teacher with one p_target for all."""
    teacher = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 6, dtype=torch.float64))
    labels = torch.zeros(6, dtype=torch.int64)
    once, nothing = (dkd(STUDENT, teacher, labels, temperature=1.0), kd(STUDENT, teacher, labels, temperature=1.0))
    uniform = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]] * 6, dtype=torch.float64))
    others = nothing - _target_part(STUDENT, 0.4)
    assert float(once) == pytest.approx(float(_target_part(STUDENT, 0.4) + 8 * others / 0.6))
    assert float(dkd(uniform, uniform, labels, temperature=1.0)) == pytest.approx(0, abs=1e-12)


def _target_part(student: Tensor, p: float) -> Tensor:
    q = student.softmax(dim=1)[:, 0]
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def test_dkd_has_a_finite_gradient_for_a_teacher_that_is_sure() -> None:
    student = STUDENT.float().requires_grad_()
    sure = 100 * functional.one_hot(LABELS, 4).float()
    gradient = torch.autograd.grad(dkd(student, sure, LABELS, temperature=0.5), student)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_hard_ignores_standardization() -> None:
    values = [
        distillation_loss(STUDENT, TEACHER, LABELS, temperature=2, alpha=1, loss="hard", standardized=standardized)
        for standardized in (False, True)
    ]
    assert torch.equal(*values)


def test_dkd_takes_the_teachers_class_for_an_unlabelled_example() -> None:
    unlabelled = torch.full_like(LABELS, UNLABELLED)
    predicted = TEACHER.argmax(dim=1)
    expected = dkd(STUDENT, TEACHER, predicted, temperature=2.0)
    torch.testing.assert_close(dkd(STUDENT, TEACHER, unlabelled, temperature=2.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dist_is_one_minus_numpys_correlation_by_row_and_by_column(temperature: float) -> None:
    p, q = ((z / temperature).softmax(dim=1).numpy() for z in (STUDENT, TEACHER))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = temperature**2 * (rows + columns)
    assert float(dist(STUDENT, TEACHER, LABELS, temperature=temperature)) == pytest.approx(expected)


def test_hard_knows_nothing_but_the_teachers_classes() -> None:
    loss = hard(STUDENT, TEACHER, LABELS, temperature=4.0)
    torch.testing.assert_close(loss, functional.cross_entropy(STUDENT, TEACHER.argmax(dim=1)))
    torch.testing.assert_close(loss, hard(STUDENT, 9 * TEACHER, LABELS.flip(0), temperature=1.0))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_a_perfect_copy_costs_nothing_and_a_gradient_step_comes_nearer(name: str) -> None:
    student = STUDENT.clone().requires_grad_()
    loss = LOGIT_LOSSES[name](student, TEACHER, LABELS, temperature=2.0)
    assert float(LOGIT_LOSSES[name](TEACHER, TEACHER, LABELS, temperature=2.0)) == pytest.approx(0, abs=1e-9)
    nearer = STUDENT - 1e-3 * torch.autograd.grad(loss, student)[0]
    assert 0 < LOGIT_LOSSES[name](nearer, TEACHER, LABELS, temperature=2.0) < loss


def test_standardized_logits_have_mean_0_and_deviation_1_and_hide_shift_and_scale() -> None:
    z = standardize(STUDENT)
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(6, dtype=z.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.std(dim=1, correction=0), torch.ones(6, dtype=z.dtype), atol=1e-5, rtol=0)
    other = 7 * STUDENT + 5
    losses = [
        distillation_loss(student, TEACHER, LABELS, temperature=2, alpha=1, standardized=True)
        for student in (STUDENT, other)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(losses[0], distillation_loss(STUDENT, TEACHER, LABELS, temperature=2, alpha=1))


def test_unlabelled_examples_are_left_out_of_the_cross_entropy_alone() -> None:
    labels = LABELS.clone()
    labels[2:] = UNLABELLED
    torch.testing.assert_close(cross_entropy(STUDENT, labels), functional.cross_entropy(STUDENT[:2], LABELS[:2]))
    assert float(cross_entropy(STUDENT, torch.full_like(LABELS, UNLABELLED))) == 0
    whole = distillation_loss(STUDENT, TEACHER, labels, temperature=2, alpha=1)
    torch.testing.assert_close(whole, kd(STUDENT, TEACHER, LABELS, temperature=2))


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_attention_map_is_the_normalised_sum_of_squares_over_channels() -> None:
    values = features(0, 2, 3, 4, 4)
    by_hand = [
        [[sum(float(values[b, c, i, j]) ** 2 for c in range(3)) for j in range(4)] for i in range(4)] for b in (0, 1)
    ]
    expected = torch.tensor(by_hand, dtype=torch.float64)
    expected /= expected.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(attention(values), expected)


def test_attention_transfer_is_half_the_squared_distance_and_blind_to_scale() -> None:
    a, b = attention(features(0, 5, 3, 4, 4)), attention(features(1, 5, 7, 4, 4))
    torch.testing.assert_close(at(a, b), 0.5 * (a - b).square().sum(dim=(1, 2)).mean())
    torch.testing.assert_close(at(3 * a, b), at(a, b))
    assert float(at(a, a)) == pytest.approx(0)


def test_attention_maps_of_two_sizes_meet_at_the_smaller_one() -> None:
    small = attention(features(0, 5, 3, 4, 4))
    assert float(at(small.repeat_interleave(2, 1).repeat_interleave(2, 2), small)) == pytest.approx(0, abs=1e-12)


def test_the_hint_is_a_squared_error_that_no_scale_of_the_teacher_changes() -> None:
    student, teacher = features(0, 4, 3, 2, 2), features(1, 4, 3, 2, 2)
    expected = 0.5 * (student - teacher).square().mean() / teacher.var(correction=0)
    torch.testing.assert_close(hint(student, teacher), expected)
    torch.testing.assert_close(hint(10 * student, 10 * teacher), expected)


def rkd_by_hand(student: Tensor, teacher: Tensor) -> float:
    """Return Park et al. (2019), equations 4 to 8, pair by pair and triple by triple."""

    def huber(a: float, b: float) -> float:
        return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5

    count = len(student)
    pairs = [(i, j) for i in range(count) for j in range(count) if i < j]
    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count)]
    lengths, cosines = [], []
    for x in (student, teacher):
        raw = [float((x[i] - x[j]).norm()) for i, j in pairs]
        lengths.append([value / (sum(raw) / len(raw)) for value in raw])

        def cosine(i: int, j: int, k: int, x: Tensor = x) -> float:
            a, b = x[i] - x[j], x[k] - x[j]
            return 0.0 if j in (i, k) else float(a @ b / (a.norm() * b.norm()))

        cosines.append([cosine(*triple) for triple in triples])
    distance = sum(map(huber, *lengths)) / len(pairs)
    return distance + 2 * sum(map(huber, *cosines)) / len(triples)


def test_rkd_is_the_formula_written_out() -> None:
    student, teacher = features(0, 6, 3), features(1, 6, 5)
    assert float(rkd(student, teacher)) == pytest.approx(rkd_by_hand(student, teacher), rel=1e-6)


def test_rkd_sees_relations_only() -> None:
    """A rotated, shifted and scaled embedding has the same ones."""
    teacher = features(1, 6, 4)
    rotation = torch.linalg.qr(features(2, 4, 4))[0]
    assert float(rkd(3 * teacher @ rotation + 2, teacher)) == pytest.approx(0, abs=1e-9)


def test_rkd_has_a_finite_gradient_where_embeddings_coincide() -> None:
    student = torch.zeros(5, 3, requires_grad=True)
    loss = rkd(student, features(1, 5, 4).float())
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient.isfinite().all()


def test_the_parameters_name_every_loss() -> None:
    assert (*LOGIT_LOSSES, "at", "hint", "rkd") == LOSS_NAMES
