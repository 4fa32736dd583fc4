"""From a space's YAML document to its settings: every parameter and policy, fixed or searched, checked.

A parameter is a plain value, a range {low, high, step, log} or {choices: [...]}; the last two may carry `when`. A
policy is one of these without `when` (short form, a constant policy) or a mapping with `kind` and its own parameters
(long form).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution

from metasearch.errors import InputError
from metasearch.parameters import (
    PARAMETERS,
    POLICIES,
    POLICY_DEFAULTS,
    Rule,
    Value,
    kind_rule,
    policy_parameter_rule,
    policy_parameters,
    section_path,
)
from metasearch.policies import KINDS, parameter_names
from metasearch.search.settings import Condition, Setting, in_order, range_distribution
from metasearch.spelling import hint

RANGE_KEYS = ("low", "high", "step", "log")
SEARCH_KEYS = (*RANGE_KEYS, "choices", "when")
ALL_POLICY_PARAMETERS = tuple(dict.fromkeys(name for kind in KINDS for name in policy_parameters(kind)))


def read_settings(policies: object, parameters: object, place: str) -> tuple[Setting, ...]:
    """Return the settings that the two sections of the YAML say, omitted ones at their default, conditions first.

    Raises InputError with place `FILE: policies.temperature.low`, the rule and the value.
    """
    policies = _section(policies, f"{place}: policies", "policy", POLICIES)
    parameters = _section(parameters, f"{place}: parameters", "parameter", PARAMETERS)
    settings = []
    for name, rule in PARAMETERS.items():
        raw = parameters.get(name, rule.default)
        domain, when = read_domain(raw, rule, f"{place}: parameters.{name}")
        settings.append(Setting(name, domain, when))
    for name in POLICIES:
        settings += _read_policy(name, policies.get(name, POLICY_DEFAULTS[name]), f"{place}: policies.{name}")
    by_path = {setting.path: setting for setting in settings}
    _check_loss(by_path["loss"], by_path["student.family"], f"{place}: parameters.loss")
    return in_order([_with_checked_conditions(setting, by_path, place) for setting in settings], place)


def _check_loss(loss: Setting, family: Setting, place: str) -> None:
    """Raise InputError where the loss at, which needs feature maps, can meet the family mlp, which has none."""
    families = dict(loss.when).get(family.path, family.choices)
    if "at" in loss.choices and "mlp" in families:
        raise InputError(place, "at needs feature maps: add a `when` on student.family that leaves mlp out", "at")


def read_domain(raw: object, rule: Rule, place: str) -> tuple[Value | BaseDistribution, tuple[Condition, ...]]:
    """Return the fixed value or the distribution that the YAML `raw` says under `rule`, and its conditions as read."""
    if not isinstance(raw, Mapping):
        return rule.check(raw, place), ()
    for key in raw:
        if key not in SEARCH_KEYS:
            raise InputError(f"{place}.{key}", f"is no key of a range or of choices {hint(key, SEARCH_KEYS)}")
    when = _conditions_as_read(raw["when"], f"{place}.when") if "when" in raw else ()
    if "choices" in raw:
        beside = [key for key in RANGE_KEYS if key in raw]
        if beside:
            raise InputError(f"{place}.{beside[0]}", "cannot stand beside choices")
        return CategoricalDistribution(_read_choices(raw["choices"], rule, f"{place}.choices")), when
    return _read_range(raw, rule, place), when


def _read_range(raw: Mapping[str, object], rule: Rule, place: str) -> BaseDistribution:
    if rule.type not in (int, float):
        raise InputError(place, "must be a plain value or choices: it is no number and has no range")
    for key in ("low", "high"):
        if key not in raw:
            raise InputError(f"{place}.{key}", "is required in a range")
    log = raw.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{place}.log", "must be true or false", log)
    low, high = (float(rule.check(raw[key], f"{place}.{key}")) for key in ("low", "high"))
    anything = Rule(rule.type, low=-float("inf"))
    step = float(anything.check(raw["step"], f"{place}.step")) if "step" in raw else None
    return range_distribution(low, high, step=step, log=log, integer=rule.type is int, place=place)


def _read_choices(raw: object, rule: Rule, place: str) -> tuple[Value, ...]:
    if not isinstance(raw, list):
        raise InputError(place, "must be a list", raw)
    if not raw:
        raise InputError(place, "must not be empty")
    choices = tuple(rule.check(item, f"{place}[{position}]") for position, item in enumerate(raw))
    for position, choice in enumerate(choices):
        if choice in choices[:position]:
            raise InputError(f"{place}[{position}]", "is given twice", choice)
    return choices


def _conditions_as_read(raw: object, place: str) -> tuple[Condition, ...]:
    """Return {parameter: value or [values]} as conditions; what they name is checked once all settings are known."""
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(place, "must name a parameter and its values, such as {optimizer: sgd}", raw)
    conditions = []
    for path, values in raw.items():
        listed = values if isinstance(values, list) else [values]
        if not listed:
            raise InputError(f"{place}.{path}", "must not be empty")
        conditions.append((str(path), tuple(listed)))
    return tuple(conditions)


def _section(raw: object, place: str, noun: str, known: Iterable[str]) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise InputError(place, "must be a mapping", raw)
    for name in raw:
        if name not in known:
            raise InputError(f"{place}.{name}", f"is no {noun} {hint(name, known)}")
    return cast(Mapping[str, Any], raw)


def _read_policy(name: str, raw: object, place: str) -> list[Setting]:
    if not isinstance(raw, Mapping) or ("kind" not in raw and not any(key in ALL_POLICY_PARAMETERS for key in raw)):
        domain, when = read_domain(raw, POLICIES[name], place)
        if when:
            raise InputError(f"{place}.when", "is not possible: a policy is always active")
        return [Setting(name, domain)]
    if "kind" not in raw:
        raise InputError(f"{place}.kind", f"is required beside {next(iter(raw))}")
    domain, when = read_domain(raw["kind"], kind_rule(name), f"{place}.kind")
    if when:
        raise InputError(f"{place}.kind.when", "is not possible: a policy is always active")
    kind = Setting(f"{name}.kind", domain)
    parts = [_read_policy_parameter(kind, str(key), value, place) for key, value in raw.items() if key != "kind"]
    order = {f"{name}.{parameter}": position for position, parameter in enumerate(ALL_POLICY_PARAMETERS)}
    settings = [kind, *sorted(parts, key=lambda part: order[part.path])]
    for chosen in kind.choices:
        _check_complete(name, str(chosen), {part.path: part for part in settings}, place)
    return settings


def _read_policy_parameter(kind: Setting, parameter: str, raw: object, place: str) -> Setting:
    """Return the setting of one parameter in long form, conditional on the kinds that have it."""
    place, policy = f"{place}.{parameter}", kind.path.removesuffix(".kind")
    if parameter not in ALL_POLICY_PARAMETERS:
        raise InputError(place, f"is no parameter of a policy {hint(parameter, ALL_POLICY_PARAMETERS)}")
    having = [str(k) for k in kind.choices if parameter in policy_parameters(str(k))]
    if not having:
        raise InputError(place, f"is no parameter of kind {' or '.join(map(str, kind.choices))}")
    when = _conditions_as_read(raw["when"], f"{place}.when") if isinstance(raw, Mapping) and "when" in raw else ()
    named = dict(when).get(kind.path)
    for value in named or ():
        if value in kind.choices and value not in having:
            raise InputError(
                f"{place}.when.{kind.path}", f"is not possible: {parameter} is no parameter of kind {value}"
            )
    active = [k for k in having if named is None or k in named] or having
    rules = [policy_parameter_rule(policy, k, parameter) for k in active]
    if any(rule != rules[0] for rule in rules):
        raise InputError(
            f"{place}.when", f"is required: {parameter} means different things for the kinds {' and '.join(active)}"
        )
    domain, when = read_domain(raw, rules[0], place)
    if named is None and kind.searched:
        when = ((kind.path, tuple(having)), *when)
    return Setting(f"{policy}.{parameter}", domain, when)


def _check_complete(policy: str, kind: str, settings: Mapping[str, Setting], place: str) -> None:
    """Raise InputError unless a policy of this kind always gets what it needs and keeps within the policy's range."""
    required, _ = parameter_names(kind)
    defaults = KINDS[kind].__kwdefaults__ or {}
    low, high = {}, {}
    for parameter in policy_parameters(kind):
        setting = settings.get(f"{policy}.{parameter}")
        here = f"{place}.{parameter}"
        conditions = dict(setting.when) if setting else {}
        always = setting is not None and set(conditions) <= {f"{policy}.kind"}
        always = always and kind in conditions.get(f"{policy}.kind", (kind,))
        if not always and parameter in required:
            raise InputError(here, f"is always required by kind {kind}")
        rule = policy_parameter_rule(policy, kind, parameter)
        if not always and not rule.permits(defaults[parameter]):
            raise InputError(
                here,
                f"is always required by kind {kind}: its default {defaults[parameter]:g} is not {rule.range_text()}",
            )
        bounds = [setting.bounds()] if setting else []
        bounds += [] if always else [(defaults[parameter], defaults[parameter])]
        low[parameter], high[parameter] = min(b[0] for b in bounds), max(b[1] for b in bounds)
    _check_shape(policy, kind, low, high, place)


