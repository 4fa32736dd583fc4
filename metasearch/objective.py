"""What a student is trained for: a loss of logits, and where asked for a loss of features beside it.

Symbols: B batch, N examples, V views, C channels, h x w pixels, D dimensions. The teacher's features are computed once
and stored by name, one entry an example: `embedding` (D,), `attention.0`, `attention.1`, ... (h, w) from the last map
to the first, and `hint` (C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from metasearch.distill import at, attention, distillation_loss, hint, rkd, same_size
from metasearch.errors import InputError
from metasearch.measure import eval_mode
from metasearch.taps import Features, Tap
from metasearch.training import Teaching, TrainingData

FEATURE_LOSSES = ("at", "hint", "rkd")
"""Losses that compare features; they stand beside `kd`, with a weight of their own."""

HINT_SIZE = 8
"""The pixels to which the teacher's hint is pooled before it is stored, in each direction."""


def features_to_teach(features: Features) -> dict[str, Tensor]:
    """Return what is kept of a teacher's features, (B, ...) each, float16: half the memory, and rounding by 0.05 %."""
    maps = list(features.maps.values())
    kept = {f"attention.{index}": attention(values) for index, values in enumerate(reversed(maps))}
    if maps:
        kept["hint"] = _pooled(_middle(maps))
    if features.embedding is not None:
        kept["embedding"] = features.embedding.flatten(1)
    return {name: values.clamp(-6e4, 6e4).half() for name, values in kept.items()}


