"""A search space: YAML -> frozen Space -> Optuna distributions -> configurations.

A configuration is flat: dotted path -> value. A policy in short form is one path (`temperature: 3.2`), in long form
several (`learning_rate.kind`, `learning_rate.peak`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution

from metasearch.errors import InputError, NotFoundError
from metasearch.parameters import (
    PARAMETERS,
    POLICIES,
    Rule,
    Value,
    kind_rule,
    policy_parameter_rule,
    section_path,
)
from metasearch.records import Config
from metasearch.resources import preset_names, resource_folder
from metasearch.search.objectives import Constraint, Objective, parse_objectives
from metasearch.search.settings import Setting
from metasearch.search.space_reader import read_settings
from metasearch.search.strict_yaml import load_yaml, read_text
from metasearch.spelling import hint

TOP_LEVEL_KEYS = ("name", "objectives", "constraints", "policies", "parameters")


@dataclass(frozen=True)
class Space:
    """What a search may choose, and what it is for.

    settings: every parameter of every policy and every plain parameter, those that conditions name before those that
    depend on them. text: the YAML it was read from, comments included.
    """

    name: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    settings: tuple[Setting, ...]
    text: str = field(default="", compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what the space means: no comment, order of keys, spelling of a number or name counts."""
        meaning = {key: value for key, value in self._document().items() if key != "name"}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    @property
    def fixed(self) -> dict[str, Value]:
        """The settings that are not searched: path -> value."""
        return {s.path: s.domain for s in self.settings if not isinstance(s.domain, BaseDistribution)}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions of all searched settings, the conditional ones too."""
        return {s.path: s.domain for s in self.settings if isinstance(s.domain, BaseDistribution)}

    def suggest(self, trial: Trial) -> Config:
        """Return the configuration that the trial's sampler proposes, asking only for settings that are active."""
        return self._completed(self._active_values(lambda setting: setting.suggest(trial)))

    def sample(self, rng: np.random.Generator) -> dict[str, Value]:
        """Return random values of the active searched settings, independent of any sampler; for `configuration`."""
        return self.at({path: float(rng.random()) for path in self.distributions()})

    def at(self, shares: Mapping[str, float]) -> dict[str, Value]:
        """Return the values of the active searched settings at a point of the unit cube. shares: of all, in [0, 1)."""
        values = self._active_values(lambda setting: setting.at(shares[setting.path]))
        return {path: value for path, value in values.items() if path in shares}

    def configuration(self, chosen: Mapping[str, Value]) -> Config:
        """Return the configuration of chosen values (such as trial.params) and the fixed ones.

        A policy's conditional parameter is there only where it is active; a plain parameter that is not active has its
        default. Raises InputError if an active setting has no chosen value.
        """

        def choose(setting: Setting) -> Value:
            if setting.path not in chosen:
                raise InputError(setting.path, "is missing from the chosen values")
            return chosen[setting.path]

        return self._completed(self._active_values(choose))

    def check_parameters(self, params: Mapping[str, object], place: str) -> None:
        """Raise InputError unless `params` is a configuration of this space, or a part that a sampler can complete.

        place: where it comes from, such as a file. A fixed parameter may be there with its value, and an inactive one
        with its default.
        """
        by_path = {setting.path: setting for setting in self.settings}
        values: dict[str, Value] = {**self.fixed}
        for path, value in params.items():
            if path not in by_path:
                raise InputError(f"{place}: {path}", f"is no parameter of this space {hint(path, by_path)}")
            values[path] = self._rule(by_path[path]).check(value, f"{place}: {path}")
        inactive: set[str] = set()
        for path, setting in by_path.items():
            failing = [(t, vs) for t, vs in setting.when if t in inactive or (t in values and values[t] not in vs)]
            if failing:
                inactive.add(path)
                if path in params and not (path in PARAMETERS and values[path] == PARAMETERS[path].default):
                    target, permitted = failing[0]
                    shown = " or ".join(map(str, permitted))
                    raise InputError(f"{place}: {path}", f"is there only where {target} is {shown}", values[path])
            elif path in params:
                setting.check(values[path], f"{place}: {path}")

    def without(self, impossible: Mapping[str, Mapping[Value, str]]) -> Space:
        """Return the space without some choices. impossible: path -> choice -> why it cannot be.

        Raises InputError with the reason where a setting has no other value.
        """
        settings = []
        for setting in self.settings:
            reasons = impossible.get(setting.path, {})
            left = tuple(choice for choice in setting.choices if choice not in reasons)
            if setting.choices and not left:
                raise InputError(section_path(setting.path), reasons[setting.choices[0]], setting.choices[0])
            if len(left) < len(setting.choices):
                setting = replace(setting, domain=left[0] if len(left) == 1 else CategoricalDistribution(left))
            settings.append(setting)
        return replace(self, settings=tuple(settings))

    def to_yaml(self) -> str:
        """Return YAML, defaults spelled out, that reads back as an equal space."""
        return yaml.safe_dump(self._document(), sort_keys=False, allow_unicode=True)

    def _active_values(self, choose: Callable[[Setting], Value]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for setting in self.settings:
            if setting.active(values):
                domain = setting.domain
                values[setting.path] = choose(setting) if isinstance(domain, BaseDistribution) else domain
        return values

    def _completed(self, values: dict[str, Value]) -> Config:
        """Return the values with the defaults of the plain parameters that are not active."""
        inactive = [s.path for s in self.settings if s.path in PARAMETERS and s.path not in values]
        return {**values, **{path: PARAMETERS[path].default for path in inactive}}

    def _rule(self, setting: Setting) -> Rule:
        """Return the rule of a setting's values; a policy parameter's is the same for all kinds it is active for."""
        if setting.path in PARAMETERS or setting.path in POLICIES:
            return (PARAMETERS | POLICIES)[setting.path]
        policy, _, parameter = setting.path.rpartition(".")
        if parameter == "kind":
            return kind_rule(policy)
        kinds = dict(setting.when).get(f"{policy}.kind") or (self.fixed[f"{policy}.kind"],)
        return policy_parameter_rule(policy, str(kinds[0]), parameter)

    def _document(self) -> dict[str, Any]:
        policies: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
        for setting in self.settings:
            policy, _, parameter = setting.path.rpartition(".")
            if setting.path in PARAMETERS:
                parameters[setting.path] = setting.plain()
            elif setting.path in POLICIES:
                policies[setting.path] = setting.plain()
            else:
                policies.setdefault(policy, {})[parameter] = setting.plain()
        return {
            "name": self.name,
            "objectives": [objective.metric for objective in self.objectives],
            "constraints": [str(constraint) for constraint in self.constraints],
            "policies": {name: policies[name] for name in POLICIES},
            "parameters": {name: parameters[name] for name in PARAMETERS},
        }


def parse_space(text: str, *, place: str) -> Space:
    """Return the space that the YAML text says. place: the file's path as the user gave it, for messages.

    Raises InputError naming the place, the rule and the value.
    """
    document = load_yaml(text, place=place)
    if not isinstance(document, Mapping):
        raise InputError(place, f"must be a mapping with the keys {', '.join(TOP_LEVEL_KEYS)}", document)
    for key in document:
        if key not in TOP_LEVEL_KEYS:
            raise InputError(f"{place}: {key}", f"is no key of a search space {hint(key, TOP_LEVEL_KEYS)}")
    name = document.get("name", Path(place).stem)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}: name", "must be a text", name)
    if "objectives" not in document:
        raise InputError(f"{place}: objectives", "is required: a list of metrics")
    constraints = _texts(document.get("constraints", []), f"{place}: constraints")
    return Space(
        name=name,
        objectives=parse_objectives(
            _texts(document["objectives"], f"{place}: objectives"), place=f"{place}: objectives"
        ),
        constraints=tuple(
            Constraint.parse(constraint, place=f"{place}: constraints[{position}]")
            for position, constraint in enumerate(constraints)
        ),
        settings=read_settings(document.get("policies"), document.get("parameters"), place),
        text=text,
    )


def load_space(name_or_path: str) -> Space:
    """Return the space of a preset (`quick`) or of a YAML file. Raises NotFoundError if there is neither."""
    if name_or_path in preset_names():
        return parse_space(
            (resource_folder("search_spaces") / f"{name_or_path}.yaml").read_text(encoding="utf-8"),
            place=f"search_spaces/{name_or_path}.yaml",
        )
    if not os.path.isfile(name_or_path):  # not Path's: it raises for a name that is too long
        meant = hint(Path(name_or_path).stem, preset_names())
        raise NotFoundError(f"{name_or_path}: is neither a file nor a preset {meant}")
    return parse_space(read_text(name_or_path), place=name_or_path)


def _texts(raw: object, place: str) -> list[str]:
    if not isinstance(raw, list):
        raise InputError(place, "must be a list", raw)
    for position, item in enumerate(raw):
        if not isinstance(item, str):
            raise InputError(f"{place}[{position}]", "must be a text", item)
    return raw