def _check_shape(policy: str, kind: str, low: Mapping[str, float], high: Mapping[str, float], place: str) -> None:
    """Check what two parameters of a kind mean together, over all values that they may have."""
    if kind == "cubic" and not high["begin"] < low["end"]:
        raise InputError(f"{place}.begin", "must be below every end", f"begin={high['begin']:g}, end={low['end']:g}")
    if kind == "one_cycle":
        rule = POLICIES[policy]
        for factor in ("start_factor", "end_factor"):
            smallest = low["peak"] * low[factor]
            if smallest < rule.low:
                raise InputError(f"{place}.{factor}", f"times peak must be {rule.range_text()}", smallest)


def _with_checked_conditions(setting: Setting, by_path: Mapping[str, Setting], place: str) -> Setting:
    """Return the setting with its conditions in one form: paths in order, values as and in the order of the choices."""
    here = f"{place}: {section_path(setting.path)}.when"
    checked = []
    for path, values in sorted(setting.when):
        target = by_path.get(path)
        if target is None:
            raise InputError(f"{here}.{path}", f"is no parameter of this space {hint(path, by_path)}")
        if not isinstance(target.domain, CategoricalDistribution):
            what = "is a range" if target.searched else f"is fixed at {target.domain}"
            raise InputError(f"{here}.{path}", f"must be a parameter with choices, and {path} {what}")
        for value in values:
            if not any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in target.choices
            ):
                shown = ", ".join(map(str, target.choices))
                raise InputError(f"{here}.{path}", f"must be among the choices {shown}", value)
        checked.append((path, tuple(choice for choice in target.choices if choice in values)))
    return replace(setting, when=tuple(checked))
