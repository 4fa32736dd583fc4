from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasearch.configuration import Configuration
from metasearch.errors import InputError, NotFoundError
from metasearch.initial import meta_files
from metasearch.meta.policy_network import (
    FEATURES,
    NAMES,
    PolicyNetwork,
    load_policy_network,
    policy_features,
    save_policy_network,
    shapes,
)
from metasearch.models.weights import write_tensors
from metasearch.pipeline import run_pipeline
from metasearch.policies import Policy, cosine
from metasearch.search.possible import possible_with_policy_network
from metasearch.search.space import parse_space
from metasearch.tasks import TaskSource, load_task

OUTPUTS = ("learning_rate", "temperature")
SOME = {"log_examples": 5.0, "log_classes": 2.0, "pixel_std": 0.3, "log_steps": 4.0} | dict.fromkeys(
    ("linear_probe_accuracy", "one_nn_accuracy"), 0.8
)
CONFIG: dict[str, Any] = {
    "student.family": "mlp",
    "student.width": 2,
    "student.depth": 1,
    "epochs": 2,
    "fine_tune_epochs": 0,
    "alpha": 0.0,
    "quantize": "none",
}


def network(seed: int | None = None, *, rate: float = 0.01, outputs: tuple[str, ...] = OUTPUTS) -> PolicyNetwork:
    """Return a network that says a constant rate and temperature 4, or one of random weights."""
    sizes = shapes(len(FEATURES), 4, len(outputs))
    weights = {name: np.zeros(sizes[name]) for name in NAMES}
    weights["b"] = np.log([{"learning_rate": rate, "temperature": 4.0}[name] for name in outputs])
    if seed is not None:
        rng = np.random.default_rng(seed)
        weights = {name: rng.normal(size=sizes[name]) for name in NAMES}
    count = len(FEATURES)
    return PolicyNetwork(weights, FEATURES, np.zeros(count), np.ones(count), outputs, "adamw", {"family": "none"})


@given(st.floats(0, 1), st.integers(0, 20))
@settings(max_examples=30)
def test_a_policy_is_the_formula_of_its_network(progress: float, seed: int) -> None:
    found = network(seed)
    w = found.weights
    z = np.clip([SOME[name] for name in FEATURES], -2, 2)
    falling = (1 + math.cos(math.pi * progress)) / 2 + 1e-3
    x = np.concatenate([z, [progress, math.log(falling), math.log(min(1, (progress + 0.02) / 0.2))]])
    expected = w["b"] + w["S"] @ x + w["V"] @ np.tanh(w["U"] @ x + w["a"])
    limits = ((1e-6, 10.0), (0.5, 20.0))
    for output, log, (low, high) in zip(OUTPUTS, expected, limits, strict=True):
        assert found.policy_for(SOME, output)(progress) == pytest.approx(min(max(math.exp(log), low), high))


def test_one_weight_makes_the_constant_a_cosine() -> None:
    found = network(rate=0.02)
    found.weights["S"][0, len(FEATURES) + 1] = 1.0
    rate = found.policy_for(SOME, "learning_rate")
    assert [rate(p / 10) for p in range(11)] == pytest.approx([cosine(p / 10, start=0.02) for p in range(11)], abs=3e-5)


def test_a_task_beyond_what_was_seen_is_taken_as_the_last_that_was() -> None:
    found = network(1)
    far, farther = ({**SOME, "log_steps": 4.0 + more} for more in (10.0, 100.0))
    assert found.policy_for(far, "learning_rate")(0.3) == found.policy_for(farther, "learning_rate")(0.3)


def test_a_feature_in_which_the_family_did_not_differ_is_not_read() -> None:
    found = network(1)
    found.spread[FEATURES.index("log_steps")] = 0.0
    other = {**SOME, "log_steps": 7.0}
    assert found.policy_for(SOME, "learning_rate")(0.3) == found.policy_for(other, "learning_rate")(0.3)


def test_a_file_gives_the_same_policy_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    save_policy_network(network(3), path)
    again = load_policy_network(path)
    for output in OUTPUTS:
        for progress in (0.0, 0.4, 0.99):
            assert again.policy_for(SOME, output)(progress) == network(3).policy_for(SOME, output)(progress)
    assert (again.optimizer, again.outputs, again.features) == ("adamw", OUTPUTS, FEATURES)
    assert again.record["family"] == "none"
    assert meta_files([path]) == {"policy": path}


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such weights file"):
        load_policy_network(tmp_path / "none")
    holding_code = tmp_path / "code.pt"
    torch.save({"b": torch.zeros(2)}, holding_code)
    with pytest.raises(InputError, match="must be a weights file written by metasearch"):
        load_policy_network(holding_code)
    other = tmp_path / "other.safetensors"
    write_tensors({"b": torch.zeros(2)}, other, metadata={"meta": '{"method": "maml"}'})
    with pytest.raises(InputError, match=r"must hold a policy network, made by .*, got 'maml'"):
        load_policy_network(other)
    weights = dict(network().weights) | {"V": np.zeros((2, 7))}
    save_policy_network(replace(network(), weights=weights), other)
    with pytest.raises(InputError, match=r"V: must be finite and of shape \(2, 4\), got shape=\(2, 7\)"):
        load_policy_network(other)
    save_policy_network(network(rate=math.nan), other)
    with pytest.raises(InputError, match="b: must be finite"):
        load_policy_network(other)


@pytest.fixture
def few_digits() -> Any:
    return load_task(TaskSource("digits", max_train=100))


def saved(found: PolicyNetwork, folder: Path) -> dict[str, Path]:
    save_policy_network(found, folder / "policy.safetensors")
    return {"policy": folder / "policy.safetensors"}


