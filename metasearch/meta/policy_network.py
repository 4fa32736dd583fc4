"""The policy network: from a task's features and training progress to learning rate and temperature.

Symbols: F features of the task, p progress in [0, 1], H hidden units, O outputs (log learning rate, log temperature).
With the standardized features z (F,), clipped to +-CLIP, the input and the output are

    x = (z, p, ln c(p), ln w(p)),   c(p) = (1 + cos(pi p)) / 2 + FLOOR,   w(p) = min(1, (p + 0.02) / 0.2)
    o = b + S x + V tanh(U x + a),   U (H, F+3), a (H,), V (O, H), S (O, F+3), b (O,)

so that a constant and a cosine with its peak anywhere are single points of its weights, from which its training starts;
a rise in the beginning is one more. Learned schedules as functions of the state of training: Xu et al. (2019). Here the
state is the progress alone, which makes the result an ordinary policy of one trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metasearch.errors import InputError
from metasearch.features import task_features
from metasearch.models.weights import META, read_tensors, write_tensors
from metasearch.parameters import LEARNED_POLICIES, NETWORK, POLICIES, POLICY_METHOD
from metasearch.policies import Policy
from metasearch.tasks import Task

Floats = npt.NDArray[np.float64]

FEATURES = ("log_examples", "log_classes", "pixel_std", "linear_probe_accuracy", "one_nn_accuracy", "log_steps")
"""What a policy network is told: five of `metasearch.features`, and the natural logarithm of the optimizer's steps."""
PROGRESS_INPUTS = 3
CLIP = 2.0
"""Standardized features beyond this many deviations are taken as this many: the network has seen no such task."""
FLOOR = 1e-3
RANGES = {"learning_rate": (1e-6, 10.0), "temperature": (0.5, 20.0)}
NAMES = ("U", "a", "V", "S", "b")
HINT = "metasearch meta-train FAMILY --method policy --to FILE makes one; it is given with --meta FILE"


@dataclass(frozen=True, eq=False)
class PolicyNetwork:
    """A policy network with what its inputs mean.

    weights: of NAMES. features: their names, F. centre, spread: (F,), by which they are standardized; a spread of 0
    leaves the feature out. outputs: of LEARNED_POLICIES, in the order of the rows of the last layer. optimizer: the one
    that it was trained for; rates for another have another scale. record: how it came about, JSON-ready.
    """

    weights: Mapping[str, Floats]
    features: tuple[str, ...]
    centre: Floats
    spread: Floats
    outputs: tuple[str, ...]
    optimizer: str
    record: Mapping[str, Any] = field(default_factory=dict)

    def policy_for(self, features: Mapping[str, float], output: str) -> Callable[[float], float]:
        """Return one output as a function of progress, for a task of these features.

        Raises InputError if the network has no such output.
        """
        if output not in self.outputs:
            rule = f"the policy network was trained without it: only for {', '.join(self.outputs)}"
            raise InputError(f"{output}.kind", rule, NETWORK)
        z, w = self.standardized(features), self.weights
        row, count = self.outputs.index(output), len(self.features)
        # what does not depend on progress is computed once: a trial asks at every step
        constant, hidden = float(w["b"][row] + w["S"][row, :count] @ z), w["a"] + w["U"][:, :count] @ z
        skip, inner, outer = w["S"][row, count:], w["U"][:, count:], w["V"][row]
        low, high = RANGES[output]

        def value(progress: float) -> float:
            x = progress_inputs(progress)
            log = constant + float(skip @ x) + float(outer @ np.tanh(hidden + inner @ x))
            return math.exp(min(max(log, math.log(low)), math.log(high)))

        return value

    def standardized(self, features: Mapping[str, float]) -> Floats:
        """Return a task's features as the network sees them, (F,)."""
        values = np.array([features[name] for name in self.features])
        scale = np.divide(1.0, self.spread, out=np.zeros_like(self.spread), where=self.spread > 0)
        clipped: Floats = np.clip((values - self.centre) * scale, -CLIP, CLIP)
        return clipped


def progress_inputs(progress: float) -> Floats:
    """Return what the network sees of progress, (3,)."""
    falling = (1 + math.cos(math.pi * progress)) / 2 + FLOOR
    return np.array([progress, math.log(falling), math.log(min(1.0, (progress + 0.02) / 0.2))])


