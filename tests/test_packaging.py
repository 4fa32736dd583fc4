"""What an installed wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    (wheel,) = folder.glob("metasearch-*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_search_spaces_and_cluster_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("search_spaces", "cluster"):
        files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        assert files
        assert {f"metasearch/{path}" for path in files} <= names
    assert {"metasearch/cli.py", "metasearch/transfer/builtin.parquet"} <= names
    page = "metasearch/report/page"
    assert {f"{page}/templates/page.html", f"{page}/static/echarts.min.js", f"{page}/static/echarts-LICENSE"} <= names
    assert not any(name.startswith("tests/") for name in names)


@pytest.mark.slow
def test_presets_load_from_an_unpacked_wheel_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import metasearch.search.space as s; print(s.__file__); print(*s.preset_names()); s.load_space('quick')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    where, presets = ran.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert {"quick", "distill", "distill_compress", "few_shot", "tiny_device"} <= set(presets.split())
