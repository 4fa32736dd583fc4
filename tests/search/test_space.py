"""Search spaces: what the YAML means, what it may not say, and what Optuna makes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from metasearch.errors import InputError, NotFoundError
from metasearch.parameters import (
    FAMILY_NAMES,
    PARAMETERS,
    POLICIES,
    Rule,
    kind_rule,
    kinds_of,
    policy_parameter_rule,
    policy_parameters,
)
from metasearch.policies import KINDS, Policy
from metasearch.records import Config
from metasearch.resources import preset_names
from metasearch.search.space import Space, load_space, parse_space

PLACE = "search_spaces/small.yaml"
EXAMPLE = """
name: example
objectives: [val_accuracy, model_bytes]
constraints: ["model_bytes <= 100kB"]
policies:
  learning_rate:
    kind: {choices: [one_cycle, cosine]}
    peak: {low: 0.001, high: 0.1, log: true}
    start: {low: 1e-3, high: 0.1, log: true}
    end: 0
  temperature: {low: 1, high: 8}
  student.width: {low: 4, high: 32, step: 4}
  pruning_ratio: {kind: cubic, final: {low: 0.0, high: 0.7}}
parameters:
  student.family: {choices: [convnet, mlp]}
  student.depth: {low: 2, high: 5}
  batch_size: {choices: [64, 128]}
  optimizer: {choices: [sgd, adamw]}
  momentum: {low: 0.8, high: 0.95, when: {optimizer: sgd}}
  epochs: 12
  quantize: {choices: [none, int8]}
