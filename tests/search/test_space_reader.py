"""What a search space may not say, each with the exact message: place, rule and value."""

from __future__ import annotations

import pytest

from metasearch.errors import InputError
from metasearch.search.space import Space, parse_space

PLACE = "search_spaces/small.yaml"


def space_of(body: str) -> Space:
    return parse_space("objectives: [val_accuracy]\n" + body, place=PLACE)


BAD_BODIES = [
    ("polices: {}", "polices: is no key of a search space (did you mean policies?)"),
    ("on: 1", "True: is no key of a search space (known: name, objectives, constraints, policies, parameters)"),
    ("name: 3", "name: must be a text, got 3"),
    ("policies: 3", "policies: must be a mapping, got 3"),
    ("parameters: [epochs]", "parameters: must be a mapping, got ['epochs']"),
    ("policies: {temprature: 4}", "policies.temprature: is no policy (did you mean temperature?)"),
    ("parameters: {epoch: 4}", "parameters.epoch: is no parameter (did you mean epochs?)"),
    ("constraints: model_bytes <= 1", "constraints: must be a list, got model_bytes <= 1"),
    ("constraints: [3]", "constraints[0]: must be a text, got 3"),
    ("constraints: [bytes <= 1]", "constraints[0]: is no metric (did you mean model_bytes?), got 'bytes'"),
    ("constraints: [macs ~ 1]", "constraints[0]: must use one of <= >= < >, got '~'"),
    ("constraints: [model_bytes <= 1KiB]", "constraints[0]: has an unknown unit (did you mean kB?), got 'KiB'"),
]

BAD_PARAMETERS = [
    (
        "student.family: convent",
        "student.family: must be one of convnet, mlp, resnet, mobilenet or package.module:function "
        "(did you mean convnet?), got 'convent'",
    ),
    (
        "student.family: {low: 1, high: 2}",
        "student.family: must be a plain value or choices: it is no number and has no range",
    ),
    ("epochs:", "epochs: has no value"),
    ("epochs: ten", "epochs: must be a number, got 'ten'"),
    ("epochs: '10'", "epochs: must be a number, got '10'"),
    ("epochs: 10.0", "epochs: must be a whole number, got 10.0"),
    ("epochs: true", "epochs: must be a number, got True"),
    ("epochs: 0", "epochs: must be in [1, 1000], got 0"),
    ("epochs: [3]", "epochs: must be a number, got [3]"),
    ("alpha: 1.5", "alpha: must be in [0, 1], got 1.5"),
    ("alpha: {low: 0, high: 1.5}", "alpha.high: must be in [0, 1], got 1.5"),
    ("alpha: .nan", "alpha: must be a finite number, got nan"),
    ("momentum: 1", "momentum: must be in [0, 1), got 1"),
    ("fine_tune_scale: 0", "fine_tune_scale: must be in (0, 1], got 0"),
    ("augment: 1", "augment: must be true or false, got 1"),
    ("augment: 'on'", "augment: must be true or false, got 'on'"),
    (
        "quantize: no",
        "quantize: must be one of none, int8 (YAML reads a bare yes, no, on or off as a bool), got False",
    ),
    ("quantize: {choices: []}", "quantize.choices: must not be empty"),
    ("quantize: {choices: int8}", "quantize.choices: must be a list, got 'int8'"),
    ("quantize: {choices: [int8, int8]}", "quantize.choices[1]: is given twice, got 'int8'"),
    ("alpha: {choices: [1, 1.0]}", "alpha.choices[1]: is given twice, got 1.0"),
    ("alpha: {choices: [1], low: 0}", "alpha.low: cannot stand beside choices"),
    ("alpha: {low: 0}", "alpha.high: is required in a range"),
    ("alpha: {}", "alpha.low: is required in a range"),
    ("alpha: {low: 0, hihg: 1}", "alpha.hihg: is no key of a range or of choices (did you mean high?)"),
    ("alpha: {low: 0.5, high: 0.5}", "alpha.low: must be below high, got low=0.5, high=0.5"),
    ("alpha: {low: 0, high: 1, log: true}", "alpha.low: must be above 0 where log is true, got 0.0"),
    ("alpha: {low: 0, high: 1, log: 1}", "alpha.log: must be true or false, got 1"),
    ("alpha: {low: 0.1, high: 1, log: true, step: 0.1}", "alpha.step: cannot be combined with log, got 0.1"),
    ("alpha: {low: 0, high: 1, step: 0.3}", "alpha.step: must divide high - low = 1, got 0.3"),
    ("alpha: {low: 0, high: 1, step: 1e-30}", "alpha.step: must leave at most a million values, got 1e-30"),
    ("alpha: {low: 0, high: 1, step: 0}", "alpha.step: must be above 0, got 0.0"),
    ("alpha: {low: 0, high: 1, step: -1}", "alpha.step: must be above 0, got -1.0"),
    ("student.depth: {low: 2, high: 7, step: 1.5}", "student.depth.step: must be a whole number, got 1.5"),
    ("student.depth: {low: 2.0, high: 7}", "student.depth.low: must be a whole number, got 2.0"),
]

