"""A study is not gone on with as another one, nor with what computes other numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metasearch.errors import InputError
from metasearch.search import differences as module
from metasearch.search.differences import differences, study_versions, version_differences
from metasearch.search.launch import run_study
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import load_space, parse_space
from metasearch.search.store import create_study
from metasearch.tasks import TaskSource
from tests.fakes import describe, new_storage


def test_the_same_description_differs_in_nothing(tmp_path: Path) -> None:
    assert differences(describe(tmp_path), describe(tmp_path, trials=99, created="later")) == []


def test_each_difference_is_told_with_both_values(tmp_path: Path) -> None:
    old = describe(tmp_path)
    space = parse_space(old.space.replace("epochs: 12", "epochs: 13"), place="here")
    assert space.digest != old.space_digest
    new = describe(tmp_path, task={"text": "usps"}, seed=3, space=space.text, space_digest=space.digest)
    assert differences(old, new) == ["task.text digits, now usps", "seed 0, now 3", "epochs 12, now 13"]


def test_a_launch_by_the_name_of_another_study_is_refused_with_what_differs(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    options = Options(
        TaskSource("digits"), load_space("quick"), 4, "s", sampler="random", artefacts=str(tmp_path / "a")
    )
    prepare_study(storage, options)
    with pytest.raises(InputError, match="a study of this name exists: `metasearch resume s`"):
        prepare_study(storage, options)
    with pytest.raises(InputError, match=r"searches something else \(seed 0, now 5; sampler random, now tpe\)"):
        prepare_study(storage, replace(options, seed=5, sampler="tpe"))


def test_versions_that_change_what_a_trial_computes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = study_versions()
    assert version_differences(here) == []
    assert version_differences(here | {"optuna": "4.0", "ray": "2.52.0"}) == []
    assert version_differences(here | {"torch": "2.11.0"}) == [f"torch 2.11.0, here {here['torch']}"]
    monkeypatch.setattr(module, "study_versions", lambda: here | {"torch": "2.11.0+cpu", "python": "3.11.9"})
    assert version_differences({"torch": "2.11.0+cu130", "python": "3.11.2"}) == []
    assert version_differences({"python": "3.12.9"}) == ["python 3.12.9, here 3.11.9"]


def test_a_study_of_another_torch_is_not_resumed_unasked(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    create_study(storage, "s", describe(tmp_path, versions={"torch": "1.13.1"}))
    with pytest.raises(InputError, match=r"study s: was made by other versions.*--accept-versions.*torch 1\.13\.1"):
        run_study(storage, "s", resources=Resources())
