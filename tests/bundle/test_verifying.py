from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from metasearch.bundle import graph, parity
from metasearch.bundle.contents import MODEL, PORTABLE, PROGRAM, SCRIPT, WEIGHTS
from metasearch.bundle.graph import check_sizes
from metasearch.bundle.predict import logits_of
from metasearch.bundle.verifying import Finding, verify_bundle
from metasearch.tasks import load_task
from tests.bundle.forged import document_of, forge
from tests.bundle.stand_ins import write_stand_in
from tests.bundles import make_bundle


def failures(folder: Path) -> dict[str, str]:
    """Return the checks that fail, with their messages: a line each."""
    _, findings = verify_bundle(folder)
    failed = {finding.check: finding.message for finding in findings if finding.holds is False}
    assert all(message.isprintable() and len(message) < 1000 for message in failed.values())
    return failed


@pytest.mark.parametrize(
    ("shape", "family", "int8"), [((1, 8, 8), "convnet", False), ((3, 8, 8), "resnet", True), ((6,), "mlp", True)]
)
def test_an_untouched_bundle_holds(shape: tuple[int, ...], family: str, int8: bool, tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path / "bundle", shape=shape, family=family, int8=int8).folder
    bundle, findings = verify_bundle(folder)
    assert bundle is not None
    assert [finding.check for finding in findings if finding.holds] == [
        "contents",
        "model",
        "weights",
        "program",
        "script",
    ]
    assert findings[-1].holds is None  # its data are not here
    assert "--data-root" in findings[-1].message


def test_a_portable_program_is_said_not_to_be_run(stand_in: Path) -> None:
    document = document_of(stand_in)
    document["files"][PORTABLE] = ""
    (stand_in / PORTABLE).write_bytes(b"a program for ExecuTorch")
    forge(stand_in, document=document)
    _, findings = verify_bundle(stand_in)
    assert findings[-1] == Finding("portable", None, "model.pte has the stated SHA-256, but is not run here")


def test_a_bundle_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert verify_bundle(tmp_path / "x") == (
        None,
        [Finding("contents", False, f"{tmp_path / 'x'}: no bundle is there: it has no bundle.json")],
    )


def changed_model(folder: Path) -> bytes:
    """Return the bundle's ONNX file with one weight of its last layer changed."""
    model = onnx.load(str(folder / MODEL))
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".bias"))
    numbers = numpy_helper.to_array(tensor) + 0.01
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    content: bytes = model.SerializeToString()
    return content


def test_a_changed_weight_is_noticed_by_the_other_form_of_the_network(stand_in: Path) -> None:
    forge(stand_in, {MODEL: changed_model(stand_in)})
    assert "is not the network of model.onnx" in failures(stand_in)["program"]


def test_a_tolerance_in_bundle_json_allows_nothing(stand_in: Path) -> None:
    document = document_of(stand_in)
    document["parity"]["tolerance"] = 1e9
    forge(stand_in, {MODEL: changed_model(stand_in)}, document=document)
    assert failures(stand_in).keys() == {"weights", "program"}


def test_a_predict_py_that_is_not_the_package_s_own_is_refused_and_not_run(stand_in: Path, tmp_path: Path) -> None:
    trap = f"import os; os.mkdir({str(tmp_path / 'sprung')!r})\n".encode()
    forge(stand_in, {SCRIPT: (stand_in / SCRIPT).read_bytes() + trap})
    found = failures(stand_in)
    assert found.keys() == {"script"}
    assert "predict.py: must be that of this metasearch: it is code, read it before you run it" in found["script"]
    assert not (tmp_path / "sprung").exists()


class Armed:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickled(path: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Armed(path), stream)
    return stream.getvalue()