"""


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(body: str) -> Space:
    return parse_space("objectives: [val_accuracy]\n" + body, place=PLACE)


def policies_of(config: Config) -> dict[str, Policy]:
    """Return the policies of a configuration as the pipeline builds them."""
    found = {}
    for name in POLICIES:
        if name in config:
            found[name] = Policy("constant", {"value": config[name]})
        else:
            parameters = {path.removeprefix(f"{name}."): v for path, v in config.items() if path.startswith(f"{name}.")}
            if name == "student.width":
                parameters = {key: v for key, v in parameters.items() if f"student.{key}" not in PARAMETERS}
            found[name] = Policy(parameters.pop("kind"), parameters)
    return found


def check_configuration(space: Space, config: Config) -> None:
    """Assert that a configuration is complete, has only what is active, and builds policies within their range."""
    assert set(PARAMETERS) <= set(config)
    by_path = {setting.path: setting for setting in space.settings}
    assert set(config) <= set(by_path)
    for path in set(config) - set(PARAMETERS):
        assert all(config.get(target) in values for target, values in by_path[path].when)
    for name, policy in policies_of(config).items():
        low, high = policy.bounds()
        assert POLICIES[name].low <= low + 1e-9  # a policy's last value is rounded
        assert high <= POLICIES[name].high + 1e-9
    space.check_parameters(config, "config")


def test_family_names_are_those_of_the_models() -> None:
    from metasearch.models import FAMILIES

    assert tuple(FAMILIES) == FAMILY_NAMES


def test_reading_a_space_loads_neither_torch_nor_ray() -> None:
    code = "import sys, metasearch.search.space as s; s.load_space('quick'); print({'torch', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_default_keeps_its_own_rule() -> None:
    for name, rule in PARAMETERS.items():
        assert rule.check(rule.default, name) == rule.default


def test_omitted_policies_and_parameters_have_their_defaults() -> None:
    space = space_of("")
    assert space.distributions() == {}
    assert space.name == "small"
    assert space.configuration({}) == space.fixed
    assert space.fixed == {
        "student.family": "convnet",
        "student.depth": 3,
        "student.init": "random",
        "batch_size": 64,
        "optimizer": "adamw",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "alpha": 0.9,
        "epochs": 10,
        "fine_tune_epochs": 3,
        "fine_tune_scale": 0.3,
        "augment": False,
        "label_smoothing": 0.0,
        "loss": "kd",
        "logit_standardization": False,
        "feature_weight": 1.0,
        "source_weight": 0.0,
        "target_weight": 1.0,
        "pruning_importance": "l2",
        "pruning_target": "channels",
        "sparsity_threshold": 0.0,
        "quantize": "int8",
        "quantization_epochs": 2,
        "learning_rate.kind": "one_cycle",
        "learning_rate.peak": 0.01,
        "temperature": 4.0,
        "student.width": 16,
        "pruning_ratio": 0.0,
        "sparsity": 0.0,
    }


def test_ranges_and_choices_become_distributions() -> None:
    distributions = parse_space(EXAMPLE, place=PLACE).distributions()
    assert distributions == {
        "learning_rate.kind": optuna.distributions.CategoricalDistribution(("one_cycle", "cosine")),
        "learning_rate.peak": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
        "learning_rate.start": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
        "temperature": optuna.distributions.FloatDistribution(1, 8),
        "student.width": optuna.distributions.IntDistribution(4, 32, step=4),
        "pruning_ratio.final": optuna.distributions.FloatDistribution(0.0, 0.7),
        "student.family": optuna.distributions.CategoricalDistribution(("convnet", "mlp")),
        "student.depth": optuna.distributions.IntDistribution(2, 5),
        "batch_size": optuna.distributions.CategoricalDistribution((64, 128)),
        "optimizer": optuna.distributions.CategoricalDistribution(("sgd", "adamw")),
        "momentum": optuna.distributions.FloatDistribution(0.8, 0.95),
        "quantize": optuna.distributions.CategoricalDistribution(("none", "int8")),
    }


def test_policy_parameters_are_conditional_on_their_kind_by_themselves() -> None:
    written = EXAMPLE.replace("high: 0.1, log: true}\n    start", "high: 0.1, log: true, WHEN}\n    start")
    written = written.replace("WHEN", "when: {learning_rate.kind: one_cycle}")
    assert "when: {learning_rate.kind" in written
    assert parse_space(written, place=PLACE) == parse_space(EXAMPLE, place=PLACE)


def test_configuration_has_only_the_parameters_of_the_chosen_kind() -> None:
    space = parse_space(EXAMPLE, place=PLACE)
    chosen: dict[str, Any] = {
        "student.family": "mlp",
        "student.depth": 2,
        "batch_size": 64,
        "optimizer": "adamw",
        "quantize": "none",
        "learning_rate.kind": "cosine",
        "learning_rate.start": 0.01,
        "temperature": 2.5,
        "student.width": 8,
        "pruning_ratio.final": 0.5,
    }
    config = space.configuration(chosen)
    assert config["learning_rate.end"] == 0.0
    assert "learning_rate.peak" not in config
    assert config["momentum"] == 0.9
    assert config["epochs"] == 12
    assert {path: config[path] for path in chosen} == chosen
    with pytest.raises(InputError, match=re.escape("temperature: is missing from the chosen values")):
        space.configuration({path: value for path, value in chosen.items() if path != "temperature"})


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("sampler", ["random", "tpe", "tpe_group", "nsga2"])
def test_presets_give_whole_configurations_under_optunas_samplers(preset: str, sampler: str) -> None:
    space = load_space(preset)
    samplers: dict[str, optuna.samplers.BaseSampler] = {
        "random": optuna.samplers.RandomSampler(seed=1),
        "tpe": optuna.samplers.TPESampler(seed=1, n_startup_trials=5),
        "tpe_group": optuna.samplers.TPESampler(seed=1, n_startup_trials=5, multivariate=True, group=True),
        "nsga2": optuna.samplers.NSGAIISampler(seed=1, population_size=10),
    }
    study = optuna.create_study(directions=[o.direction for o in space.objectives], sampler=samplers[sampler])
    for number in range(15):
        trial = study.ask()
        config = space.suggest(trial)
        check_configuration(space, config)
        assert space.configuration(trial.params) == config
        assert trial.distributions.items() <= space.distributions().items()
        assert ("momentum" in trial.params) == ("momentum" in space.distributions() and config["optimizer"] == "sgd")
        study.tell(trial, [float(number % 7) for _ in space.objectives])


@pytest.mark.parametrize("preset", preset_names())
def test_presets_read_back_from_their_own_yaml(preset: str) -> None:
    space = load_space(preset)
    assert space.name == preset
    again = parse_space(space.to_yaml(), place=preset)
    assert again == space
    assert again.digest == space.digest


def test_presets_are_the_five_that_ship() -> None:
    assert preset_names() == ["distill", "distill_compress", "few_shot", "quick", "tiny_device"]


def test_no_pruning_is_well_within_reach_where_pruning_is_searched() -> None:
    for preset in ("quick", "distill_compress", "tiny_device"):
        space, rng = load_space(preset), np.random.default_rng(0)
        drawn = [space.sample(rng).get("pruning_ratio.final", 0.0) for _ in range(200)]
        assert drawn.count(0.0) > 10


def test_a_given_trial_number_samples_what_its_generator_says() -> None:
    space = parse_space(EXAMPLE, place=PLACE)
    assert space.sample(np.random.default_rng(3)) == space.sample(np.random.default_rng(3))


def test_digest_ignores_comments_order_name_and_spelling_of_numbers() -> None:
    lines = [
        "parameters: {epochs: 12, alpha: {low: 0, high: 1}, weight_decay: {low: 1e-6, high: 1e-2, log: true}}",
        "policies: {temperature: 4, student.width: {low: 2, high: 8}}",
    ]
    other = [
        "policies: {student.width: {high: 8, low: 2}, temperature: 4.0}  # a comment",
        "parameters: {weight_decay: {low: 1.0e-06, high: 0.01, log: true}, alpha: {low: 0.0, high: 1.0}, epochs: 12}",
        "name: other",
    ]
    assert space_of("\n".join(lines)).digest == space_of("\n".join(other)).digest
    assert space_of("\n".join(lines)).digest != space_of("\n".join(other).replace("12", "13")).digest
    assert space_of("# said\n").text == "objectives: [val_accuracy]\n# said\n"


def test_conditions_come_before_what_depends_on_them() -> None:
    space = space_of(
        """
