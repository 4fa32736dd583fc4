from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from metasearch.bundle.contents import CARD, MODEL, read_bundle
from tests.bundle.forged import forge
from tests.bundle.stand_ins import write_stand_in
from tests.command_line import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("whole") / "bundle").folder


def test_a_bundle_that_holds_is_told_with_its_digest(whole: Path, metasearch: Run) -> None:
    code, out, err = metasearch("verify", str(whole))
    head, *checks = out.splitlines()
    assert (code, err) == (0, "")
    assert head == f"{whole}: stand-in-trial-7, digest {read_bundle(whole).digest}"
    assert [line.split(":")[0].strip() for line in checks] == [
        "contents",
        "model",
        "weights",
        "program",
        "script",
        "data",
    ]


def test_each_failing_check_is_a_line_and_the_exit_code_is_1(whole: Path, tmp_path: Path, metasearch: Run) -> None:
    spoilt = write_stand_in(tmp_path / "spoilt")
    spoilt.path(CARD).write_bytes(b"another")
    code, out, err = metasearch("verify", str(spoilt.folder), str(whole), str(tmp_path / "nothing"))
    assert code == 1
    assert out.splitlines()[0].startswith(f"{whole}: stand-in-trial-7")
    first, second = err.splitlines()
    assert first.startswith(f"metasearch: {spoilt.path(CARD)}: must have the SHA-256 that bundle.json states")
    assert second == f"metasearch: {tmp_path / 'nothing'}: no bundle is there: it has no bundle.json"


def test_a_model_that_is_refused_is_told_of_once(whole: Path, tmp_path: Path, metasearch: Run) -> None:
    spoilt = shutil.copytree(whole, tmp_path / "spoilt")
    forge(spoilt, {MODEL: b"no ONNX"})
    code, out, err = metasearch("verify", str(spoilt))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"metasearch: {spoilt / MODEL}: is no ONNX file")
    assert "  program: not done, not compared: model.onnx was refused" in out.splitlines()


def test_json_holds_every_check_of_every_bundle(whole: Path, tmp_path: Path, metasearch: Run) -> None:
    code, out, err = metasearch("verify", str(whole), str(tmp_path), "--json")
    good, bad = json.loads(out)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert (good["bundle"], good["holds"], good["name"]) == (str(whole), True, "stand-in-trial-7")
    assert good["digest"] == read_bundle(whole).digest
    assert {check["check"]: check["holds"] for check in good["checks"]} == {
        "contents": True,
        "model": True,
        "weights": True,
        "program": True,
        "script": True,
        "data": None,
    }
    assert (bad["bundle"], bad["holds"]) == (str(tmp_path), False)
    assert [check["check"] for check in bad["checks"]] == ["contents"]
