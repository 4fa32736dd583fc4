"""The JSON schema of search spaces: current, and of one mind with the reader."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from metasearch.errors import InputError
from metasearch.resources import preset_names, resource_folder
from metasearch.search.space import load_space, parse_space
from metasearch.search.space_schema import schema_text, space_schema


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(space_schema())


def test_schema_is_a_valid_schema() -> None:
    rules = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
    assert list(rules.iter_errors(space_schema())) == []


def test_schema_file_is_current() -> None:
    written = (resource_folder("search_spaces") / "space.schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "run python -m metasearch.search.space_schema"


@pytest.mark.parametrize("preset", preset_names())
def test_presets_keep_the_schema_and_name_it(preset: str) -> None:
    text = load_space(preset).text
    assert text.startswith("# yaml-language-server: $schema=space.schema.json\n")
    assert list(validator().iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_space_writes_keeps_the_schema(preset: str) -> None:
    assert list(validator().iter_errors(yaml.safe_load(load_space(preset).to_yaml()))) == []


@pytest.mark.parametrize(
    "document",
    [
        {"polices": {}},
        {"objectives": []},
        {"objectives": ["accuracy"]},
        {"objectives": ["test_accuracy"]},
        {"constraints": ["model_bytes <= 3KB"]},
        {"constraints": ["model_bytes == 3"]},
        {"parameters": {"epoch": 3}},
        {"parameters": {"epochs": 0}},
        {"parameters": {"epochs": 3.5}},
        {"parameters": {"alpha": {"low": 0, "high": 1.5}}},
        {"parameters": {"alpha": {"low": 0}}},
        {"parameters": {"alpha": {"low": 0, "high": 1, "when": {}}}},
        {"parameters": {"quantize": False}},
        {"parameters": {"quantize": {"choices": []}}},
        {"parameters": {"quantize": {"choices": ["int8", "int8"]}}},
        {"policies": {"warmth": 3}},
        {"policies": {"student.width": 2.5}},
        {"policies": {"temperature": {"low": 1, "high": 8, "when": {"optimizer": "sgd"}}}},
        {"policies": {"learning_rate": {"kind": "cosine", "peak": 0.1}}},
        {"policies": {"learning_rate": {"kind": "cosin", "start": 0.1}}},
        {"policies": {"learning_rate": {"peak": 0.1}}},
    ],
)
def test_what_the_schema_refuses_the_reader_refuses_too(document: dict[str, Any]) -> None:
    whole = {"objectives": ["val_accuracy"], **document}
    assert not validator().is_valid(whole)
    with pytest.raises(InputError):
        parse_space(yaml.safe_dump(whole), place="bad.yaml")
