"""Policies: the value of a hyperparameter as a pure function of training progress.

Progress p runs from 0 (before the first step) to 1 (after the last). A policy is a kind and its parameters; the
parameters may be searched. What the kinds mean for each hyperparameter:

    learning_rate   evaluated at every optimizer step; p runs over the distillation, and again over the fine-tuning
    temperature     evaluated at every optimizer step, likewise
    student.width   evaluated at every epoch start of the distillation, rounded, with p = 0 at the first epoch and 1
                    at the last; the network starts at the value for p = 0, and a smaller value removes the least
                    important channels (progressive narrowing); a larger value than the present one leaves the network
                    as it is, so only `constant` and falling policies do what they say
    pruning_ratio   evaluated at every epoch start of the fine-tuning, with p = 1 at the last, as the share of channels
                    removed since the end of the distillation: `constant` prunes at once, `cubic` and `linear` step
                    by step; a smaller value than before removes nothing
    sparsity        likewise, as the share of single weights set to zero; a smaller value restores none

The shapes, over progress from left to right:

    constant  ----------    linear  --__        cosine  --.         one_cycle   .--.       cubic     .------
                                        --__               `.                  /    `.             /
                                                             `-.              /       `--        _/

    hypergradient, of the learning rate alone: starts at `start`, then goes where training takes it   -./`-._

    network, of learning rate and temperature: `scale` times what a policy network says, which was meta-trained over a
    family of tasks and is read from a file (metasearch.meta.policy_network)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from metasearch.errors import InputError


def constant(progress: float, *, value: float) -> float:
    """Return `value` at every progress."""
    return value


def linear(progress: float, *, start: float, end: float) -> float:
    """Return start + (end - start) p."""
    return start + (end - start) * progress


def cosine(progress: float, *, start: float, end: float = 0.0) -> float:
    """Return end + (start - end) (1 + cos(pi p)) / 2: Loshchilov and Hutter (2017), equation 5, one period."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def one_cycle(
    progress: float, *, peak: float, warmup: float = 0.3, start_factor: float = 0.04, end_factor: float = 4e-6
) -> float:
    """Return a rise to `peak` over the first `warmup` of progress, then a fall; both are half cosines.

    Smith and Topin (2018), with the cosine form and factors of torch.optim.lr_scheduler.OneCycleLR: from
    start_factor * peak over peak to end_factor * peak. warmup: in (0, 1).
    """
    if progress < warmup:
        return cosine(progress / warmup, start=start_factor * peak, end=peak)
    return cosine((progress - warmup) / (1 - warmup), start=peak, end=end_factor * peak)


def cubic(progress: float, *, final: float, initial: float = 0.0, begin: float = 0.0, end: float = 1.0) -> float:
    """Return final + (initial - final) (1 - (p - begin) / (end - begin))^3, clipped to [begin, end].

    Zhu and Gupta (2017), equation 1: fast while there is much to remove, slow towards the end.
    """
    done = min(max((progress - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1 - done) ** 3


def hypergradient(progress: float, *, start: float, beta: float = 0.02) -> float:
    """Return `start`, the value before training adapts it: metasearch.hypergradient, Baydin et al. (2018).

    beta: in (0, 1), the largest relative change in one step.
    """
    return start


def network(progress: float, *, scale: float = 1.0) -> float:
    """Return `scale`, the factor on what the policy network says at this progress: metasearch.meta.policy_network."""
    return scale


PolicyFunction = Callable[..., float]
KINDS: dict[str, PolicyFunction] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "cubic": cubic,
    "hypergradient": hypergradient,
    "network": network,
}


def parameter_names(kind: str) -> tuple[list[str], list[str]]:
    """Return the required and the optional parameter names of a policy kind."""
    defaults = KINDS[kind].__kwdefaults__ or {}
    names = [name for name in KINDS[kind].__annotations__ if name not in {"progress", "return"}]
    return [n for n in names if n not in defaults], [n for n in names if n in defaults]


@dataclass(frozen=True)
class Policy:
    """A policy kind with its parameters; calling it with progress in [0, 1] gives the value."""

    kind: str
    parameters: Mapping[str, float]
    place: str = "policy"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"{self.place}.kind", f"must be one of {', '.join(KINDS)}", self.kind)
        required, optional = parameter_names(self.kind)
        for name in required:
            if name not in self.parameters:
                raise InputError(f"{self.place}.{name}", f"is required by kind {self.kind}")
        for name, value in self.parameters.items():
            if name not in required + optional:
                raise InputError(f"{self.place}.{name}", f"is no parameter of kind {self.kind}", value)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{self.place}.{name}", "must be a finite number", value)
        shares = {"one_cycle": ["warmup"], "cubic": ["begin", "end"]}.get(self.kind, [])
        for name in shares:
            if name in self.parameters and not 0 <= self.parameters[name] <= 1:
                raise InputError(f"{self.place}.{name}", "must be in [0, 1]", self.parameters[name])
        if self.kind == "one_cycle" and not 0 < self.parameters.get("warmup", 0.3) < 1:
            raise InputError(f"{self.place}.warmup", "must be strictly between 0 and 1", self.parameters["warmup"])
        if self.kind == "cubic" and not self.parameters.get("begin", 0.0) < self.parameters.get("end", 1.0):
            begin, end = (self.parameters.get(name, default) for name, default in (("begin", 0.0), ("end", 1.0)))
            raise InputError(f"{self.place}.begin", "must be below end", f"begin={begin:g}, end={end:g}")
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __call__(self, progress: float) -> float:
        return KINDS[self.kind](progress, **self.parameters)

    def __reduce__(self) -> tuple[type[Policy], tuple[str, dict[str, float], str]]:
        return Policy, (self.kind, dict(self.parameters), self.place)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value over progress, taken at 101 points."""
        values = [self(step / 100) for step in range(101)]
        return min(values), max(values)
