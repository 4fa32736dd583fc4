from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from metasearch.doctor_command import _home, _versions, findings
from metasearch.findings import FAILURE, OK, WARNING, Finding
from tests.command_line import Run


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {each.what: each for each in found}


def examined(**options: Any) -> dict[str, Finding]:
    return by_name(list(findings(**{"data_root": None, "storage": None, **options})))


def test_a_machine_that_runs_the_tests_can_run_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("metasearch.doctor_command.LEAST_FREE_BYTES", 0)  # the disk of the tests may be nearly full
    found = examined(data_root=str(tmp_path))
    assert {each.level for each in found.values()} == {OK}
    assert "torch " in found["packages"].text
    assert found["python"].text == sys.version.split()[0]
    assert "not there yet" in found["storage"].text
    assert list((tmp_path / "home").iterdir()) == []  # nothing is left behind


def test_a_package_that_is_missing_or_too_old_is_a_failure_with_its_remedy() -> None:
    wanted = ["torch>=2", "optuna>=99", "no-such-package>=1", 'psycopg>=99; extra == "postgresql"']
    found = by_name(_versions(lambda: wanted))
    assert found["optuna"] == Finding(
        "optuna", FAILURE, f"{optuna.__version__}, needs optuna>=99", 'pip install "optuna>=99"'
    )
    assert found["no-such-package"].text == "not installed, needs no-such-package>=1"
    assert "psycopg" not in found
    assert found["packages"].text.startswith("torch 2")


def test_a_home_folder_below_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = _home(tmp_path / "file" / "home")
    assert found.level == FAILURE
    assert found.remedy == "METASEARCH_HOME names another folder"


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metasearch.doctor_command.LEAST_FREE_BYTES", 10**18)
    (found,) = _home(tmp_path)
    assert found.level == WARNING
    assert "metasearch gc" in found.remedy


def test_a_data_root_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    found = examined(data_root=str(tmp_path / "nowhere"))["data root"]
    assert found.level == WARNING
    assert "METASEARCH_DATA" in found.remedy


def test_the_storage_is_opened_and_its_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    optuna.create_study(storage=url, study_name="one")
    assert examined(storage=url)["storage"].text == f"{url}: 1 studies"
    (tmp_path / "text.db").write_text("no database, but long enough to be read as one" * 40)
    assert examined(storage=f"sqlite:///{tmp_path / 'text.db'}")["storage"].level == FAILURE
    monkeypatch.setenv("METASEARCH_STORAGE", "postgresql://u:canary@127.0.0.1:1/none?connect_timeout=1")
    away = examined()["storage"]
    assert away.level == FAILURE
    assert "canary" not in f"{away}"


def test_the_command_prints_a_line_a_finding_and_exits_with_1_on_a_failure(
    metasearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path))
    code, out, _ = metasearch("doctor", "--json", "--data-root", str(tmp_path))
    assert code == 0
    assert [each["what"] for each in json.loads(out)][:2] == ["python", "packages"]
    code, out, _ = metasearch("doctor", "--storage", "nonsense")
    assert code == 1
    assert "failure  storage: --storage: must be a URL such as" in out
    assert "-> --storage or METASEARCH_STORAGE names one" in out
