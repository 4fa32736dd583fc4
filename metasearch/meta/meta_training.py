"""The one loop of meta-training: Adam on meta-parameters, validation, checkpoints, the best kept, an early end.

It is told the gradient of the outer loss and knows nothing of where that comes from: backpropagation through an inner
loop, Reptile's difference of weights, or an evolution strategy. All randomness comes from one generator, whose state is
part of a checkpoint, so that a run that was killed goes on to the very bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metasearch.errors import InputError, StorageError, TrialFailure
from metasearch.meta.method import Method, query_accuracies
from metasearch.models.weights import read_tensors, write_tensors
from metasearch.tasks.domains import Domain
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes

Parameters = Mapping[str, Tensor]
Gradient = Callable[[Parameters, torch.Generator], tuple[Parameters, float]]
"""From meta-parameters and the generator of all random choices to their gradient, by name, and the outer loss."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What torch's Adam keeps of a parameter."""
LOOP = "loop"
"""The key of a checkpoint's metadata."""
MOST_SKIPPED = 20
"""Steps in a row whose gradient is not finite, after which meta-training gives up."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast the outer loop runs.

    steps: of Adam. rate: its learning rate, falling to a tenth by a half cosine. every: steps between two validations.
    patience: validations without a better one after which it ends early; 0 for never. clip: on the gradient's norm.
    """

    steps: int
    rate: float = 1e-3
    every: int = 50
    patience: int = 0
    clip: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            if getattr(self, name) < 1:
                raise InputError(name, "must be at least 1", getattr(self, name))


@dataclass(frozen=True)
class MetaProgress:
    """What one validation found. step: 1-based. train_loss: mean outer loss since the last one. value: higher is
    better."""

    step: int
    steps: int
    train_loss: float
    value: float
    best: float


@dataclass(frozen=True)
class MetaTrained:
    """What meta-training left: the best parameters on the validation domains, their value, and the way there."""

    parameters: dict[str, Tensor]
    value: float
    step: int
    history: tuple[tuple[int, float, float], ...]


def meta_train(
    start: Parameters,
    gradient: Gradient,
    validate: Callable[[Parameters], float],
    *,
    settings: LoopSettings,
    generator: torch.Generator,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Callable[[MetaProgress], None] | None = None,
) -> MetaTrained:
    """Return the meta-parameters that `validate` found the best, the start among them.

    checkpoint: a file that holds the state after every validation; where it is there, the run goes on from it. It stays
    when the run ends: who owns the result removes it. identity: what the run is, so that no other run goes on from it.
    A step whose gradient is not finite (a diverged inner loop) changes nothing.
    Raises TrialFailure("diverged") after MOST_SKIPPED of these in a row, StorageError where the checkpoint cannot be
    written, InputError where it is another run's or damaged.
    """
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(list(parameters.values()), lr=settings.rate)
    state = _State(parameters, optimizer, generator)
    if checkpoint is None or not checkpoint.is_file():
        state.keep(validate(state.detached()))
    else:
        state.read(checkpoint, identity)
    while state.step < settings.steps and not _is_over(state, settings):
        outer = _step(state, gradient, settings)
        state.losses += [outer] if math.isfinite(outer) else []
        if state.step % settings.every == 0 or state.step == settings.steps:
            loss = sum(state.losses) / len(state.losses) if state.losses else math.nan
            value = validate(state.detached())
            state.keep(value, loss)
            if checkpoint is not None:
                state.write(checkpoint, identity)
            if progress is not None:
                progress(MetaProgress(state.step, settings.steps, loss, value, state.best_value))
    return MetaTrained(dict(state.best), state.best_value, state.best_step, tuple(state.history))