def teacher_features(show: Callable[[Tensor], Features], inputs: Tensor, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Return `features_to_teach` (N, ...) of all inputs, on the CPU. show: from a batch of them to its features."""
    with torch.inference_mode():
        parts = [
            {name: values.cpu() for name, values in features_to_teach(show(batch)).items()}
            for batch in torch.split(inputs, batch_size)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def needed_features(loss: str, *, available: Mapping[str, object]) -> list[str]:
    """Return the names of the teacher's features that a loss reads, of those available.

    Raises InputError where the teacher has none of them.
    """
    wanted = {"at": ("attention",), "hint": ("hint", "embedding"), "rkd": ("embedding",)}.get(loss, ())
    found = [name for name in available if name.split(".")[0] in wanted]
    if wanted and not found:
        what = "feature maps" if loss == "at" else "features that can be read"
        raise InputError("loss", f"{loss} needs a teacher with {what}", loss)
    return found


@dataclass
class DistillationObjective:
    """The training objective of a student.

        (1 - alpha) * CE + alpha * (loss of logits + feature_weight * loss of features)

    loss: of LOGIT_LOSSES, or of FEATURE_LOSSES and then the loss of logits is `kd`: at sums over the pairs of maps from
    the last to the first that both networks have; hint compares the maps in the middle of both through a 1x1
    convolution trained beside the student, or the embeddings through a linear layer where one has no maps. shapes: of
    the teacher's features, one example each. features: False leaves the loss of features out. seed: of the regressor's
    weights.
    """

    loss: str
    alpha: float
    input_shape: tuple[int, ...]
    label_smoothing: float = 0.0
    feature_weight: float = 1.0
    standardized: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    features: bool = True
    seed: int = 0
    _tap: Tap | None = None
    _regressor: nn.Module | None = None

    def attach(self, model: nn.Module) -> list[nn.Parameter]:
        """Find the student's features; return the parameters of the hint's regressor, new for a reshaped network."""
        if not self.features or self.loss not in FEATURE_LOSSES or self.alpha == 0:
            return []
        self._tap = Tap.of(model, self.input_shape)
        if self.loss == "at" and not self._tap.maps:
            raise InputError("loss", "at needs a student with feature maps", self.loss)
        if self.loss != "hint":
            return []
        with torch.no_grad(), eval_mode(model), self._tap.reading(model) as features:
            parameter = next(model.parameters())
            model(torch.zeros(1, *self.input_shape, device=parameter.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            if features.maps and "hint" in self.shapes:
                channels = _middle(list(features.maps.values())).shape[1]
                self._regressor = nn.Conv2d(channels, self.shapes["hint"][0], 1)
            elif "embedding" not in self.shapes:
                raise InputError("loss", "hint needs feature maps, or embeddings, of both student and teacher", "hint")
            else:
                embedding = _embedding(features)
                self._regressor = nn.Linear(embedding.shape[1], self.shapes["embedding"][0])
        self._regressor.to(parameter.device)
        return list(self._regressor.parameters())

    def __call__(
        self, model: nn.Module, inputs: Tensor, teaching: Teaching, labels: Tensor, *, temperature: float
    ) -> Tensor:
        """Return the loss, a scalar."""
        if self._tap is None:
            return self._of_logits(model(inputs), teaching["logits"], labels, temperature)
        with self._tap.reading(model) as features:
            logits = model(inputs)
        total = self._of_logits(logits, teaching["logits"], labels, temperature)
        return total + self.alpha * self.feature_weight * self._of_features(features, teaching)

    def _of_logits(self, logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        return distillation_loss(
            logits,
            teacher,
            labels,
            temperature=temperature,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            loss="kd" if self.loss in FEATURE_LOSSES else self.loss,
            standardized=self.standardized,
        )

    def _of_features(self, features: Features, teaching: Teaching) -> Tensor:
        maps = list(features.maps.values())
        if self.loss == "at":
            attentions = [attention(values) for values in reversed(maps)]
            taught = [teaching[f"attention.{index}"].float() for index in range(_count(teaching, "attention."))]
            return torch.stack(
                [at(student, teacher) for student, teacher in zip(attentions, taught, strict=False)]
            ).sum()
        if self.loss == "rkd":
            return rkd(_embedding(features), teaching["embedding"].float())
        assert self._regressor is not None
        if isinstance(self._regressor, nn.Linear):
            return hint(self._regressor(_embedding(features)), teaching["embedding"].float())
        return hint(*same_size(self._regressor(_middle(maps)), teaching["hint"].float()))


@dataclass
class JointObjective:
    """The objective of a joint training on a source task beside the target (multi-task learning, Caruana 1997).

        source_weight * CE of the source's labels + target_weight * loss of the target

    The trunk up to the embedding is shared; the source has a linear head of its own, which is no part of the student.
    target: the loss of the student's own task. source: examples of the source task. generator: draws a batch of them,
    with replacement, in every step, so that the order of the target's examples is that of a training alone. seed: of
    the head's weights.
    """

    target: DistillationObjective
    source: TrainingData
    source_weight: float
    target_weight: float
    batch_size: int
    generator: torch.Generator
    seed: int = 0
    _tap: Tap | None = None
    _head: nn.Linear | None = None

    def attach(self, model: nn.Module) -> list[nn.Parameter]:
        """Find the student's embedding; return the parameters of the head, new where the embedding changed its size."""
        beside = self.target.attach(model)
        self._tap = Tap.of(model, self.target.input_shape)
        if self._tap.embedding is None:
            raise InputError("source_weight", "needs a student that ends in a linear layer", "student.family")
        last = model.get_submodule(self._tap.embedding[0])
        assert isinstance(last, nn.Linear)
        if self._head is None or self._head.in_features != last.in_features:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                self._head = nn.Linear(last.in_features, self.source.task.classes).to(last.weight.device)
        return [*beside, *self._head.parameters()]

    def __call__(
        self, model: nn.Module, inputs: Tensor, teaching: Teaching, labels: Tensor, *, temperature: float
    ) -> Tensor:
        """Return the weighted sum, a scalar."""
        own = self.target(model, inputs, teaching, labels, temperature=temperature)
        assert self._tap is not None
        assert self._head is not None
        drawn = torch.randint(len(self.source.labels), (self.batch_size,), generator=self.generator)
        drawn = drawn.to(self.source.labels.device)
        examples, _ = self.source.epoch(0)(drawn)
        with _statistics_kept(model), self._tap.reading(model) as features:
            model(examples)
        others = functional.cross_entropy(self._head(_embedding(features)), self.source.labels[drawn])
        return self.source_weight * others + self.target_weight * own


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let no BatchNorm take a batch into its running statistics: those of the source are not the target's."""
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    tracking = [layer.track_running_stats for layer in norms]
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(norms, tracking, strict=True):
            layer.track_running_stats = tracked


def _embedding(features: Features) -> Tensor:
    if features.embedding is None:
        raise InputError("loss", "hint and rkd need a student that ends in a linear layer", "student.family")
    return features.embedding.flatten(1)


def _middle(maps: list[Tensor]) -> Tensor:
    return maps[(len(maps) - 1) // 2]


def _pooled(values: Tensor) -> Tensor:
    height, width = values.shape[2:]
    return functional.adaptive_avg_pool2d(values, (min(HINT_SIZE, height), min(HINT_SIZE, width)))


def _count(teaching: Teaching, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in teaching)
