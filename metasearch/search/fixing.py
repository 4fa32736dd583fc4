"""Spaces with a part of them decided: fixed at values, or narrowed to what other configurations had.

What is decided may decide more: a condition on a parameter that is fixed either always holds or never does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.errors import InputError
from metasearch.parameters import PARAMETERS, POLICIES, Value, section_path
from metasearch.records import Config
from metasearch.search.settings import Setting, in_order
from metasearch.search.space import Space, parse_space

STRUCTURE = ("student.family", "student.width", "student.depth")
KEPT_OPEN = (
    *STRUCTURE,
    "student.init",
    "source_weight",
    "target_weight",
    "epochs",
    "fine_tune_epochs",
    "quantize",
    "quantization_epochs",
)
"""What is no part of a strategy: the structure, where training starts, what it may cost, and what is deployed."""
STRATEGY = tuple(name for name in (*PARAMETERS, *POLICIES) if name not in KEPT_OPEN)


def part_of(config: Config, names: Sequence[str]) -> dict[str, Value]:
    """Return the values of a configuration that belong to these parameters and policies, in their order."""
    return {path: config[path] for name in names for path in config if path == name or path.startswith(f"{name}.")}


def fix(space: Space, values: Mapping[str, Value], *, place: str) -> Space:
    """Return the space with these values fixed, by path; of a policy, all paths of its new form.

    A parameter that is there only under a condition keeps it. place: how an error names the result. Raises InputError
    where a value breaks a rule.
    """
    policies = {policy for path in values if (policy := _policy_of(path)) is not None}
    kept = [
        _fixed(setting, values[setting.path]) if setting.path in values and setting.path in PARAMETERS else setting
        for setting in space.settings
        if _policy_of(setting.path) not in policies
    ]
    return _settled(space, [*kept, *(Setting(p, v) for p, v in values.items() if _policy_of(p) is not None)], place)


def narrow_to(space: Space, configs: Sequence[Config], names: Sequence[str], *, place: str) -> Space:
    """Return the space whose searched parameters of these names have no values beyond those in the configurations.

    Of a choice what occurs stays, of a range what lies between the smallest and the largest. place: how an error names
    the result. Raises InputError where nothing stays.
    """
    settings = []
    for setting in space.settings:
        found = [config[setting.path] for config in configs if setting.path in config]
        if setting.searched and found and part_of({setting.path: 0}, names):
            setting = replace(setting, domain=_narrowed(setting, found, place))
        settings.append(setting)
    return _settled(space, settings, place)


def _policy_of(path: str) -> str | None:
    return next((name for name in POLICIES if path == name or path.startswith(f"{name}.")), None)


def _fixed(setting: Setting, value: Value) -> Setting:
    if value == PARAMETERS[setting.path].default:  # which it has where its conditions do not hold, too
        return Setting(setting.path, value)
    return replace(setting, domain=CategoricalDistribution((value,)) if setting.when else value)


def _narrowed(setting: Setting, found: Sequence[Value], place: str) -> Value | BaseDistribution:
    domain = setting.domain
    if isinstance(domain, (IntDistribution, FloatDistribution)):
        low, high = max(domain.low, float(min(found))), min(domain.high, float(max(found)))
        if domain.step is not None:
            low = domain.low + domain.step * math.ceil((low - domain.low) / domain.step - 1e-9)
            high = domain.low + domain.step * math.floor((high - domain.low) / domain.step + 1e-9)
        if low > high:
            raise _none_left(setting, f"in [{domain.low:.12g}, {domain.high:.12g}]", found, place)
        if isinstance(domain, IntDistribution):
            whole = IntDistribution(int(low), int(high), log=domain.log, step=domain.step)
            return whole.low if whole.single() else whole
        return low if low == high else FloatDistribution(low, high, log=domain.log, step=domain.step)
    left = tuple(choice for choice in setting.choices if choice in found)
    if not left:
        raise _none_left(setting, ", ".join(map(str, setting.choices)), found, place)
    return CategoricalDistribution(left) if len(left) > 1 or setting.when else left[0]


def _none_left(setting: Setting, permitted: str, found: Sequence[Value], place: str) -> InputError:
    shown = ", ".join(sorted({str(value) for value in found}))
    return InputError(f"{place}: {section_path(setting.path)}", f"has none of the space's values {permitted}", shown)


def _settled(space: Space, settings: Sequence[Setting], place: str) -> Space:
    """Return the space of these settings, conditions on what is fixed resolved, as its own YAML reads."""
    waiting = list(settings)
    while True:
        by_path = {setting.path: setting for setting in waiting}
        after = [resolved for setting in waiting if (resolved := _resolved(setting, by_path)) is not None]
        if after == waiting:
            break
        waiting = after
    document = replace(space, settings=in_order(waiting, place)).to_yaml()
    return parse_space(document, place=place)


def _resolved(setting: Setting, by_path: Mapping[str, Setting]) -> Setting | None:
    """Return the setting without the conditions that always hold; fixed at its default, or None, where one never does.

    A parameter of a policy has no default: it is not there.
    """
    when = []
    for path, permitted in setting.when:
        target = by_path.get(path)
        left = () if target is None else tuple(choice for choice in target.choices if choice in permitted)
        if target is None or not left:
            return Setting(setting.path, PARAMETERS[setting.path].default) if setting.path in PARAMETERS else None
        if target.searched or target.when:
            when.append((path, left))
    domain = setting.domain
    if not when and isinstance(domain, CategoricalDistribution) and len(domain.choices) == 1:
        domain = setting.choices[0]
    return replace(setting, domain=domain, when=tuple(when))
