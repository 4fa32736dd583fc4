"""A configuration made ready to run: flat paths checked, completed with defaults, and gathered into policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metasearch.errors import InputError
from metasearch.parameters import (
    PARAMETERS,
    POLICIES,
    POLICY_DEFAULTS,
    Rule,
    Value,
    kinds_of,
    policy_parameter_rule,
)
from metasearch.policies import KINDS, Policy, parameter_names
from metasearch.spelling import hint


@dataclass(frozen=True)
class Configuration:
    """Everything that one pipeline run is told; the fields are those of PARAMETERS and POLICIES."""

    learning_rate: Policy
    temperature: Policy
    width: Policy
    pruning_ratio: Policy
    sparsity: Policy
    family: str
    depth: int
    init: str
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    alpha: float
    label_smoothing: float
    loss: str
    logit_standardization: bool
    feature_weight: float
    source_weight: float
    target_weight: float
    epochs: int
    fine_tune_epochs: int
    fine_tune_scale: float
    augment: bool
    pruning_importance: str
    pruning_target: str
    sparsity_threshold: float
    quantize: str
    quantization_epochs: int

    @classmethod
    def of(cls, config: Mapping[str, object], place: str = "configuration") -> Configuration:
        """Return the configuration that flat dotted paths describe.

        A policy is one path (`temperature: 3`, a constant) or several (`learning_rate.kind`, `learning_rate.peak`).
        What is missing takes its default. Raises InputError naming the path, the rule and the value.
        """
        values: dict[str, Value] = {path: rule.default for path, rule in PARAMETERS.items()}
        given: dict[str, dict[str, object]] = {name: {} for name in POLICIES}
        for path, value in config.items():
            policy = next((name for name in POLICIES if path == name or path.startswith(f"{name}.")), None)
            if path in PARAMETERS:
                values[path] = PARAMETERS[path].check(value, f"{place}: {path}")
            elif policy is not None:
                given[policy][path.removeprefix(policy).removeprefix(".")] = value
            else:
                raise InputError(f"{place}: {path}", f"is no parameter {hint(path, [*PARAMETERS, *POLICIES])}", value)
        if values["student.family"] == "mlp" and values["batch_size"] == 1:
            raise InputError(f"{place}: batch_size", "must be at least 2 for mlp: BatchNorm has no variance of one", 1)
        if values["loss"] == "rkd" and values["batch_size"] in (1, 2):
            rule = "must be at least 3 for rkd: it compares pairs and triples"
            raise InputError(f"{place}: batch_size", rule, values["batch_size"])
        if values["student.family"] == "mlp" and values["loss"] == "at":
            raise InputError(f"{place}: loss", "must be another one for mlp: it has no feature maps", "at")
        policies = {name: _policy(name, parts, place) for name, parts in given.items()}
        fields = {path.removeprefix("student."): value for path, value in values.items()}
        fields |= {name.removeprefix("student."): policy for name, policy in policies.items()}  # type: ignore[misc]  # one table
        return cls(**fields)  # type: ignore[arg-type]  # each value was checked against its rule

    @property
    def prunes(self) -> bool:
        """Whether channels are to be removed after the distillation."""
        return self.pruning_ratio.bounds()[1] > 0

    @property
    def sparsifies(self) -> bool:
        """Whether single weights are to become zero after the distillation."""
        return self.sparsity.bounds()[1] > 0 or self.sparsity_threshold > 0

    @property
    def compresses(self) -> bool:
        """Whether the network is made smaller while it is fine-tuned."""
        return self.prunes or self.sparsifies


def _policy(name: str, parts: dict[str, object], place: str) -> Policy:
    """Return a policy from its parts: {"": value} in short form, {"kind": ...} in long form, {} by default."""
    here = f"{place}: {name}"
    if not parts:
        default = POLICY_DEFAULTS[name]
        parts = dict(default) if isinstance(default, Mapping) else {"": default}
    if "" in parts and len(parts) > 1:
        raise InputError(here, "must be one number, or a kind with its parameters, not both")
    if "" in parts:
        return Policy("constant", {"value": _number(POLICIES[name], parts[""], here)}, here)
    kind = parts.get("kind")
    if not isinstance(kind, str) or kind not in kinds_of(name):
        raise InputError(f"{here}.kind", f"must be one of {', '.join(kinds_of(name))}", kind)
    numbers = {
        parameter: _number(policy_parameter_rule(name, kind, parameter), value, f"{here}.{parameter}")
        for parameter, value in parts.items()
        if parameter != "kind"
    }
    policy = Policy(kind, numbers, here)
    _check_defaults(name, policy, here)
    return policy


def _check_defaults(name: str, policy: Policy, here: str) -> None:
    """Raise InputError where a parameter left out, or a share of the peak, takes the policy out of its range."""
    defaults = KINDS[policy.kind].__kwdefaults__ or {}
    for parameter in parameter_names(policy.kind)[1]:
        rule, value = policy_parameter_rule(name, policy.kind, parameter), defaults[parameter]
        if parameter not in policy.parameters and not rule.permits(value):
            rule_text = f"is required by kind {policy.kind}: its default {value:g} is not {rule.range_text()}"
            raise InputError(f"{here}.{parameter}", rule_text)
    if policy.kind == "one_cycle":
        for factor in ("start_factor", "end_factor"):
            smallest = policy.parameters["peak"] * policy.parameters.get(factor, defaults[factor])
            if smallest < POLICIES[name].low:
                raise InputError(f"{here}.{factor}", f"times peak must be {POLICIES[name].range_text()}", smallest)


def _number(rule: Rule, value: object, place: str) -> float:
    number = rule.check(value, place)
    assert isinstance(number, (int, float))
    return number
