from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metasearch.bundle import memory
from metasearch.bundle.bench import ROUNDS, bench, cores, main, threads_of
from metasearch.bundle.bench_file import read_report
from metasearch.bundle.contents import REFERENCES, Bundle, read_bundle, write_document
from metasearch.bundle.memory import network_memory, runtime_memory
from metasearch.bundle.subjects import subjects_of
from metasearch.errors import InputError, NotFoundError
from metasearch.latency.measured import measured_of
from tests.bundle.forged import write_empty_bundle
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


@pytest.fixture(autouse=True)
def _one_process_for_each_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESSES", 1)


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks be taken as they are, as a device does that has no onnx to check them with."""
    monkeypatch.setattr("metasearch.bundle.subjects.find_spec", lambda name: None)


def with_reference(bundle: Bundle, role: str, content: bytes, **changed: object) -> None:
    path = bundle.path(REFERENCES[role])
    path.parent.mkdir()
    path.write_bytes(content)
    described = json.loads(bundle.path("bundle.json").read_text())
    kept = {key: value for key, value in described.items() if key not in ("format", "files", "digest")}
    write_document(bundle.folder, **(kept | changed))


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


@pytest.mark.usefixtures("without_onnx")
def test_networks_of_one_file_all_have_their_names(tmp_path: Path) -> None:
    with_reference(read_bundle(write_empty_bundle(tmp_path / "plain")), "student", b"what stands for model.onnx\n")
    write_empty_bundle(tmp_path / "twin", name="stand-in-trial-8")
    subjects = subjects_of([tmp_path / "plain", tmp_path / "twin"])
    assert [(subject.name, subject.role, subject.trial) for subject in subjects] == [
        ("stand-in-trial-7", "bundle", 7),
        ("stand-in-trial-8", "bundle", 7),
        ("stand-in-trial-7: uncompressed student", "student", None),
    ]
    assert len({subject.digest for subject in subjects}) == 1


@pytest.mark.usefixtures("without_onnx")
def test_what_a_bundle_says_of_its_networks_is_known(tmp_path: Path) -> None:
    """Numbers that cannot be are not."""
    metrics = {"val_accuracy": 0.5, "test_accuracy": 7, "macs": 900, "model_bytes": -1}
    bundle = read_bundle(write_empty_bundle(tmp_path / "bundle", metrics=metrics))
    references = {"float": {"val_accuracy": 0.75, "model_bytes": 5000}}
    with_reference(bundle, "float", b"a network in float", references=references)
    own, before = subjects_of([tmp_path / "bundle"])
    assert (own.accuracy, own.macs, own.model_bytes) == ({"val": 0.5, "test": None}, 900, None)
    assert (before.name, before.role) == ("stand-in-trial-7: before int8", "float")
    assert (before.accuracy, before.macs, before.model_bytes) == ({"val": 0.75, "test": None}, None, 5000)


def test_what_is_no_bundle_or_was_tampered_with_is_refused(bundles: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        subjects_of([tmp_path])
    changed = write_stand_in(tmp_path / "changed").path("model.onnx")
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(InputError, match="SHA-256"):
        subjects_of([tmp_path / "changed"])


def test_a_report_says_what_each_network_costs(bundles: list[Path]) -> None:
    subjects = subjects_of(bundles[:2])
    twin = replace(subjects[0], name="twin", macs=900)
    report = bench([*subjects, twin], threads=[1, 2], seconds=0.05, images=8, device="board")
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
    assert [measured_of(network).macs > 0 for network in report["networks"]] == [True] * 4
    assert report["networks"][-1] == report["networks"][0] | {"name": "twin", "macs": 900}


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


def test_memory_is_never_less_than_nothing(bundles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metasearch.bundle.bench.runtime_memory", lambda: 10**12)
    report = bench(subjects_of(bundles[2:]), threads=[1], seconds=0, images=1)
    assert report["networks"][0]["memory_bytes"] == 0


def test_threads_are_one_and_all_unless_asked() -> None:
    assert threads_of(None) == sorted({1, cores()})
    assert (threads_of("all"), threads_of("3")) == ([cores()], [3])
    for text in ("0", "-1", "many", "1.5", "1" * 20):
        with pytest.raises(InputError, match="--threads: must be all or a whole number from 1 to 1024"):
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
from metasearch.bundle import bench, memory
memory.PROCESSES = 1
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
    assert read_report(tmp_path / "board.json") == json.loads(out)
    code, out, err = metasearch("bench", str(tmp_path / "board.json"), "--into", "stand-in", "--storage", url)
    assert code == 0
    assert "stand-in-trial-2" in out
    lines = err.splitlines()
    assert lines[0] == "4 networks of board are kept with stand-in, 4 in all"
    assert lines[1].startswith("latency_ms can be predicted from 4 networks; of one left out it is off by ")
    assert "--latency-from stand-in" in lines[2]
    code, _, err = metasearch("bench", str(tmp_path / "board.json"), "--into", "stand-in", "--storage", url)
    assert err.splitlines()[0] == lines[0]


def test_a_device_is_told_its_mistakes_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, message in (
        (["--seconds", "nan"], 2, "--seconds: must be from 0 to 3600, got nan"),
        (["--images", "0"], 2, "--images: must be from 1 to 65536, got 0"),
        ([], 3, f"{tmp_path}: no bundle is there: it has no bundle.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path), *arguments])
        assert main() == code
        assert capsys.readouterr() == ("", f"python -m metasearch.bundle.bench: {message}\n")


def test_a_network_that_does_not_run_is_named(bundles: list[Path], tmp_path: Path) -> None:
    """Without onnx nothing is tried before it is measured."""
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    subject = replace(subjects_of(bundles[:1])[0], path=tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: cannot be run by onnxruntime \("):
        bench([subject], threads=[1], seconds=0, images=1)
