from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metasearch.bundle.bench_file import read_report
from metasearch.errors import InputError
from tests.bundle.reports import bench_report

LAYER = ("networks", 0, "layers", 1)
COST = ("networks", 0, "threads", "1")
MISSING = "missing"


def changed(path: tuple[str | int, ...], value: object) -> str:
    """Return the text of a report with another value at a place, or with none there."""
    report: Any = bench_report()
    at = report
    for part in path[:-1]:
        at = at[part]
    if value == MISSING:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(report)


def refusal(text: str, folder: Path) -> str:
    path = folder / "board.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_report(path)
    start = f"{path}: is not what `metasearch bench --json` printed ("
    assert str(refused.value).startswith(start)
    return str(refused.value).removeprefix(start)


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(bench_report()))
    assert read_report(tmp_path / "board.json") == bench_report()


def test_a_report_of_an_earlier_version_lacks_only_what_it_did_not_know(tmp_path: Path) -> None:
    report = bench_report()
    for network in report["networks"]:
        del network["macs"], network["accuracy"]
    (tmp_path / "board.json").write_text(json.dumps(report))
    network = read_report(tmp_path / "board.json")["networks"][0]
    assert (network["macs"], network["accuracy"]) == (None, {"val": None, "test": None})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "report.format: must be 1"),
        (("device", "name"), "", "report.device.name: must be the name of a device"),
        (("device", "name"), "x" * 201, "report.device.name: must be the name of a device"),
        (("device", "processor"), MISSING, "report.device.processor: must be given"),
        (("rounds",), MISSING, "report.rounds: must be given"),
        (("networks",), [], "report.networks: must have at least 1"),
        (("networks", 0, "memory_bytes"), MISSING, "report.networks[0].memory_bytes: must be given"),
        (("networks", 0, "name"), "x\x1b[31m", "report.networks[0].name: must be a text"),
        (("networks", 0, "digest"), [], "report.networks[0].digest: must be a SHA-256"),
        (("networks", 0, "macs"), -1, "report.networks[0].macs: must be a whole number, at least 0"),
        (("networks", 0, "accuracy", "val"), 1.5, "report.networks[0].accuracy.val: must be a number in [0, 1]"),
        ((*COST, "ms"), MISSING, "report.networks[0].threads.1.ms: must be given"),
        ((*COST, "cpu_ms"), -1.0, "report.networks[0].threads.1.cpu_ms: must be a number from 1e-06 to 1e+09"),
        ((*COST, "cpu_spread_ms"), MISSING, "report.networks[0].threads.1: must have both of cpu_ms, cpu_spread_ms"),
        ((*LAYER, 0, 0), "sofa", "report.networks[0].layers[1][0][0]: must be one of input, dense"),
        ((*LAYER, 0, 2), -1, "report.networks[0].layers[1][0][2]: must be a whole number, at least 0"),
        ((*LAYER, 0, 2), 2**53 + 1, "report.networks[0].layers[1][0][2]: must be a whole number, at least 0"),
        ((*LAYER, 0, 2), 10**400, "report.networks[0].layers[1][0][2]: must be a whole number, at least 0"),
        ((*LAYER, 0, 5), 0, "report.networks[0].layers[1][0]: a convolution must have channels"),
        ((*LAYER, 0), ["dense"], "report.networks[0].layers[1][0]: must be a list of 6"),
        ((*LAYER, 1), -0.5, "report.networks[0].layers[1][1]: must be a number from 0 to 1e+09"),
        ((*LAYER, 1), float("nan"), "numbers must be finite, got 'NaN'"),
        (("networks", 0, "layers", 0, 0, 0), "linear", "report.networks[0].layers[0][0][0]: must be input"),
        (("networks", 0, "layers"), [], "report.networks[0].layers: must have at least 2 items"),
    ],
)
def test_each_field_of_a_report_is_checked(
    path: tuple[str | int, ...], value: object, message: str, tmp_path: Path
) -> None:
    assert refusal(changed(path, value), tmp_path).startswith(message)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 10**5, "1" * 5000, '{"format": Infinity}', '{"a": 1, "a": 2}'])
def test_what_is_no_report_at_all_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path).isprintable()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_report(tmp_path)