parameters:
  student.family: {choices: [convnet, mlp], when: {quantize: int8}}
  alpha: {low: 0, high: 1, when: {student.family: mlp, optimizer: [sgd, adamw]}}
  optimizer: {choices: [sgd, adamw], when: {student.family: [mlp]}}
  quantize: {choices: [none, int8]}
"""
    )
    order = [setting.path for setting in space.settings]
    assert sorted(["quantize", "student.family", "optimizer", "alpha"], key=order.index) == [
        "quantize",
        "student.family",
        "optimizer",
        "alpha",
    ]
    assert space.configuration({"quantize": "none"})["student.family"] == "convnet"
    rng = np.random.default_rng(0)
    for _ in range(50):
        check_configuration(space, space.configuration(space.sample(rng)))


def test_numbers_that_yaml_1_1_calls_texts_are_numbers() -> None:
    space = space_of(
        "parameters: {weight_decay: 1e-3, alpha: 5E-1}\npolicies: {learning_rate: {low: 1e-3, high: 1e-1}}"
    )
    assert (space.fixed["weight_decay"], space.fixed["alpha"]) == (0.001, 0.5)
    assert space.distributions()["learning_rate"] == optuna.distributions.FloatDistribution(0.001, 0.1)


def test_merge_keys_and_aliases_work() -> None:
    space = space_of("policies:\n  temperature: &range {low: 1, high: 8}\n  learning_rate: {<<: *range, high: 4}")
    assert space.distributions()["learning_rate"] == optuna.distributions.FloatDistribution(1, 4)


def test_a_file_is_named_as_the_user_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "objectives: [macs]\npolicies: {temperature: {low: 8, high: 4}}", encoding="utf-8"
    )
    with pytest.raises(InputError) as caught:
        load_space("./mine.yaml")
    assert str(caught.value) == "./mine.yaml: policies.temperature.low: must be below high, got low=8, high=4"
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match=re.escape("mine.yaml: must be text in UTF-8")):
        load_space("mine.yaml")


def test_a_space_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFoundError) as caught:
        load_space("quik")
    assert str(caught.value) == "quik: is neither a file nor a preset (did you mean quick?)"
    with pytest.raises(NotFoundError) as caught:
        load_space("none/such.yaml")
    assert str(caught.value) == (
        "none/such.yaml: is neither a file nor a preset "
        "(known: distill, distill_compress, few_shot, quick, tiny_device)"
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temprature": 4}, "temprature: is no parameter of this space (did you mean temperature?)"),
        ({"temperature": 9}, "temperature: must be in [1, 8] in this space, got 9.0"),
        ({"temperature": "4"}, "temperature: must be a number, got '4'"),
        ({"student.width": 6}, "student.width: must be 4 plus a multiple of 4, got 6"),
        ({"student.width": 8.0}, "student.width: must be a whole number, got 8.0"),
        ({"batch_size": 32}, "batch_size: must be one of 64, 128 in this space, got 32"),
        ({"epochs": 13}, "epochs: is fixed at 12 in this space, got 13"),
        ({"pruning_ratio.final": 0.99}, "pruning_ratio.final: must be in [0, 0.95], got 0.99"),
        (
            {"learning_rate.kind": "cosine", "learning_rate.peak": 0.01},
            "learning_rate.peak: is there only where learning_rate.kind is one_cycle, got 0.01",
        ),
        ({"optimizer": "adamw", "momentum": 0.85}, "momentum: is there only where optimizer is sgd, got 0.85"),
        (
            {"learning_rate.kind": "linear"},
            "learning_rate.kind: must be one of one_cycle, cosine in this space, got 'linear'",
        ),
    ],
)
def test_enqueued_configuration_that_does_not_fit_is_refused(params: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_space(EXAMPLE, place=PLACE).check_parameters(params, "queue.json")
    assert str(caught.value) == f"queue.json: {message}"


def test_enqueued_configuration_may_be_partial_or_whole() -> None:
    space = parse_space(EXAMPLE, place=PLACE)
    part = {"temperature": 4, "momentum": 0.85, "learning_rate.kind": "one_cycle", "learning_rate.peak": 0.1}
    whole = space.configuration(space.sample(np.random.default_rng(0)))
    for params in ({}, part, whole):
        space.check_parameters(params, "queue.json")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.enqueue_trial(params)
        config = space.configuration(space.suggest(study.ask()))
        check_configuration(space, config)
        assert config | params == config


def numbers(rule: Rule) -> st.SearchStrategy[Any]:
    """Return values that a rule permits."""
    if rule.type is int:
        return st.integers(int(rule.low), int(rule.high))
    return st.floats(
        rule.low, min(rule.high, 10.0), exclude_min=rule.open_low, exclude_max=rule.open_high, allow_subnormal=False
    )


def plain_values(rule: Rule) -> st.SearchStrategy[Any]:
    if rule.type is bool:
        return st.booleans()
    return st.sampled_from(rule.choices) if rule.type is str else numbers(rule)


@st.composite
def domains(draw: st.DrawFn, rule: Rule) -> Any:
    """Return a plain value, choices or a range, as the YAML has it."""
    forms = ["plain", "choices"] + (["range"] if rule.type in (int, float) else [])
    form = draw(st.sampled_from(forms))
    if form == "plain":
        return draw(plain_values(rule))
    if form == "choices":
        return {"choices": draw(st.lists(plain_values(rule), min_size=1, max_size=4, unique=True))}
    low, high = sorted(draw(st.lists(numbers(rule), min_size=2, max_size=2, unique=True)))
    extra: dict[str, Any] = {}
    if low > 0 and draw(st.booleans()):
        extra = {"log": True}
    elif rule.type is int and draw(st.booleans()):
        extra = {"step": draw(st.sampled_from([s for s in range(1, high - low + 1) if (high - low) % s == 0]))}
    return {"low": low, "high": high} | extra


@st.composite
def long_policies(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Return a policy in long form, of kinds whose parameters cannot contradict one another."""
    safe_kinds = (
        "constant",
        "linear",
        "cosine",
        *(("one_cycle",) if name in ("learning_rate", "pruning_ratio") else ()),
    )
    kinds = draw(st.lists(st.sampled_from(safe_kinds), min_size=1, unique=True))
    parameters = {
        parameter: draw(domains(policy_parameter_rule(name, kind, parameter)))
        for kind in kinds
        for parameter in policy_parameters(kind)
    }
    return {"kind": kinds[0] if len(kinds) == 1 and draw(st.booleans()) else {"choices": kinds}, **parameters}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Return the YAML document of a space, with a condition where one is possible."""
    parameters = {name: draw(domains(rule)) for name, rule in PARAMETERS.items() if draw(st.booleans())}
    policies = {
        name: draw(st.one_of(domains(rule), long_policies(name)))
        for name, rule in POLICIES.items()
        if draw(st.booleans())
    }
    if "mlp" in str(parameters.get("student.family")) and "at" in str(parameters.get("loss")):
        del parameters["loss"]  # the reader refuses that pair
    targets = [name for name, raw in parameters.items() if isinstance(raw, dict) and "choices" in raw]
    if targets:
        target = draw(st.sampled_from(targets))
        for name, raw in parameters.items():
            if isinstance(raw, dict) and name != target and draw(st.booleans()):
                raw["when"] = {
                    target: draw(st.sampled_from([raw_target := parameters[target]["choices"], raw_target[0]]))
                }
    return {
        "name": draw(st.text(min_size=1, alphabet="abc é_-.")).strip() or "x",
        "objectives": draw(st.permutations(["val_accuracy", "macs", "model_bytes"])),
        "constraints": draw(st.sampled_from([[], ["model_bytes <= 25kB"], ["macs<5M", "val_accuracy >= 90%"]])),
        "policies": policies,
        "parameters": parameters,
    }


@given(documents(), st.integers(0, 2**32))
@settings(max_examples=30)
def test_space_survives_yaml_and_gives_whole_configurations(document: dict[str, Any], seed: int) -> None:
    space = parse_space(yaml.safe_dump(document), place=PLACE)
    again = parse_space(space.to_yaml(), place=PLACE)
    assert again == space
    assert again.digest == space.digest
    chosen = space.sample(np.random.default_rng(seed))
    assert set(chosen) <= set(space.distributions())
    check_configuration(space, space.configuration(chosen))


@given(st.sampled_from(sorted(POLICIES)), st.data())
def test_a_policy_that_the_reader_accepts_constructs(name: str, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(kinds_of(name)))
    drawn = {p: data.draw(domains(policy_parameter_rule(name, kind, p))) for p in policy_parameters(kind)}
    try:
        space = space_of(yaml.safe_dump({"policies": {name: {"kind": kind, **drawn}}}))
    except InputError:
        reject()
    config = space.configuration(space.sample(np.random.default_rng(0)))
    check_configuration(space, config)
    assert config[f"{name}.kind"] == kind


def test_only_a_learning_rate_may_adapt_by_hypergradient() -> None:
    assert kind_rule("learning_rate").choices == tuple(KINDS)
    assert set(KINDS) - set(kind_rule("temperature").choices) == {"hypergradient"}