BAD_CONDITIONS = [
    ("{when: sgd}", "must name a parameter and its values, such as {optimizer: sgd}, got 'sgd'", ""),
    ("{when: {}}", "must name a parameter and its values, such as {optimizer: sgd}, got {}", ""),
    ("{when: {optimizer: []}}", "must not be empty", ".optimizer"),
    ("{when: {optimiser: sgd}}", "is no parameter of this space (did you mean optimizer?)", ".optimiser"),
    ("{when: {optimizer: adam}}", "must be among the choices sgd, adamw, got 'adam'", ".optimizer"),
    ("{when: {batch_size: true}}", "must be among the choices 1, 2, got True", ".batch_size"),
    ("{when: {alpha: 1}}", "must be a parameter with choices, and alpha is a range", ".alpha"),
    ("{when: {epochs: 10}}", "must be a parameter with choices, and epochs is fixed at 10", ".epochs"),
]

BAD_POLICIES = [
    ("temperature: {low: 8, high: 4}", "temperature.low: must be below high, got low=8, high=4"),
    ("temperature: 0", "temperature: must be in [0.1, 100], got 0"),
    ("temperature: hot", "temperature: must be a number, got 'hot'"),
    ("learning_rate: 0", "learning_rate: must be above 0, got 0"),
    ("learning_rate: {low: 0, high: 1}", "learning_rate.low: must be above 0, got 0"),
    ("student.width: 2.5", "student.width: must be a whole number, got 2.5"),
    ("student.width: {low: 4, high: 32, step: 5}", "student.width.step: must divide high - low = 28, got 5.0"),
    ("pruning_ratio: 0.99", "pruning_ratio: must be in [0, 0.95], got 0.99"),
    (
        "temperature: {low: 1, high: 2, when: {optimizer: sgd}}",
        "temperature.when: is not possible: a policy is always active",
    ),
    ("temperature: {peak: 3}", "temperature.kind: is required beside peak"),
    (
        "temperature: {kind: cosin, start: 3}",
        "temperature.kind: must be one of constant, linear, cosine, one_cycle, cubic, network "
        "(did you mean cosine?), got 'cosin'",
    ),
    (
        "temperature: {kind: cosine, start: 3}",
        "temperature.end: is always required by kind cosine: its default 0 is not in [0.1, 100]",
    ),
    ("temperature: {kind: linear, start: 3}", "temperature.end: is always required by kind linear"),
    ("temperature: {kind: linear, start: 3, end: 2, peak: 4}", "temperature.peak: is no parameter of kind linear"),
    (
        "temperature: {kind: linear, start: 3, end: 2, pek: 4}",
        "temperature.pek: is no parameter of a policy (did you mean peak?)",
    ),
    (
        "temperature: {kind: one_cycle, peak: 4}",
        "temperature.end_factor: times peak must be in [0.1, 100], got 1.6e-05",
    ),
    ("learning_rate: {kind: one_cycle, peak: 4, warmup: 1}", "learning_rate.warmup: must be in (0, 1), got 1"),
    (
        "pruning_ratio: {kind: cubic, final: 0.5, begin: {low: 0, high: 0.6}, end: 0.6}",
        "pruning_ratio.begin: must be below every end, got begin=0.6, end=0.6",
    ),
    (
        "learning_rate: {kind: {choices: [one_cycle, cosine]}, peak: 1}",
        "learning_rate.start: is always required by kind cosine",
    ),
    (
        "learning_rate: {kind: {choices: [cosine, linear]}, end: 0, "
        "start: {low: 1, high: 2, when: {learning_rate.kind: cosine}}}",
        "learning_rate.start: is always required by kind linear",
    ),
    (
        "learning_rate: {kind: cosine, start: {low: 1, high: 2, when: {optimizer: sgd}}}",
        "learning_rate.start: is always required by kind cosine",
    ),
    (
        "learning_rate: {kind: {choices: [cosine], when: {optimizer: sgd}}, start: 1}",
        "learning_rate.kind.when: is not possible: a policy is always active",
    ),
    (
        "learning_rate: {kind: {choices: [cosine, one_cycle]}, start: 1, "
        "peak: {low: 1, high: 2, when: {learning_rate.kind: cosine}}}",
        "learning_rate.peak.when.learning_rate.kind: is not possible: peak is no parameter of kind cosine",
    ),
    (
        "pruning_ratio: {kind: {choices: [linear, cubic]}, start: 0, final: 0.5, end: 0.5}",
        "pruning_ratio.end.when: is required: end means different things for the kinds linear and cubic",
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_bad_top_level_is_refused_with_place_rule_and_value(body: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(body)
    assert str(caught.value) == f"{PLACE}: {message}"


@pytest.mark.parametrize(("body", "message"), BAD_PARAMETERS)
def test_bad_parameter_is_refused_with_place_rule_and_value(body: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(f"parameters:\n  {body}")
    assert str(caught.value) == f"{PLACE}: parameters.{message}"


@pytest.mark.parametrize(("body", "message"), BAD_POLICIES)
def test_bad_policy_is_refused_with_place_rule_and_value(body: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(f"policies:\n  {body}")
    assert str(caught.value) == f"{PLACE}: policies.{message}"


@pytest.mark.parametrize(("condition", "message", "where"), BAD_CONDITIONS)
def test_bad_condition_is_refused_with_place_rule_and_value(condition: str, message: str, where: str) -> None:
    body = f"{{low: 0.8, high: 0.9, {condition[1:-1]}}}"
    with pytest.raises(InputError) as caught:
        space_of(
            f"parameters: {{momentum: {body}, optimizer: {{choices: [sgd, adamw]}}, batch_size: {{choices: [1, 2]}}, "
            "alpha: {low: 0, high: 1}}"
        )
    assert str(caught.value) == f"{PLACE}: parameters.momentum.when{where}: {message}"


def test_conditions_in_a_cycle_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        space_of(
            "parameters: {quantize: {choices: [none, int8], when: {optimizer: sgd}},"
            " optimizer: {choices: [sgd, adamw], when: {quantize: int8}}}"
        )
    message = "parameters.optimizer.when: forms a cycle: optimizer -> quantize -> optimizer"
    assert str(caught.value) == f"{PLACE}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "small.yaml: is empty"),
        ("# only a comment\n", "small.yaml: is empty"),
        (
            "- 1",
            "small.yaml: must be a mapping with the keys name, objectives, constraints, policies, parameters, got [1]",
        ),
        ("name: x", "small.yaml: objectives: is required: a list of metrics"),
        ("objectives: val_accuracy", "small.yaml: objectives: must be a list, got 'val_accuracy'"),
        (
            "objectives: [val_accurcy]",
            "small.yaml: objectives[0]: is no metric (did you mean val_accuracy?), got 'val_accurcy'",
        ),
        (
            "name: x\npolicies:\n\t- 1",
            "small.yaml: line 3, column 1: is not valid YAML: found character '\\t' that cannot start any token",
        ),
        (
            "name: [1",
            "small.yaml: line 1, column 9: is not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("name: a\n---\nname: b", "small.yaml: line 2, column 1: is not valid YAML: but found another document"),
        (
            "name: a\nx: \x01",
            "small.yaml: line 2: is not valid YAML: special characters are not allowed",
        ),
        ("name: 2020-13-45", "small.yaml: is not valid YAML: month must be in 1..12"),
        (
            "name: !!python/object:os.system x",
            "small.yaml: line 1, column 7: is not valid YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("[" * 5000, "small.yaml: is nested too deeply"),
        (
            "name: a\nparameters:\n  epochs: 3\n  epochs: 4",
            "small.yaml: parameters.epochs: is given twice, on lines 3 and 4",
        ),
        ("name: a\nname: b", "small.yaml: name: is given twice, on lines 1 and 2"),
    ],
)
def test_unreadable_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_space(text, place="small.yaml")
    assert str(caught.value) == message
