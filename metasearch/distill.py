"""Distillation losses. B batch, C classes, D dimensions of an embedding, h x w pixels of a feature map.

Each loss below is the teacher's part alone; `distillation_loss` joins a loss of logits with the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from metasearch.tasks.task import UNLABELLED


def kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher/T || student/T), averaged over the batch: Hinton et al. (2015), section 2.

    student_logits, teacher_logits: (B, C). labels: (B,), not read. temperature: T > 0.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student_logits / temperature, dim=1),
        functional.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def hard(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy with the teacher's predicted classes as labels: Hinton et al. (2015), section 2, T -> 0.

    For a teacher of whom only the predictions are known. Arguments as in `kd`; temperature is not read.
    """
    return functional.cross_entropy(student_logits, teacher_logits.argmax(dim=1))


DKD_BETA = 8.0


def dkd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return decoupled knowledge distillation: Zhao et al. (2022), equation 7.

    T^2 * (KL(b_teacher || b_student) + 8 * KL(q_teacher || q_student)), averaged over the batch: b is the binary
    distribution (target class, all others), q that of the others among themselves; alpha 1 and beta 8 are the paper's
    for its ResNets. Arguments as in `kd`; the target of an unlabelled example is the teacher's class.
    """
    target = torch.where(labels == UNLABELLED, teacher_logits.argmax(dim=1), labels)[:, None]
    student, teacher = (functional.log_softmax(z / temperature, dim=1) for z in (student_logits, teacher_logits))
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, target, True)
    binary, others = [], []
    for log_probabilities in (student, teacher):
        rest = log_probabilities.masked_fill(is_target, -torch.inf).logsumexp(dim=1, keepdim=True)
        binary.append(torch.cat([log_probabilities.gather(1, target), rest], dim=1))
        others.append((log_probabilities - rest).masked_fill(is_target, 0.0))  # else exp overflows, and its gradient
    of_target = (binary[1].exp() * (binary[1] - binary[0])).sum(dim=1)
    of_others = (others[1].exp() * (others[1] - others[0])).sum(dim=1)
    return temperature**2 * (of_target + DKD_BETA * of_others).mean()


def dist(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return one minus the correlation of the probabilities, by example and by class: Huang et al. (2022), section 3.

    T^2 * (mean over rows of (1 - r) + mean over columns of (1 - r)), r Pearson's correlation of student and teacher in
    softmax(logits / T), equations 9 and 10, both with weight 1. Arguments as in `kd`; labels are not read.
    """
    student, teacher = ((z / temperature).softmax(dim=1) for z in (student_logits, teacher_logits))
    inter = 1 - _correlation(student, teacher).mean()
    intra = 1 - _correlation(student.T, teacher.T).mean()
    return temperature**2 * (inter + intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of a with that of b, 0 for a constant row."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    return functional.cosine_similarity(a, b, dim=1, eps=1e-8)


LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {"kd": kd, "hard": hard, "dkd": dkd, "dist": dist}


def standardize(logits: Tensor) -> Tensor:
    """Return (z - mean) / standard deviation, by row of (B, C): logit standardization, Sun et al. (2024), section 4.

    Of two classes nothing but their order is left, and no gradient: it needs three or more.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True, correction=0) + 1e-7)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
    loss: str = "kd",
    standardized: bool = False,
) -> Tensor:
    """Return (1 - alpha) * CE + alpha * loss, averaged over the batch; with `kd` as in Hinton et al. (2015), section 2.

    student_logits, teacher_logits: (B, C), any float dtype. labels: (B,), int64; UNLABELLED examples are left out of
    the cross-entropy. temperature: T > 0, dimensionless. alpha: in [0, 1]; at 0 the teacher is not read.
    label_smoothing: in [0, 1), of the cross-entropy. loss: of LOGIT_LOSSES. standardized: whether it reads
    standardized logits, unless it is `hard`, which reads classes. Raises ValueError if the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits: student and teacher must have one shape, "
            f"got student={tuple(student_logits.shape)}, teacher={tuple(teacher_logits.shape)}"
        )
    total = student_logits.new_zeros(())
    if alpha < 1:
        total = (1 - alpha) * cross_entropy(student_logits, labels, label_smoothing=label_smoothing)
    if alpha > 0:
        both = (student_logits, teacher_logits)
        student, teacher = (standardize(z) for z in both) if standardized and loss != "hard" else both
        total = total + alpha * LOGIT_LOSSES[loss](student, teacher, labels, temperature=temperature)
    return total


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the labelled examples of a batch, 0 where there is none."""
    summed = functional.cross_entropy(
        logits, labels, label_smoothing=label_smoothing, ignore_index=UNLABELLED, reduction="sum"
    )
    return summed / (labels != UNLABELLED).sum().clamp_min(1)


def attention(features: Tensor) -> Tensor:
    """Return the attention map (B, h, w) of features (B, C, h, w): the sum over channels of squares, with L2 norm 1.

    Zagoruyko and Komodakis (2017), section 3.1: F_sum^2.
    """
    squares = features.square().sum(dim=1)
    return functional.normalize(squares.flatten(1), dim=1).reshape(squares.shape)


def at(student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
    """Return half the squared distance of two normalised attention maps, averaged over the batch.

    Zagoruyko and Komodakis (2017), equation 2, one pair of layers, squared as in the authors' code. Maps (B, h, w) of
    different size are first brought to the smaller one by average pooling, and normalised again.
    """
    student, teacher = same_size(student_attention[:, None], teacher_attention[:, None])
    student, teacher = (functional.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    return (student - teacher).square().sum(dim=1).mean() / 2


def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return half the mean squared error between features of one shape, in units of the teacher's variance.

    Romero et al. (2015), equation 3; student_features have gone through the regressor. The division by the variance of
    the teacher's features over the batch makes the weight independent of their scale.
    """
    error = functional.mse_loss(student_features, teacher_features)
    return error / (2 * teacher_features.var(correction=0).clamp_min(1e-8))


def rkd(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Return relational knowledge distillation: Park et al. (2019), equations 4 to 8.

    Huber loss between the distances of all pairs, each network's divided by their mean, plus twice that between the
    cosines of the angles of all triples. Embeddings (B, D) and (B, D'), D and D' may differ. The paper weighs the two
    25 and 50. Memory grows with B^3: only the first 64 examples enter the angles.
    """
    by_distance = functional.smooth_l1_loss(_pair_distances(student_embedding), _pair_distances(teacher_embedding))
    by_angle = functional.smooth_l1_loss(_angles(student_embedding[:64]), _angles(teacher_embedding[:64]))
    return by_distance + 2 * by_angle


def _pair_distances(embedding: Tensor) -> Tensor:
    """Return the distances of the n (n - 1) / 2 pairs, divided by their mean."""
    first, second = torch.triu_indices(len(embedding), len(embedding), offset=1, device=embedding.device)
    distances = _length(embedding[first] - embedding[second])
    return distances / distances.mean()


def _angles(embedding: Tensor) -> Tensor:
    """Return the cosine of the angle at example j between i and k, for all triples (j, i, k)."""
    differences = embedding[None, :] - embedding[:, None]
    directions = differences / _length(differences)[..., None]
    return directions @ directions.transpose(1, 2)


def _length(vectors: Tensor) -> Tensor:
    """Return the norm over the last dimension, kept off 0: of equal embeddings the gradient would be infinite."""
    return (vectors.square().sum(dim=-1) + 1e-8).sqrt()


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (B, C, h, w) pooled by averages to the smaller of their sizes in each direction."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return functional.adaptive_avg_pool2d(a, size), functional.adaptive_avg_pool2d(b, size)
