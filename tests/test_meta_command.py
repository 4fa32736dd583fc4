from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metasearch.meta.policy_network import load_policy_network
from metasearch.models.weights import load_weights, read_meta
from tests.command_line import Run

FAMILY = "digits@classes:3"
SMALL = ("--student", "mlp:width=3,depth=1", "--ways", "3", "--shots", "2", "--inner-steps", "2")
QUICK = (*SMALL, "--steps", "10", "--judged", "4")
SPACE = """
objectives: [val_accuracy, model_bytes]
policies: {student.width: 3}
parameters:
  student.family: mlp
  student.depth: 1
  student.init: {choices: [random, protonet]}
  epochs: 1
"""


def test_an_initialisation_is_made_and_its_gain_told(metasearch: Run, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    code, out, err = metasearch("meta-train", FAMILY, "--method", "protonet", *QUICK, "--to", str(file), "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["method"], found["file"]) == ("protonet", str(file))
    assert found["gain"]["episodes"] == 4
    assert found["held_out"] == ["digits@classes:3#6..9"]
    assert "step 10/10: outer loss" in err
    assert "accuracy on validation domains" in err
    load_weights(file)
    code, out, err = metasearch("meta-train", FAMILY, "--method", "protonet", *QUICK)
    assert code == 0
    assert "found in the cache" in err
    assert out.startswith("protonet on the held-out digits@classes:3#6..9: ")
    assert "from random weights" in out


def test_a_search_on_what_a_start_has_learned_from_is_told_so(metasearch: Run, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    assert metasearch("meta-train", FAMILY, "--method", "protonet", *QUICK, "--to", str(file))[0] == 0
    learned = read_meta(file)["domains"]["train"][0]
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    for task, told in ((learned, 1), ("digits@classes:3#6..9", 0)):
        common = (
            "--space",
            str(space),
            "--meta",
            str(file),
            "--teacher",
            "mlp:width=4,depth=1",
            "--warm-start",
            "none",
        )
        code, _, err = metasearch("launch", task, *common, "--dry-run", "--storage", f"sqlite:///{tmp_path}/s.db")
        assert code == 0, err
        assert err.count("has learned from all of") == told


@pytest.mark.slow
def test_the_four_steps_from_teacher_to_target_are_one_command(metasearch: Run) -> None:
    target = ("--target", "digits", "--target-max-train", "60", "--target-epochs", "2")
    code, out, err = metasearch(
        "meta-train", FAMILY, "--method", "reptile", *QUICK, "--teacher", "mlp:width=4,depth=1", *target, "--json"
    )
    assert code == 0, err
    found = json.loads(out)["target"]
    assert found["task"] == "digits"
    assert len(found["meta_learned"]) == len(found["random"]) == 3
    assert "teacher mlp:width=4,depth=1 of digits" in err


@pytest.mark.slow
def test_a_policy_is_made_and_trained_on(metasearch: Run, tmp_path: Path) -> None:
    first, on = tmp_path / "first.safetensors", tmp_path / "on.safetensors"
    small = ("--method", "policy", "--student", "mlp:width=2,depth=1", "--steps", "1", "--judged", "1", "--json")
    code, out, err = metasearch("meta-train", FAMILY, *small, "--to", str(first))
    assert code == 0, err
    gain = json.loads(out)["gain"]
    assert set(gain["losses"]) == {"policy", "constant", "cosine"}
    assert 0 <= gain["better"] <= gain["judged"] == 3
    code, out, err = metasearch("meta-train", FAMILY, *small, "--continue", str(first), "--to", str(on))
    assert code == 0, err
    assert load_policy_network(on).record["start"]


def test_bad_input_is_one_clear_line(metasearch: Run, tmp_path: Path) -> None:
    holding_code = tmp_path / "code.pt"
    torch.save({}, holding_code)
    for arguments, message in (
        (("digits", *QUICK), "family digits: needs at least two tasks, got ['digits']"),
        ((FAMILY, "--method", "hypernet"), "(did you mean hypernetwork?), got 'hypernet'"),
        ((FAMILY, *QUICK, "--ways", "9"), "has 3 classes; must be at most that, got 9"),
        ((FAMILY, *QUICK, "--shots", "999"), "shots and queries together must be at most that"),
        ((FAMILY, *QUICK, "--method", "maml", "--continue", str(holding_code)), "must be a weights file"),
        ((FAMILY, "--method", "policy", "--continue", str(holding_code)), "must be a weights file"),
        ((FAMILY, "--method", "policy", "--target", "digits"), "--target: is for initialisations"),
        ((FAMILY, "--steps", "0"), "--steps: must be at least 1, got 0"),
        ((FAMILY, *QUICK, "--student", "mlp"), "--student: must look like convnet:width=16,depth=4, got 'mlp'"),
    ):
        code, out, err = metasearch("meta-train", *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("metasearch: ")
        assert err.count("\n") == 1
        assert message in err


def test_an_inner_loop_that_diverges_is_one_clear_line(metasearch: Run) -> None:
    arguments = ("--method", "maml", *SMALL, "--inner-lr", "1e30", "--steps", "30")
    code, out, err = metasearch("meta-train", FAMILY, *arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("metasearch: diverged: the gradient was not finite in 20 steps in a row")


def test_its_help_needs_no_torch(metasearch: Run) -> None:
    code, out, _ = metasearch("meta-train", "--help")
    assert code == 0
    assert "FAMILY" in out
