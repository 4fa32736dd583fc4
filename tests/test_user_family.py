from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from metasearch.configuration import Configuration
from metasearch.errors import InputError, NotFoundError
from metasearch.models import NetworkSpec, build_network
from metasearch.parameters import PARAMETERS
from metasearch.search.space import parse_space
from metasearch.search.space_schema import space_schema


def build(name: str) -> torch.nn.Module:
    spec = NetworkSpec(f"tests.user_networks:{name}", width=4, depth=2)
    return build_network(spec, input_shape=(1, 8, 8), classes=3, seed=1)


@pytest.mark.parametrize("name", ["smooth", "grouped", "plain", "adds_to_input"])
def test_a_function_of_the_user_builds_the_network_from_its_seed(name: str) -> None:
    model, again = build(name), build(name)
    assert model.training
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_module", "tests.user_networks:no_module must return a torch.nn.Module, got 'int'"),
        ("wrong_logits", "wrong_logits must map inputs (2, 1, 8, 8) to logits (2, 3), got (2, 8)"),
        ("wrong_input", "the network of tests.user_networks:wrong_input must take inputs (2, 1, 8, 8): "),
        ("needs_more", "needs_more may require only width, depth, input_shape, classes, got 'dropout'"),
        ("raising", "tests.user_networks:raising fails (RuntimeError: no network of width 4)"),
        ("no_depth", "tests.user_networks:no_depth must accept the keyword depth, got 'width'"),
    ],
)
def test_a_function_that_breaks_a_rule_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        build(name)
    assert str(refusal.value).startswith("student.family: ")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("nowhere.at_all:build", "student.family: nowhere.at_all:build: No module named 'nowhere'"),
        ("tests.user_networks:missing", "the module tests.user_networks has no function missing"),
        ("tests.user_networks:NOT_CALLABLE", "the module tests.user_networks has no function NOT_CALLABLE"),
    ],
)
def test_a_module_or_function_that_is_not_there_is_not_found(family: str, message: str) -> None:
    with pytest.raises(NotFoundError) as refusal:
        build_network(NetworkSpec(family, width=1, depth=1), input_shape=(1, 8, 8), classes=3, seed=0)
    assert message in str(refusal.value)


def test_modules_of_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\ndef build(width, depth):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    (tmp_path / "a_module_of_mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    spec = NetworkSpec.parse("a_module_of_mine:build:width=1,depth=1")
    model = build_network(spec, input_shape=(1, 8, 8), classes=3, seed=0)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize("family", ["module:build", "a.b_2.c:build_it"])
def test_a_configuration_may_name_a_function_of_the_user(family: str) -> None:
    assert Configuration.of({"student.family": family}).family == family


@pytest.mark.parametrize("family", ["module", "a b:c", "a:b:c", ":build", "a.:b", "../a:b", "a:b()", "mlp:"])
def test_other_spellings_are_refused_with_the_choices(family: str) -> None:
    rule = "must be one of convnet, mlp, resnet, mobilenet or package.module:function"
    with pytest.raises(InputError, match=rule):
        PARAMETERS["student.family"].check(family, "student.family")


def test_a_space_may_list_a_function_of_the_user_among_the_families() -> None:
    text = "objectives: [val_accuracy]\nparameters:\n  student.family: {choices: [convnet, my.module:build]}\n"
    space = parse_space(text, place="space.yaml")
    (family,) = [setting for setting in space.settings if setting.path == "student.family"]
    assert family.choices == ("convnet", "my.module:build")
    assert parse_space(space.to_yaml(), place="again.yaml").settings == space.settings
    jsonschema.validate(yaml.safe_load(text), space_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"objectives": ["val_accuracy"], "parameters": {"student.family": "my.module"}}, space_schema()
        )
