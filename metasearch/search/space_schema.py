"""The JSON schema (draft 2020-12) of a search space, with which an editor completes and checks the YAML.

It is made from the tables of parameters.py and says what a schema can say; what relates two values (low below high,
conditions, completeness over the choices of a kind) is checked by the reader alone. After a change to the tables:

    python -m metasearch.search.space_schema
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from metasearch.parameters import (
    LAST_VALUES,
    PARAMETERS,
    POLICIES,
    SHARES,
    Rule,
    kind_rule,
    kinds_of,
    policy_parameter_rule,
    policy_parameters,
)
from metasearch.policies import parameter_names
from metasearch.resources import resource_folder
from metasearch.search.objectives import STEERING_METRICS, UNITS

Schema = dict[str, Any]
TYPE_NAMES: dict[type, str] = {bool: "boolean", int: "integer", float: "number"}
WHEN: Schema = {
    "type": "object",
    "description": "Searched only where each of these parameters has (one of) these values.",
    "minProperties": 1,
    "additionalProperties": {
        "anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "minItems": 1}],
    },
}


def space_schema() -> Schema:
    """Return the schema."""
    operators_and_units = rf"\s*(<=|>=|<|>)\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*({'|'.join(UNITS)})\s*$"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A metasearch search space",
        **_mapping(
            {
                "name": {"type": "string", "minLength": 1},
                "objectives": {
                    "description": "The metrics to improve; early stopping looks at the first.",
                    "type": "array",
                    "items": {"enum": list(STEERING_METRICS)},
                    "minItems": 1,
                    "uniqueItems": True,
                },
                "constraints": {
                    "description": 'Limits on metrics, such as "model_bytes <= 25kB".',
                    "type": "array",
                    "items": {
                        "type": "string",
                        "pattern": rf"^\s*({'|'.join(STEERING_METRICS)}){operators_and_units}",
                    },
                },
                "policies": {
                    **_mapping({name: _policy(name, rule) for name, rule in POLICIES.items()}),
                    "description": "Functions of training progress.",
                },
                "parameters": {
                    **_mapping({name: _fixed_or_searched(rule, when=True) for name, rule in PARAMETERS.items()}),
                    "description": "Values that stay the same throughout a trial.",
                },
            },
            required=("objectives",),
        ),
        "$defs": _definitions(),
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(space_schema(), indent=2) + "\n"


def _definitions() -> Schema:
    """Return the schemas that policies share: conditions, and what each parameter of a policy may be."""
    definitions = {"when": WHEN}
    for policy in POLICIES:
        for kind in kinds_of(policy):
            for parameter in policy_parameters(kind):
                rule = policy_parameter_rule(policy, kind, parameter)
                schema = _fixed_or_searched(rule, when=True)
                definitions[_definition_name(policy, kind, parameter)] = {"anyOf": schema["anyOf"]}
    return definitions


def _definition_name(policy: str, kind: str, parameter: str) -> str:
    if (kind, parameter) in SHARES:
        return f"{kind}.{parameter}"
    return f"{policy}.{'last' if parameter in LAST_VALUES else 'value'}"


def _value(rule: Rule) -> Schema:
    """Return the schema of one value under a rule."""
    if rule.type is str:
        listed: Schema = {"enum": list(rule.choices)}
        return {"anyOf": [listed, {"type": "string", "pattern": f"^{rule.pattern}$"}]} if rule.pattern else listed
    schema: Schema = {"type": TYPE_NAMES[rule.type]}
    if rule.type is bool:
        return schema
    if math.isfinite(rule.low):
        schema["exclusiveMinimum" if rule.open_low else "minimum"] = rule.low
    if math.isfinite(rule.high):
        schema["exclusiveMaximum" if rule.open_high else "maximum"] = rule.high
    return schema


def _fixed_or_searched(rule: Rule, *, when: bool) -> Schema:
    """Return the schema of a plain value, choices, or (numbers only) a range; when: whether it may have conditions."""
    value, condition = _value(rule), {"when": {"$ref": "#/$defs/when"}} if when else {}
    forms = [value, _mapping({"choices": _choices(value), **condition}, required=("choices",))]
    if rule.type in (int, float):
        step: Schema = {"type": TYPE_NAMES[rule.type], "exclusiveMinimum": 0}
        keys = {"low": value, "high": value, "step": step, "log": {"type": "boolean"}, **condition}
        forms.append(_mapping(keys, required=("low", "high")))
    return {"description": rule.about, "anyOf": forms}


def _policy(name: str, rule: Rule) -> Schema:
    """Return the schema of a policy: its short form, each kind in long form, and a searched kind."""
    short = _fixed_or_searched(rule, when=False)
    forms: list[Schema] = [*short["anyOf"]]
    searched: dict[str, list[Schema]] = {}
    for kind in kinds_of(name):
        parameters = {
            parameter: {
                "description": policy_parameter_rule(name, kind, parameter).about,
                "$ref": f"#/$defs/{_definition_name(name, kind, parameter)}",
            }
            for parameter in policy_parameters(kind)
        }
        required, _ = parameter_names(kind)
        forms.append(_mapping({"kind": {"const": kind}, **parameters}, required=("kind", *required)))
        for parameter, schema in parameters.items():
            if schema not in searched.setdefault(parameter, []):
                searched[parameter].append(schema)
    kinds = _mapping({"choices": _choices(_value(kind_rule(name)))}, required=("choices",))
    any_parameter = {p: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for p, schemas in searched.items()}
    forms.append(_mapping({"kind": kinds, **any_parameter}, required=("kind",)))
    return {"description": rule.about, "anyOf": forms}


def _choices(value: Schema) -> Schema:
    return {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}


def _mapping(properties: Schema, *, required: Sequence[str] = ()) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


if __name__ == "__main__":
    path = resource_folder("search_spaces") / "space.schema.json"
    path.write_text(schema_text(), encoding="utf-8")
    sys.stdout.write(f"{path}\n")