def test_a_trial_under_a_network_that_says_a_constant_is_one_under_the_constant(
    tmp_path: Path, few_digits: Any
) -> None:
    learned = {**CONFIG, "learning_rate.kind": "network", "temperature.kind": "network"}
    under_network = run_pipeline(few_digits, learned, initial=saved(network(rate=0.02), tmp_path))
    under_constant = run_pipeline(few_digits, {**CONFIG, "learning_rate": 0.02, "temperature": 4.0})
    for one, other in zip(under_network.curve, under_constant.curve, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.learning_rate == pytest.approx(0.02)
        assert one.temperature == pytest.approx(4.0)


def test_scale_is_a_factor_on_what_the_network_says(tmp_path: Path, few_digits: Any) -> None:
    config = {**CONFIG, "learning_rate.kind": "network", "learning_rate.scale": 0.5}
    result = run_pipeline(few_digits, config, initial=saved(network(rate=0.02), tmp_path))
    assert result.curve[-1].learning_rate == pytest.approx(0.01)


def test_the_network_is_told_the_steps_of_the_trial(tmp_path: Path, few_digits: Any) -> None:
    found = network()
    found.weights["S"][0, FEATURES.index("log_steps")] = 1.0
    config = {**CONFIG, "learning_rate.kind": "network", "batch_size": 50}
    wide = replace(found, spread=np.full(len(FEATURES), 10.0))  # so that nothing is clipped
    result = run_pipeline(few_digits, config, initial=saved(wide, tmp_path))
    steps = 2 * (len(few_digits.train) // 50)
    assert result.curve[0].learning_rate == pytest.approx(0.01 * math.exp(math.log(steps) / 10))
    assert policy_features(few_digits, steps=steps)["log_steps"] == pytest.approx(math.log(steps))


def test_without_its_file_or_for_another_optimizer_it_is_refused_in_one_line(tmp_path: Path, few_digits: Any) -> None:
    config = {**CONFIG, "learning_rate.kind": "network"}
    with pytest.raises(InputError) as refusal:
        run_pipeline(few_digits, config)
    assert str(refusal.value) == (
        "learning_rate.kind: needs a policy network: metasearch meta-train FAMILY --method policy --to FILE makes one; "
        "it is given with --meta FILE, got 'network'"
    )
    files = saved(network(outputs=("learning_rate",)), tmp_path)
    with pytest.raises(InputError, match="was trained for adamw, not sgd"):
        run_pipeline(few_digits, {**config, "optimizer": "sgd"}, initial=files)
    with pytest.raises(InputError, match=r"temperature.kind: the policy network was trained without temperature"):
        run_pipeline(few_digits, {**config, "temperature.kind": "network"}, initial=files)


def test_only_learning_rate_and_temperature_may_be_of_kind_network() -> None:
    with pytest.raises(InputError, match=r"pruning_ratio.kind: must be one of constant, linear"):
        Configuration.of({"pruning_ratio.kind": "network"})
    assert Configuration.of({"temperature.kind": "network"}).temperature == Policy(
        "network", {}, "configuration: temperature"
    )


SPACE = """
objectives: [val_accuracy]
policies:
  learning_rate:
    kind: {{choices: [{kinds}]}}
    start: {{low: 0.001, high: 0.1, log: true, when: {{learning_rate.kind: cosine}}}}
    scale: {{low: 0.5, high: 2.0, when: {{learning_rate.kind: network}}}}
parameters:
  optimizer: {{choices: [{optimizers}]}}
"""


def space_of(kinds: str = "cosine, network", optimizers: str = "adamw") -> Any:
    return parse_space(SPACE.format(kinds=kinds, optimizers=optimizers), place="space.yaml")


def kinds_left(space: Any) -> tuple[Any, ...]:
    return next(s.choices for s in space.settings if s.path == "learning_rate.kind")


def test_fixed_and_trained_policies_stand_side_by_side_in_a_space() -> None:
    space, lines = possible_with_policy_network(space_of(), network())
    assert kinds_left(space) == ("cosine", "network")
    assert lines == []
    drawn = [space.configuration(space.sample(np.random.default_rng(seed))) for seed in range(20)]
    assert {config["learning_rate.kind"] for config in drawn} == {"cosine", "network"}
    assert all(("learning_rate.scale" in c) == (c["learning_rate.kind"] == "network") for c in drawn)
    for config in drawn:
        Configuration.of(config)


def test_without_a_network_a_search_leaves_the_choice_out_and_says_so() -> None:
    space, lines = possible_with_policy_network(space_of(), None)
    assert kinds_left(space) == ("cosine",)
    assert lines == [
        "learning_rate.kind leaves out network: no policy network is given: metasearch meta-train FAMILY --method "
        "policy --to FILE makes one; it is given with --meta FILE"
    ]
    drawn = space.configuration(space.sample(np.random.default_rng(0)))
    assert drawn["learning_rate.kind"] == "cosine"


def test_a_network_for_another_optimizer_than_the_space_may_choose_is_left_out() -> None:
    space, lines = possible_with_policy_network(space_of(optimizers="adamw, sgd"), network())
    assert kinds_left(space) == ("cosine",)
    assert lines == ["learning_rate.kind leaves out network: the policy network was trained for adamw, not sgd"]


def test_a_space_that_insists_on_a_network_is_refused_without_one() -> None:
    text = "objectives: [val_accuracy]\npolicies:\n  temperature: {kind: network}\n"
    with pytest.raises(InputError, match=r"policies.temperature.kind: no policy network is given"):
        possible_with_policy_network(parse_space(text, place="space.yaml"), None)