def archive_with(folder: Path, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Return the bundle's program with its archive's records changed."""
    with zipfile.ZipFile(folder / PROGRAM) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return stream.getvalue()


def key_of(records: dict[str, bytes], end: str) -> str:
    return next(name for name in records if name.endswith(end))


def test_a_program_with_pickled_weights_is_refused_and_not_unpickled(stand_in: Path, tmp_path: Path) -> None:
    def arm(records: dict[str, bytes]) -> None:
        name = key_of(records, "model_constants_config.json")
        config = json.loads(records[name])
        entry: dict[str, Any] = next(iter(config["config"].values()))
        records[f"{name.partition('/')[0]}/data/constants/{entry['path_name']}"] = pickled(tmp_path / "sprung")
        entry["use_pickle"] = True
        records[name] = json.dumps(config).encode()

    forge(stand_in, {PROGRAM: archive_with(stand_in, arm)})
    assert "holds pickled objects, which are never loaded: they can run code" in failures(stand_in)["program"]
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_in_place_of_a_program_or_of_weights_is_refused(stand_in: Path, tmp_path: Path) -> None:
    for name, check in ((PROGRAM, "program"), (WEIGHTS, "weights")):
        before = (stand_in / name).read_bytes()
        forge(stand_in, {name: pickled(tmp_path / "sprung")})
        assert failures(stand_in).keys() == {check}
        forge(stand_in, {name: before})
    assert not (tmp_path / "sprung").exists()


def test_a_program_that_names_an_operator_of_its_own_is_refused(stand_in: Path) -> None:
    def arm(records: dict[str, bytes]) -> None:
        name = key_of(records, "models/model.json")
        content = records[name].replace(b"torch.ops.aten.add.Tensor", b"torch.os.system", 1)
        assert content != records[name]
        records[name] = content

    forge(stand_in, {PROGRAM: archive_with(stand_in, arm)})
    assert "may run code" in failures(stand_in)["program"]


def test_a_program_that_is_a_bomb_is_refused(stand_in: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", b"0" * 2**26)
    forge(stand_in, {PROGRAM: stream.getvalue()})
    assert "must not be larger than its file" in failures(stand_in)["program"]


def test_a_program_nested_without_end_is_refused(stand_in: Path) -> None:
    def nest(records: dict[str, bytes]) -> None:
        records[key_of(records, "models/model.json")] = b"[" * 200_000

    forge(stand_in, {PROGRAM: archive_with(stand_in, nest)})
    assert "cannot be opened as a program of torch.export" in failures(stand_in)["program"]


class Another(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)).expand(-1, self.classes)


@pytest.mark.parametrize(
    ("classes", "rule"), [(3, "is not the network of model.onnx"), (4, "must give logits of .256, 3.")]
)
def test_the_program_of_another_network_is_refused(classes: int, rule: str, stand_in: Path) -> None:
    stream = io.BytesIO()
    example = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(Another(classes), (example,), dynamic_shapes=batch), stream)
    forge(stand_in, {PROGRAM: stream.getvalue()})
    found = failures(stand_in)
    assert found.keys() == {"program"}
    assert rule.replace(".256, 3.", "(256, 3)") in found["program"]


class Decides(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)).expand(-1, 3) > 0


class ByMode(nn.Module):
    def forward(self, mode: str) -> Tensor:
        return torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("program", "example", "rule"),
    [
        (Decides(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "must give logits, float32 of two dimensions"),
        (ByMode(), "fast", "must take one tensor"),
    ],
)
def test_a_program_of_other_inputs_or_outputs_is_refused(
    program: nn.Module, example: Tensor | str, rule: str, stand_in: Path
) -> None:
    stream = io.BytesIO()
    batch = ({0: torch.export.Dim("batch")},) if isinstance(example, Tensor) else None
    torch.export.save(torch.export.export(program, (example,), dynamic_shapes=batch), stream)
    forge(stand_in, {PROGRAM: stream.getvalue()})
    assert rule in failures(stand_in)["program"]


@pytest.mark.parametrize("batch", [2, 256])
def test_a_program_of_one_batch_size_is_refused(batch: int, stand_in: Path) -> None:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(Another(3), (torch.zeros(batch, 1, 8, 8, dtype=torch.uint8),)), stream)
    forge(stand_in, {PROGRAM: stream.getvalue()})
    assert "cannot be run on 256 inputs" in failures(stand_in)["program"]


def test_fewer_inputs_are_run_at_once_of_a_network_that_computes_much(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = check_sizes(onnx.load(str(stand_in / MODEL)))
    monkeypatch.setattr(graph, "MOST_VALUES", 5 * (values + 64))
    batches = []

    def counted(session: Any, inputs: np.ndarray) -> np.ndarray:
        batches.append(len(inputs))
        return logits_of(session, inputs)

    monkeypatch.setattr(parity, "logits_of", counted)
    _, findings = verify_bundle(stand_in)
    assert set(batches[:-1]) == {5}
    assert 0 < batches[-1] < 5
    assert [f"on {sum(batches)} inputs" in finding.message for finding in findings if finding.check == "program"] == [
        True
    ]


def test_other_weights_of_the_same_network_are_refused(stand_in: Path) -> None:
    others = {name: tensor + 0.01 * (tensor.ndim > 1) for name, tensor in load_file(stand_in / WEIGHTS).items()}
    forge(stand_in, {WEIGHTS: with_metadata(stand_in, others, {})})
    found = failures(stand_in)
    assert found.keys() == {"weights"}
    assert (
        "weights.safetensors: is not the network of model.onnx: must give its logits of 256 inputs" in found["weights"]
    )


def with_metadata(folder: Path, tensors: dict[str, Tensor], changes: dict[str, Any]) -> bytes:
    """Return tensors as the bundle's weights file, with another description of their network."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        described = json.loads(file.metadata()["network"])
    content: bytes = save(tensors, metadata={"network": json.dumps(described | changes)})
    return content


def redescribed(folder: Path, changes: dict[str, Any]) -> bytes:
    """Return the bundle's weights with another description of their network."""
    return with_metadata(folder, load_file(folder / WEIGHTS), changes)


def safetensors_with(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        safetensors_with(b"{}", size=2**63),
        safetensors_with(b"{}", size=100 * 2**20),
        safetensors_with(b"[" * 100_000),
        safetensors_with(b"{}"),
        safetensors_with(json.dumps({"__metadata__": {"network": "[" * 100_000}}).encode()),
        safetensors_with(json.dumps({"__metadata__": {"network": '{"spec": NaN}'}}).encode()),
        safetensors_with(json.dumps({"__metadata__": {"network": "{}"}}).encode()),
        safetensors_with(json.dumps({"__metadata__": {"network": "1" * 5000}}).encode()),
        safetensors_with(b'{"w": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'),
    ],
)
def test_weights_that_are_none_are_refused(content: bytes, stand_in: Path) -> None:
    forge(stand_in, {WEIGHTS: content})
    found = failures(stand_in)
    assert found.keys() == {"weights"}
    assert WEIGHTS in found["weights"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"input_shape": [1, 9, 9]}, "input_shape: must be that of bundle.json"),
        ({"input_shape": 7}, "input_shape: must be that of bundle.json"),
        ({"classes": 4}, "classes: must be that of bundle.json"),
        ({"class_names": ["a", "b", "c"]}, "class_names: must be that of bundle.json"),
        ({"spec": "convnet:width=999999999,depth=1"}, "width: must be in [1, 1024]"),
        ({"spec": "convnet:width=8,depth=999999999"}, "depth: must be in [1, 12]"),
        ({"spec": "convnet:width=7,depth=1"}, "channels must be at least 1 and at most"),
        ({"spec": ["convnet"]}, "must look like convnet"),
        ({"spec": f"convnet:width={'9' * 5000},depth=1"}, "must look like convnet"),
        ({"spec": "\x1b[31m="}, "must look like convnet:width=16,depth=4, got ?[31m="),
        ({"channels": [99]}, "channels must be at least 1 and at most"),
        ({"channels": "many"}, "channels must be"),
        ({"channels": [None]}, "channels must be"),
        ({"channels": 8}, "channels must be"),
    ],
)
def test_weights_of_another_network_are_refused(changes: dict[str, Any], rule: str, stand_in: Path) -> None:
    forge(stand_in, {WEIGHTS: redescribed(stand_in, changes)})
    found = failures(stand_in)
    assert found.keys() == {"weights"}
    assert rule in found["weights"]


