"""Distillation losses. B batch, C classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the distillation loss of Hinton et al. (2015), section 2.

    (1 - alpha) * CE + alpha * T^2 * KL(teacher/T || student/T), averaged over the batch.
    student_logits, teacher_logits: (B, C), any float dtype. labels: (B,), int64.
    temperature: T > 0, dimensionless. alpha: in [0, 1]; at 0 the teacher is not read. label_smoothing: in [0, 1),
    of the cross-entropy. Raises ValueError if the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits: student and teacher must have one shape, "
            f"got student={tuple(student_logits.shape)}, teacher={tuple(teacher_logits.shape)}"
        )
    loss = student_logits.new_zeros(())
    if alpha < 1:
        loss = (1 - alpha) * functional.cross_entropy(student_logits, labels, label_smoothing=label_smoothing)
    if alpha > 0:
        divergence = functional.kl_div(
            functional.log_softmax(student_logits / temperature, dim=1),
            functional.log_softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = loss + alpha * temperature**2 * divergence
    return loss
