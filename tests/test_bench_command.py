from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest

from metasearch.bundle.bench import Report
from metasearch.bundle.bench_picture import LARGEST, LINE, bench_picture
from metasearch.errors import InputError
from metasearch.search.store import load_study
from tests.bundle.reports import bench_report
from tests.command_line import Run
from tests.fakes import finished_study

SVG = "{http://www.w3.org/2000/svg}"


def written(report: Report, folder: Path, name: str = "board.json") -> str:
    path = folder / name
    path.write_text(json.dumps(report), encoding="utf-8")
    return str(path)


def test_a_table_says_what_each_network_is_and_what_it_costs(metasearch: Run, tmp_path: Path) -> None:
    code, out, err = metasearch("bench", written(bench_report(), tmp_path))
    assert (code, err) == (0, "")
    headings, _, first, second, *_ = (line.split() for line in out.splitlines() if line.strip())
    assert headings[:9] == ["network", "test", "acc", "MACs", "bytes", "threads", "ms", "p95,", "p99"]
    assert first[:8] == ["stand-in:", "bundle", "0.8000", "726", "k", "1", "kB", "1"]
    assert second[:2] == ["2", "0.232"]


def test_accuracies_are_those_that_are_known_of_all(metasearch: Run, tmp_path: Path) -> None:
    report = bench_report()
    report["networks"][1]["accuracy"]["test"] = None
    _, out, _ = metasearch("bench", written(report, tmp_path))
    assert "val acc" in out
    assert "test acc" not in out
    assert "0.9000" in out


def test_names_of_strangers_are_printed_as_they_are(metasearch: Run, tmp_path: Path) -> None:
    report = bench_report()
    report["device"]["processor"] = "x[/b] :smile: [red]y"
    report["networks"][0]["name"] = "[red]n[/b]"
    code, out, _ = metasearch("bench", written(report, tmp_path))
    assert code == 0
    assert "[red]n[/b]" in out
    assert "x[/b] :smile: [red]y" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "1"], "--threads: is for bundles"),
        (["--seconds", "1"], "--seconds: is for bundles"),
        (["--images", "1"], "--images: is for bundles"),
        (["--device-name", "x\n"], "--device-name: must have 1 to 200 printable characters"),
        (["FILE", "--json"], "--json: takes one FILE.json"),
        (["FILE", "--svg", "x.svg"], "--svg: takes one FILE.json"),
        (["--svg", "nowhere/x.svg"], "--svg: nowhere/x.svg: its folder is not there"),
        (["--into", "nosuch"], "study 'nosuch': there is none"),
        (["x" * 300], "must be bundles, or files of what was measured, not both"),
    ],
)
def test_a_flag_that_a_file_has_no_use_for_is_refused(
    arguments: list[str], message: str, metasearch: Run, tmp_path: Path
) -> None:
    finished_study(f"sqlite:///{tmp_path / 'studies.db'}", "old", tmp_path, trials=1)
    file = written(bench_report(), tmp_path)
    arguments = [file if argument == "FILE" else argument for argument in arguments]
    code, out, err = metasearch("bench", file, *arguments, "--storage", f"sqlite:///{tmp_path / 'studies.db'}")
    assert (code in (2, 3), out, err.count("\n")) == (True, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--seconds", "nan", "must be from 0 to 3600, got nan"),
        ("--seconds", "inf", "must be from 0 to 3600, got inf"),
        ("--images", "0", "must be from 1 to 65536, got 0"),
        ("--images", "1000000000", "must be from 1 to 65536"),
        ("--threads", "9" * 20, "must be all or a whole number from 1 to 1024"),
        ("--threads", "4", None),
    ],
)
def test_what_no_device_can_be_asked_for_is_refused(
    flag: str, value: str, rule: str | None, metasearch: Run, tmp_path: Path
) -> None:
    code, _, err = metasearch("bench", "no-bundle", flag, value, "--svg", str(tmp_path / "x.svg"))
    expected = rule or "must be 1, or left out, with --svg, which is about one thread, got '4'"
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"metasearch: {flag}: {expected}")


def test_nothing_is_kept_where_no_latency_model_can_be_fitted(metasearch: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = finished_study(url, "old", tmp_path, trials=1)
    before = load_study(storage, "old").user_attrs
    report = bench_report()
    del report["networks"][3]["threads"]["1"]
    code, _, err = metasearch("bench", written(report, tmp_path), "--into", "old", "--storage", url)
    assert code == 2
    assert err.endswith(
        "no latency model can be fitted to what was measured (stand-in: float has no CPU time on one thread)\n"
    )
    assert load_study(storage, "old").user_attrs == before


def test_a_file_may_be_given_another_name_for_its_device(metasearch: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    finished_study(url, "old", tmp_path, trials=1)
    file = written(bench_report(), tmp_path)
    code, out, err = metasearch("bench", file, "--device-name", "shelf", "--json", "--into", "old", "--storage", url)
    assert (code, json.loads(out)["device"]["name"]) == (0, "shelf")
    assert err.startswith("4 networks of shelf are kept with old, 4 in all\n")


def test_a_picture_has_a_mark_and_a_name_for_each_network(metasearch: Run, tmp_path: Path) -> None:
    report = bench_report()
    for network in report["networks"]:
        network["accuracy"]["test"] = 0.8  # all names want one place
    report["networks"][0]["name"] = "<b>&\ufffe" + "x" * 300
    code, *_ = metasearch("bench", written(report, tmp_path), "--svg", str(tmp_path / "costs.svg"))
    assert code == 0
    root = ElementTree.parse(tmp_path / "costs.svg").getroot()
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    radii = sorted(float(mark.get("r", 0)) for mark in root.iter(f"{SVG}circle"))
    assert radii[-1] == LARGEST
    assert radii[-1] / radii[-2] == pytest.approx(10**0.5, rel=0.02)  # ten times the bytes: ten times the area
    names = [each for each in root.iter(f"{SVG}text") if each.get("class") == "name"]
    assert len(names) == 4
    places = sorted(float(name.get("y", 0)) for name in names)
    assert all(after - before >= LINE for before, after in pairwise(places))
    for mark in (*root.iter(f"{SVG}text"), *root.iter(f"{SVG}circle")):
        assert 0 <= float(mark.get("x", mark.get("cx", 0))) <= width
        assert 0 <= float(mark.get("y", mark.get("cy", 0))) <= height


def test_a_picture_needs_a_time_on_one_thread() -> None:
    report = bench_report()
    for network in report["networks"]:
        del network["threads"]["1"]
    with pytest.raises(InputError, match="--svg: needs a network whose accuracy is known"):
        bench_picture(report)