def policy_features(task: Task, *, steps: int) -> dict[str, float]:
    """Return the features of a task that is to be learnt in so many optimizer steps."""
    found = task_features(task) | {"log_steps": math.log(max(1, steps))}
    return {name: found[name] for name in FEATURES}


def resolved(
    policy: Policy, name: str, *, network: PolicyNetwork | None, task: Task, steps: int, optimizer: str
) -> Callable[[float], float]:
    """Return the policy itself, or what the network says for the task in its place: `scale` times that, in range.

    name: learning_rate or temperature. Raises InputError where there is no network, or one for another optimizer.
    """
    if policy.kind != NETWORK:
        return policy
    check_network(policy, network, name, optimizer=optimizer)
    assert network is not None
    says, rule = network.policy_for(policy_features(task, steps=steps), name), POLICIES[name]
    return lambda progress: min(max(policy(progress) * says(progress), rule.low), rule.high)


def check_network(policy: Policy, network: PolicyNetwork | None, name: str, *, optimizer: str) -> None:
    """Raise InputError unless the network, where the policy is of its kind, can say its values."""
    if policy.kind != NETWORK:
        return
    if network is None:
        raise InputError(f"{name}.kind", f"needs a policy network: {HINT}", NETWORK)
    if reason := unusable(network, name, optimizers=(optimizer,)):
        raise InputError(f"{name}.kind", reason, NETWORK)


def unusable(network: PolicyNetwork | None, name: str, *, optimizers: tuple[str, ...]) -> str:
    """Return why a network cannot say the values of a policy under each of the optimizers; "" where it can."""
    if network is None:
        return f"no policy network is given: {HINT}"
    if name not in network.outputs:
        return f"the policy network was trained without {name}"
    others = [optimizer for optimizer in optimizers if optimizer != network.optimizer]
    return f"the policy network was trained for {network.optimizer}, not {others[0]}" if others else ""


def save_policy_network(network: PolicyNetwork, path: Path) -> None:
    """Write a policy network to a safetensors file, atomically; what its inputs mean goes into the metadata."""
    described = {
        "method": POLICY_METHOD,
        "features": list(network.features),
        "outputs": list(network.outputs),
        "optimizer": network.optimizer,
        **network.record,
    }
    arrays = {**network.weights, "centre": network.centre, "spread": network.spread}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    write_tensors(tensors, path, metadata={META: json.dumps(described)})


def load_policy_network(path: Path) -> PolicyNetwork:
    """Return the policy network that `save_policy_network` wrote.

    Raises as `read_tensors` does; InputError if it is not a policy network's, or its arrays are of other shapes.
    """
    noted, tensors = read_tensors(path)
    described = noted.get(META)
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    if not isinstance(described, dict) or described.get("method") != POLICY_METHOD:
        found = described.get("method") if isinstance(described, dict) else None
        raise InputError(str(path), "must hold a policy network, made by meta-train --method policy", found)
    features, outputs = tuple(described.pop("features", ())), tuple(described.pop("outputs", ()))
    optimizer = described.pop("optimizer", None)
    if not features or not set(features) <= set(FEATURES) or not outputs or not set(outputs) <= set(LEARNED_POLICIES):
        raise InputError(str(path), f"features must be of {', '.join(FEATURES)}", ", ".join(map(str, features)))
    hidden = len(arrays["a"]) if arrays.get("a") is not None and arrays["a"].ndim == 1 else 0
    for name, shape in shapes(len(features), hidden, len(outputs)).items():
        got = arrays[name].shape if name in arrays else None
        if got != shape or not np.isfinite(arrays[name]).all():
            raise InputError(str(path), f"{name}: must be finite and of shape {shape}", f"shape={got}")
    weights = {name: arrays[name] for name in NAMES}
    return PolicyNetwork(weights, features, arrays["centre"], arrays["spread"], outputs, str(optimizer), described)


def shapes(features: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a policy network's arrays."""
    inputs = features + PROGRESS_INPUTS
    return {
        "U": (hidden, inputs),
        "a": (hidden,),
        "V": (outputs, hidden),
        "S": (outputs, inputs),
        "b": (outputs,),
        "centre": (features,),
        "spread": (features,),
    }