def outer_gradient(method: Method, sample: Callable[[torch.Generator], EpisodeBatch]) -> Gradient:
    """Return the gradient of a method's outer loss on episodes that `sample` draws; NaN where one diverges."""

    def gradient(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
        meta = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        try:
            loss = method.outer_loss(meta, sample(generator))
        except TrialFailure as failure:
            if failure.reason != "diverged":
                raise
            return {name: torch.full_like(tensor, math.nan) for name, tensor in parameters.items()}, math.nan
        found = torch.autograd.grad(loss, list(meta.values()), allow_unused=True)
        return {name: g for name, g in zip(meta, found, strict=True) if g is not None}, float(loss.detach())

    return gradient


def accuracy_on(
    method: Method, domains: Sequence[Domain], *, shape: EpisodeShape, episodes: int, steps: int | None, seed: int
) -> Callable[[Parameters], float]:
    """Return what validates a method: its mean query accuracy over the same episodes of these domains every time."""
    drawn = sample_episodes(domains, shape=shape, count=episodes, generator=torch.Generator().manual_seed(seed))

    def value(parameters: Parameters) -> float:
        return float(query_accuracies(method, dict(parameters), drawn, steps=steps).mean())

    return value


def _is_over(state: _State, settings: LoopSettings) -> bool:
    """Return whether the last validations were all worse than the best one."""
    return settings.patience > 0 and state.step - state.best_step >= settings.patience * settings.every


def _step(state: _State, gradient: Gradient, settings: LoopSettings) -> float:
    """Take one step; return the outer loss."""
    gradients, outer = gradient(state.detached(), state.generator)
    state.step += 1
    norm = torch.sqrt(
        sum((g.double().square().sum() for g in gradients.values()), torch.zeros((), dtype=torch.float64))
    )
    if not bool(norm.isfinite()):
        state.skipped += 1
        if state.skipped >= MOST_SKIPPED:
            rule = f"the gradient was not finite in {MOST_SKIPPED} steps in a row: try a smaller inner learning rate"
            raise TrialFailure("diverged", rule)
        return outer
    state.skipped = 0
    scale = min(1.0, settings.clip / max(float(norm), 1e-30))
    share = (state.step - 1) / settings.steps
    for group in state.optimizer.param_groups:
        group["lr"] = settings.rate * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)
    for name, parameter in state.parameters.items():
        parameter.grad = gradients[name].to(parameter.dtype) * scale if name in gradients else None
    state.optimizer.step()
    return outer


class _State:
    """All that a run needs to go on: parameters, Adam's moments, the generator, the best so far."""

    def __init__(
        self, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        self.parameters, self.optimizer, self.generator = parameters, optimizer, generator
        self.step = self.best_step = self.skipped = 0
        self.best_value = -math.inf
        self.best: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.history: list[tuple[int, float, float]] = []

    def detached(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def keep(self, value: float, loss: float = math.nan) -> None:
        """Take a validation's value into account; NaN is never the best."""
        self.losses = []
        self.history.append((self.step, loss, value))
        if not self.best or value > self.best_value:
            self.best_value = value if math.isfinite(value) else -math.inf
            self.best_step = self.step
            self.best = {name: tensor.clone() for name, tensor in self.detached().items()}

    def write(self, path: Path, identity: str) -> None:
        tensors = {f"now.{name}": tensor for name, tensor in self.detached().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        tensors["generator"] = self.generator.get_state()
        numbers = {
            "identity": identity,
            "step": self.step,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "skipped": self.skipped,
            "history": self.history,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(tensors, path, metadata={LOOP: json.dumps(numbers)})
        except OSError as error:
            raise StorageError(f"{path}: the checkpoint cannot be written ({error})") from error

    def read(self, path: Path, identity: str) -> None:
        noted, tensors = read_tensors(path)
        numbers = noted.get(LOOP)
        if not isinstance(numbers, dict) or numbers["identity"] != identity:
            raise InputError(
                str(path), "must be a checkpoint of this very run: other settings, data or version made it"
            )
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"now.{name}"])
            if f"adam.step.{name}" in tensors:  # a parameter without a gradient so far has no moments
                self.optimizer.state[parameter] = {key: tensors[f"adam.{key}.{name}"] for key in MOMENTS}
        self.best = {name: tensors[f"best.{name}"] for name in self.parameters}
        self.generator.set_state(tensors["generator"])
        self.step, self.best_step, self.skipped = numbers["step"], numbers["best_step"], numbers["skipped"]
        self.best_value = numbers["best_value"]
        self.history = [tuple(entry) for entry in numbers["history"]]
