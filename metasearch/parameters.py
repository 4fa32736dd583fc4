"""Every parameter and policy of a configuration: what values it may take, and the one it has where a space omits it.

These tables are the only place that knows them; the reader of a space's YAML, the check of an enqueued configuration
and the JSON schema for editors are all made from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from metasearch.errors import InputError
from metasearch.policies import KINDS, parameter_names
from metasearch.spelling import hint

Value = bool | int | float | str

FAMILY_NAMES = ("convnet", "mlp", "resnet", "mobilenet")
"""The keys of metasearch.models.FAMILIES, which is not imported here because it loads torch."""
LOSS_NAMES = ("kd", "hard", "dkd", "dist", "at", "hint", "rkd")
"""The losses of metasearch.distill, likewise."""
META_INITS = ("maml", "fomaml", "anil", "reptile", "protonet", "metasgd", "hypernetwork")
"""Initialisations that are learned over a family of tasks, and read from a file."""
INIT_NAMES = ("random", "teacher_slice", "prior_student", *META_INITS)
"""What a student may start from (metasearch.initial)."""
POLICY_METHOD = "policy"
"""The name of a policy network's file beside those of META_INITS."""
IMPORTANCE_NAMES = ("l1", "l2", "bn_scale", "taylor")
"""The keys of metasearch.prune.IMPORTANCES, likewise."""
USER_FAMILY = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""How a user's own family is spelled: package.module:build."""


