from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metasearch.bundle.bench import ROUNDS, bench, cores, subjects_of, threads_of
from metasearch.bundle.contents import REFERENCES, Bundle, read_bundle, write_document
from metasearch.bundle.memory import network_memory, runtime_memory
from metasearch.errors import InputError, NotFoundError
from metasearch.latency.measured import measured_of
from tests.bundle.stand_ins import write_stand_in
from tests.command_line import Run
from tests.fakes import finished_study


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of three bundles of one study, the first two with the same teacher."""
    root = tmp_path_factory.mktemp("bundles")
    teacher = write_stand_in(root / "teacher", family="resnet").path("model.onnx").read_bytes()
    for number, (family, int8) in enumerate((("convnet", False), ("convnet", True), ("mobilenet", True))):
        bundle = write_stand_in(root / str(number), family=family, int8=int8, name=f"stand-in-trial-{number}")
        if number < 2:
            with_reference(bundle, "teacher", teacher)
    return [root / str(number) for number in range(3)]


def with_reference(bundle: Bundle, role: str, content: bytes) -> None:
    path = bundle.path(REFERENCES[role])
    path.parent.mkdir()
    path.write_bytes(content)
    described = json.loads(bundle.path("bundle.json").read_text())
    write_document(bundle.folder, **{k: v for k, v in described.items() if k not in ("format", "files", "digest")})


def test_each_network_is_measured_once_and_references_come_last(bundles: list[Path]) -> None:
    subjects = subjects_of([*bundles, bundles[0]])
    assert [(subject.name, subject.role) for subject in subjects] == [
        ("stand-in-trial-0", "bundle"),
        ("stand-in-trial-1", "bundle"),
        ("stand-in-trial-2", "bundle"),
        ("stand-in: teacher", "teacher"),
    ]
    assert [subject.int8 for subject in subjects] == [False, True, True, False]
    assert subjects[0].digest == read_bundle(bundles[0]).files["model.onnx"]


def test_a_student_that_is_its_own_reference_is_measured_as_the_bundle(tmp_path: Path) -> None:
    bundle = write_stand_in(tmp_path / "plain")
    with_reference(bundle, "student", bundle.path("model.onnx").read_bytes())
    assert [(subject.role, subject.trial) for subject in subjects_of([tmp_path / "plain"])] == [("bundle", 7)]


def test_what_is_no_bundle_or_was_tampered_with_is_refused(bundles: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        subjects_of([tmp_path])
    changed = write_stand_in(tmp_path / "changed").path("model.onnx")
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(InputError, match="SHA-256"):
        subjects_of([tmp_path / "changed"])


def test_a_report_says_what_each_network_costs(bundles: list[Path]) -> None:
    report = bench(subjects_of(bundles[:2]), threads=[1, 2], seconds=0.05, images=8, device="board")
    assert (report["device"]["name"], report["device"]["cores"]) == ("board", cores())
    assert json.loads(json.dumps(report)) == report
    for network in report["networks"]:
        one, two = network["threads"]["1"], network["threads"]["2"]
        assert one["cpu_ms"] > 0
        assert 0 < one["ms"] <= one["p95_ms"] <= one["p99_ms"]
        assert one["runs"] >= 5 * ROUNDS
        assert one["batch"] in (1, 4, 8)
        assert "cpu_ms" not in two
        assert network["file_bytes"] > 1000
        assert network["memory_bytes"] > 10**6
    assert [measured_of(network).macs > 0 for network in report["networks"]] == [True] * 3


def test_a_larger_batch_gives_more_images_a_second(bundles: list[Path]) -> None:
    (network,) = bench(subjects_of(bundles[2:]), threads=[1], seconds=0.2, images=32)["networks"]
    cost = network["threads"]["1"]
    assert cost["batch"] > 1
    assert cost["images_per_s"] > 1000 / cost["ms"]


def test_memory_is_that_of_a_process_of_its_own(bundles: list[Path]) -> None:
    taken = np.ones(2 * 10**7)  # 160 MB here make no difference there
    subject = subjects_of(bundles[:1])[0]
    alone = runtime_memory()
    above = network_memory(subject.path, subject.example(1)) - alone
    assert alone < taken.nbytes
    assert 0 < above < 10**8


def test_threads_are_one_and_all_unless_asked() -> None:
    assert threads_of(None) == sorted({1, cores()})
    assert (threads_of("all"), threads_of("3")) == ([cores()], [3])
    for text in ("0", "-1", "many", "1.5"):
        with pytest.raises(InputError, match="--threads: must be all or a whole number of at least 1"):
            threads_of(text)


def test_a_device_needs_onnxruntime_numpy_and_pillow_only(bundles: list[Path]) -> None:
    """Every other package is made to be missing, onnx too."""
    program = """
import sys
ALLOWED = {"metasearch", "onnxruntime", "numpy", "PIL", *sys.stdlib_module_names}
OPTIONAL = {"charset_normalizer", "defusedxml", "olefile", "cffi"}  # what numpy and pillow look for themselves
class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            asked.add(name.split(".")[0])
            raise ModuleNotFoundError(name, name=name)
asked = set()
sys.meta_path.insert(0, OnlyThese())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "onnx" else find(name, package)
from metasearch.bundle import bench
sys.argv = ["bench", sys.argv[1], "--seconds", "0.01", "--threads", "1"]
code = bench.main()
sys.stderr.write(" ".join(sorted(set(sys.modules) & {"torch", "ray", "onnx", "scipy", "typer", "optuna"})))
sys.exit(code)
"""
    command = [sys.executable, "-c", program, str(bundles[0])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert [network["role"] for network in json.loads(run.stdout)["networks"]] == ["bundle", "teacher"]


def test_what_a_device_printed_is_brought_back_elsewhere(bundles: list[Path], metasearch: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    finished_study(url, "stand-in", tmp_path, trials=2)
    folders = [str(bundle) for bundle in bundles]
    code, out, err = metasearch("bench", *folders, "--seconds", "0.02", "--json", "--device-name", "board")
    assert (code, err) == (0, "measuring 4 networks: 0 s or more\n")
    (tmp_path / "board.json").write_text(out)
    code, out, err = metasearch("bench", str(tmp_path / "board.json"), "--into", "stand-in", "--storage", url)
    assert code == 0
    assert "stand-in-trial-2" in out
    lines = err.splitlines()
    assert lines[0] == "4 networks of board are kept with stand-in, 4 in all"
    assert lines[1].startswith("latency_ms can be predicted from 4 networks; of one left out it is off by ")
    assert "--latency-from stand-in" in lines[2]
    code, _, err = metasearch("bench", str(tmp_path / "board.json"), "--into", "stand-in", "--storage", url)
    assert err.splitlines()[0] == lines[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "device": {"name": "x"}, "networks": [{}]}'])
def test_a_file_of_anything_else_is_refused_in_one_line(content: str, metasearch: Run, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    code, _, err = metasearch("bench", str(tmp_path / "other.json"))
    assert code == 2
    assert err.startswith(f"metasearch: {tmp_path / 'other.json'}: is not what `metasearch bench --json` printed")
    assert err.count("\n") == 1


def test_measurements_that_cannot_be_modelled_are_not_made(bundles: list[Path], metasearch: Run) -> None:
    code, _, err = metasearch("bench", str(bundles[0]), "--threads", "4", "--into", "any")
    assert (code, err.count("\n")) == (2, 1)
    assert "--threads: must be 1, or left out, with --into" in err