def test_weights_of_a_family_that_is_code_are_described_and_not_built(stand_in: Path) -> None:
    spec = {"spec": "antigravity.nothing:build:width=8,depth=1"}
    forge(stand_in, {WEIGHTS: redescribed(stand_in, spec)})
    _, findings = verify_bundle(stand_in)
    (weights,) = [finding for finding in findings if finding.check == "weights"]
    assert weights.holds
    assert "which is not built here" in weights.message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the real pipeline made of digits."""
    return make_bundle(tmp_path_factory.mktemp("trained"), task=load_task("digits"))


def test_accuracy_is_measured_again_where_the_data_are(trained: Path) -> None:
    load_task("digits")
    _, findings = verify_bundle(trained)
    assert [finding.holds for finding in findings] == [True] * 6
    assert "on 250 validation inputs, as bundle.json says" in findings[-1].message


def forged_copy(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(folder, target)
    document = document_of(target)
    change(document)
    forge(target, document=document)
    return target


def test_an_accuracy_that_is_not_met_is_refused(trained: Path, tmp_path: Path) -> None:
    load_task("digits")
    better = forged_copy(trained, tmp_path / "bundle", lambda document: document["parity"].update(val_accuracy=0.99))
    assert "must have the validation accuracy that bundle.json says, 0.9900" in failures(better)["data"]


def test_float_weights_that_int8_did_not_come_from_are_refused(trained: Path, tmp_path: Path) -> None:
    load_task("digits")
    shutil.copytree(trained, tmp_path / "bundle")
    others = {name: -tensor for name, tensor in load_file(trained / WEIGHTS).items()}
    forge(tmp_path / "bundle", {WEIGHTS: with_metadata(trained, others, {})})
    found = failures(tmp_path / "bundle")
    assert found.keys() == {"data"}
    assert "weights.safetensors: must give the class of model.onnx as often as bundle.json says" in found["data"]


def test_other_data_prove_nothing_and_fail_only_where_they_were_pointed_to(trained: Path, tmp_path: Path) -> None:
    other = forged_copy(
        trained, tmp_path / "bundle", lambda document: document["provenance"].update(task_options={"max_train": 100})
    )
    load_task("digits")
    assert failures(other) == {}
    _, findings = verify_bundle(other, data_root=str(tmp_path))
    assert findings[-1].holds is False
    assert "has other data than those that the bundle was made from" in findings[-1].message


@pytest.mark.parametrize("place", ["task", "unlabelled"])
def test_data_that_a_bundle_names_are_not_prepared_for_it(place: str, trained: Path, tmp_path: Path) -> None:
    for number in range(40):
        file = tmp_path / "pictures" / f"class {number % 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(file)
    pictures = f"folder:{tmp_path / 'pictures'}"

    def name(document: dict[str, Any]) -> None:
        if place == "task":
            document["provenance"]["task"] = f"{pictures}@classes:2#class 0,class 1"
        else:
            document["provenance"]["task_options"] = {"unlabelled": pictures}

    load_task("digits")
    _, findings = verify_bundle(forged_copy(trained, tmp_path / "bundle", name))
    assert findings[-1].holds is None
    assert f"{pictures}: is not prepared on this machine" in findings[-1].message


@pytest.mark.parametrize("place", ["task", "unlabelled"])
def test_a_task_that_is_code_is_not_run(place: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n", encoding="utf-8")

    def arm(document: dict[str, Any]) -> None:
        if place == "task":
            document["provenance"]["task"] = "python:evil:task"
        else:
            document["provenance"]["task_options"] = {"unlabelled": "python:evil:task"}

    armed = forged_copy(trained, tmp_path / "bundle", arm)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        _, findings = verify_bundle(armed, data_root=str(tmp_path))
    assert findings[-1].holds is False
    assert "made by a function, which is not run for a bundle" in findings[-1].message
    assert not (tmp_path / "sprung").exists()