@dataclass(frozen=True)
class Rule:
    """What one parameter may be.

    type: bool, int, float or str. low, high: the permitted range of a number; an open end excludes its limit.
    choices: the permitted texts; beside them, those that match `pattern`, which `spelled` says in words. about: one
    sentence for users.
    """

    type: type[bool] | type[int] | type[float] | type[str]
    default: Value = 0.0
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    pattern: str = ""
    spelled: str = ""
    about: str = field(default="", compare=False)

    def check(self, value: object, place: str) -> Value:
        """Return `value` in this parameter's type, an integer as float where floats belong.

        Raises InputError if it is of another type, out of range or none of the choices.
        """
        if value is None:
            raise InputError(place, "has no value")
        if self.type is bool:
            if not isinstance(value, bool):
                raise InputError(place, "must be true or false", value)
            return value
        return self._checked_text(value, place) if self.type is str else self._checked_number(value, place)

    def range_text(self) -> str:
        """Return the permitted range in words: "in [0, 1)", "above 0", "0 or more"."""
        if math.isinf(self.high):
            return f"above {self.low:.12g}" if self.open_low else f"{self.low:.12g} or more"
        return f"in {'(' if self.open_low else '['}{self.low:.12g}, {self.high:.12g}{')' if self.open_high else ']'}"

    def permits(self, number: float) -> bool:
        """Return whether the number is in range."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def _checked_text(self, value: object, place: str) -> str:
        permitted = f"must be one of {', '.join(self.choices)}" + (f" or {self.spelled}" if self.pattern else "")
        if isinstance(value, bool):
            raise InputError(place, f"{permitted} (YAML reads a bare yes, no, on or off as a bool)", value)
        if not isinstance(value, str) or not (value in self.choices or re.fullmatch(self.pattern or r"(?!)", value)):
            raise InputError(place, f"{permitted} {hint(value, self.choices)}".rstrip(), value)
        return value

    def _checked_number(self, value: object, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(place, "must be a number", value)
        if self.type is int and not isinstance(value, int):
            raise InputError(place, "must be a whole number", value)
        if abs(value) > 1e300 or math.isnan(value):
            raise InputError(place, "must be a finite number", value)
        if not self.permits(value):
            raise InputError(place, f"must be {self.range_text()}", value)
        return value if self.type is int else float(value)


PARAMETERS: dict[str, Rule] = {
    "student.family": Rule(
        str,
        "convnet",
        choices=FAMILY_NAMES,
        pattern=USER_FAMILY,
        spelled="package.module:function",
        about="The student's network family, or a function of yours that builds a network by width and depth.",
    ),
    "student.depth": Rule(
        int, 3, low=1, high=12, about="Convolutions, hidden layers (mlp) or separable blocks (mobilenet)."
    ),
    "student.init": Rule(
        str,
        "random",
        choices=INIT_NAMES,
        about="What the student starts from: random weights, its teacher, an earlier student, or a meta-learned start.",
    ),
    "batch_size": Rule(int, 64, low=1, high=4096, about="Examples in one optimizer step."),
    "optimizer": Rule(str, "adamw", choices=("sgd", "adamw"), about="The optimizer."),
    "momentum": Rule(float, 0.9, low=0, high=1, open_high=True, about="Momentum of sgd, first beta of adamw."),
    "weight_decay": Rule(float, 1e-4, low=0, high=1, about="Decay of the weights, per unit of learning rate."),
    "alpha": Rule(
        float, 0.9, low=0, high=1, about="Weight of the teacher's part in the loss; 0 trains on labels alone."
    ),
    "loss": Rule(str, "kd", choices=LOSS_NAMES, about="The teacher's part in the loss; at, hint and rkd add to kd."),
    "logit_standardization": Rule(bool, False, about="Whether kd, dkd and dist compare standardized logits."),
    "feature_weight": Rule(
        float, 1.0, low=0, open_low=True, about="Weight of at, hint or rkd, beside kd's of 1 in the teacher's part."
    ),
    "source_weight": Rule(
        float, 0.0, low=0, high=10, about="Weight of a source task's loss in a joint training; 0 leaves it out."
    ),
    "target_weight": Rule(
        float, 1.0, low=0, high=10, open_low=True, about="Weight of the task's own loss beside the source's."
    ),
    "epochs": Rule(int, 10, low=1, high=1000, about="Epochs of distillation."),
    "fine_tune_epochs": Rule(int, 3, low=0, high=1000, about="Epochs of fine-tuning, during which pruning happens."),
    "fine_tune_scale": Rule(
        float, 0.3, low=0, high=1, open_low=True, about="Factor on the learning rate while fine-tuning."
    ),
    "augment": Rule(bool, False, about="Whether training images are shifted and mirrored, as the task allows."),
    "label_smoothing": Rule(
        float, 0.0, low=0, high=1, open_high=True, about="Share of the label's weight spread over all classes."
    ),
    "pruning_importance": Rule(str, "l2", choices=IMPORTANCE_NAMES, about="By what channels are ranked for pruning."),
    "pruning_target": Rule(
        str, "channels", choices=("channels", "macs"), about="Of what pruning_ratio is a share: channels or MACs."
    ),
    "sparsity_threshold": Rule(
        float, 0.0, low=0, high=10, about="Weights below so many standard deviations of their layer's become zero."
    ),
    "quantize": Rule(str, "int8", choices=("none", "int8"), about="The deployed network's weights and activations."),
    "quantization_epochs": Rule(
        int, 2, low=0, high=100, about="Epochs of quantization-aware training if int8 costs more than a point."
    ),
}

ADDED = ("student.init", "source_weight", "target_weight")
"""Parameters that older studies could not name; whatever was searched then was searched at their defaults."""

POLICIES: dict[str, Rule] = {
    "learning_rate": Rule(float, low=0, open_low=True, about="Learning rate, at every optimizer step."),
    "temperature": Rule(float, low=0.1, high=100, about="Distillation temperature, at every optimizer step."),
    "student.width": Rule(int, low=1, high=1024, about="Channels of the first stage; a falling policy narrows."),
    "pruning_ratio": Rule(float, low=0, high=0.95, about="Share of channels (or MACs) removed while fine-tuning."),
    "sparsity": Rule(float, low=0, high=0.99, about="Share of single weights set to zero while fine-tuning."),
}
"""Every policy, with the rule for its values."""

POLICY_DEFAULTS: dict[str, Value | Mapping[str, Value]] = {
    "learning_rate": {"kind": "one_cycle", "peak": 0.01},
    "temperature": 4.0,
    "student.width": 16,
    "pruning_ratio": 0.0,
    "sparsity": 0.0,
}

ADAPTIVE_KINDS = ("hypergradient",)
"""Kinds that only a learning rate may have: training moves their value."""
NETWORK = "network"
"""The kind whose values a policy network says."""
LEARNED_POLICIES = ("learning_rate", "temperature")
"""What a policy network says; only these may be of its kind."""


def kinds_of(policy: str) -> tuple[str, ...]:
    """Return the kinds that a policy may have."""
    barred = {
        *(() if policy == "learning_rate" else ADAPTIVE_KINDS),
        *(() if policy in LEARNED_POLICIES else (NETWORK,)),
    }
    return tuple(kind for kind in KINDS if kind not in barred)


def kind_rule(policy: str) -> Rule:
    """Return the rule for the kind of a policy."""
    return Rule(str, "constant", choices=kinds_of(policy), about="The policy's shape over training progress.")


SHARES: dict[tuple[str, str], Rule] = {
    ("one_cycle", "warmup"): Rule(float, low=0, high=1, open_low=True, open_high=True, about="Progress at the peak."),
    ("one_cycle", "start_factor"): Rule(float, low=0, high=1, open_low=True, about="First value, as a share of peak."),
    ("one_cycle", "end_factor"): Rule(float, low=0, high=1, about="Last value, as a share of peak."),
    ("cubic", "begin"): Rule(float, low=0, high=1, open_high=True, about="Progress at which the change begins."),
    ("cubic", "end"): Rule(float, low=0, high=1, open_low=True, about="Progress at which the change ends."),
    ("hypergradient", "beta"): Rule(
        float, low=0, high=1, open_low=True, open_high=True, about="Largest relative change in one step."
    ),
    (NETWORK, "scale"): Rule(float, low=0.1, high=10, about="Factor on what the policy network says."),
}
"""The parameters of a policy kind that are shares (of progress, of the peak) or factors, not values of the policy."""

LAST_VALUES = ("end", "final")


def policy_parameter_rule(policy: str, kind: str, parameter: str) -> Rule:
    """Return the rule for one parameter of a policy of this kind, such as learning_rate, cosine, end."""
    values = POLICIES[policy]
    if (kind, parameter) in SHARES:
        return SHARES[kind, parameter]
    if parameter in LAST_VALUES:  # a learning rate may end at 0
        return Rule(values.type, low=values.low, high=values.high, about="The last value.")
    about = {"start": "The first value.", "initial": "The first value.", "peak": "The largest value."}
    return Rule(
        values.type,
        low=values.low,
        high=values.high,
        open_low=values.open_low,
        about=about.get(parameter, "The value throughout."),
    )


def policy_parameters(kind: str) -> list[str]:
    """Return all parameter names of a policy kind, the required ones first."""
    required, optional = parameter_names(kind)
    return required + optional


def section_path(path: str) -> str:
    """Return where a space's YAML says it: `parameters.alpha`, `policies.learning_rate.peak`."""
    return f"{'parameters' if path in PARAMETERS else 'policies'}.{path}"
