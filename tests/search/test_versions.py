"""Versions of the packages and of the package's own files: what differs, and what may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metasearch
from metasearch.search import versions as module
from metasearch.search.versions import installed_versions, package_digest, unlike, version_differences, versions_here

HERE = {"python": "3.11", "metasearch": "0.1.0", "torch": "2.15.0", "package": "aaaa"}


def test_versions_name_what_must_be_alike_on_all_nodes() -> None:
    here = versions_here()
    assert set(here) == {"python", "metasearch", "ray", "torch", "optuna", "package"}
    assert here == versions_here()


def test_the_package_hash_changes_with_a_file_and_not_with_its_place(tmp_path: Path) -> None:
    copy = tmp_path / "metasearch"
    shutil.copytree(Path(metasearch.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def digest() -> str:
        program = "from metasearch.search.versions import package_digest; print(package_digest())"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.check_output([sys.executable, "-c", program], env=environment, cwd=tmp_path, text=True)

    assert digest().strip() == package_digest()
    (copy / "errors.py").open("a").write("\n")
    assert digest().strip() != package_digest()


def test_a_difference_names_what_is_there_and_what_the_driver_has() -> None:
    assert unlike(HERE, HERE) == []
    assert unlike({**HERE, "torch": "2.11.0"}, HERE) == ["torch 2.11.0, the driver's 2.15.0"]
    assert unlike({**HERE, "package": "bbbb"}, HERE) == ["metasearch's files bbbb, the driver's aaaa"]
    older = {**HERE, "metasearch": "0.0.9", "package": "bbbb"}
    assert unlike(older, HERE) == ["metasearch 0.0.9, the driver's 0.1.0"]
    assert unlike({"torch": "2.15.0+cu130", "python": "3.11.2"}, {"torch": "2.15.0+cpu", "python": "3.11.9"}) == []
    assert unlike({"python": "3.11"}, {"python": "3.12.1"}) == ["python 3.11, the driver's 3.12.1"]
    assert unlike({}, {"optuna": "5"}) == ["optuna not there, the driver's 5"]


def test_versions_that_change_what_a_trial_computes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = installed_versions()
    assert version_differences(here) == version_differences({}) == []
    assert version_differences(here | {"optuna": "4.0", "ray": "2.52.0"}) == []
    assert version_differences(here | {"torch": "2.11.0"}) == [f"torch 2.11.0, here {here['torch']}"]
    monkeypatch.setattr(module, "installed_versions", lambda: here | {"torch": "2.11.0+cpu", "python": "3.11.9"})
    assert version_differences({"torch": "2.11.0+cu130", "python": "3.11.2"}) == []
    assert version_differences({"python": "3.12.9"}) == ["python 3.12.9, here 3.11.9"]
