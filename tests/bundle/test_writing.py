from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from metasearch import stages
from metasearch.bundle import predict as script
from metasearch.bundle.contents import CARD, DOCUMENT, MODEL, PROGRAM, REFERENCES, SCRIPT, WEIGHTS, read_bundle
from metasearch.bundle.parity import compare
from metasearch.bundle.references import write_references
from metasearch.bundle.runtime import open_bundle
from metasearch.bundle.writing import write_bundle
from metasearch.errors import InputError, StorageError
from metasearch.export import OPSET
from metasearch.pipeline import ONNX_FILE
from tests.bundles import made_trial, make_bundle
from tests.synthetic import synthetic_task

HALVED = {"pruning_ratio": 0.5}
SPARSE = {"student.width": 20, "student.depth": 3, "sparsity": 0.9}
USERS = {"student.family": "tests.user_networks:smooth", "quantize": "none"}
CONFIGURATIONS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "convnet float": ({"quantize": "none"}, (1, 8, 8)),
    "convnet int8 pruned": (HALVED, (3, 12, 10)),
    "convnet int8 sparse": (SPARSE, (1, 8, 8)),
    "resnet float pruned": ({"student.family": "resnet", "quantize": "none"} | HALVED, (1, 8, 8)),
    "resnet int8": ({"student.family": "resnet"}, (1, 8, 8)),
    "mobilenet float sparse": ({"student.family": "mobilenet", "quantize": "none"} | SPARSE, (3, 8, 8)),
    "mobilenet int8 pruned": ({"student.family": "mobilenet", "student.width": 8} | HALVED, (1, 8, 8)),
    "mlp int8 of vectors": ({"student.family": "mlp"}, (6,)),
    "mlp float of vectors": ({"student.family": "mlp", "quantize": "none"} | HALVED, (6,)),
    "a user's family, pruned": (USERS | HALVED, (1, 8, 8)),
    "a user's family, int8": ({"student.family": "tests.user_networks:plain"}, (1, 8, 8)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an int8 convnet."""
    return make_bundle(tmp_path_factory.mktemp("written"), HALVED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_kind_of_trial_becomes_a_bundle_that_computes_what_it_recorded(name: str, tmp_path: Path) -> None:
    config, shape = CONFIGURATIONS[name]
    task = synthetic_task(shape=shape)
    opened = open_bundle(make_bundle(tmp_path, config, task=task))
    bundle = opened.bundle
    labels = task.validation.labels.numpy()
    logits = np.concatenate([opened.logits(part.numpy()) for part in torch.split(task.validation.inputs, 16)])
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(bundle.metrics["val_accuracy"])
    assert bundle.int8 == (config.get("quantize", "int8") == "int8")
    assert compare(bundle, task.validation.inputs, task.validation.labels).breach(int8=bundle.int8) is None
    model = onnx.load(bundle.path(MODEL))
    onnx.checker.check_model(model, full_check=True)
    assert bundle.opset == OPSET
    if "sparsity" in config:
        assert any(node.op_type == "Unpack" for node in model.graph.node)


def test_a_bundle_says_what_it_holds_and_where_it_is_from(written: Path) -> None:
    bundle, task = read_bundle(written), synthetic_task()
    assert sorted(path.name for path in written.iterdir()) == sorted([CARD, DOCUMENT, MODEL, PROGRAM, SCRIPT, WEIGHTS])
    assert (bundle.name, bundle.class_names, bundle.input_shape) == ("made-trial-3", task.class_names, (1, 8, 8))
    assert bundle.provenance["fingerprint"] == task.fingerprint
    assert [stage["stage"] for stage in bundle.stages] == ["distill", "prune", "fine_tune", "quantize"]
    assert bundle.normalisation["scale"] == list(task.normalisation.scale)
    assert bundle.path(SCRIPT).read_bytes() == Path(script.__file__).read_bytes()
    assert bundle.parity["images"] == 60
    assert (bundle.references, "test_accuracy" in bundle.metrics) == ({}, False)
    text = "".join(bundle.path(name).read_text() for name in (CARD, DOCUMENT))
    assert str(written.parent) not in text


def test_its_own_script_predicts_with_it(written: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = synthetic_task().test.inputs[0, 0].numpy()
    Image.fromarray(image).save(tmp_path / "image.png")
    command = [sys.executable, "-I", str(written / SCRIPT), str(tmp_path / "image.png")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    ((name, probability),) = open_bundle(written).classify(image[None, None])
    assert run.stdout == f"{tmp_path / 'image.png'}\t{name}\t{probability:.4f}\n"


def test_a_network_tuned_in_int8_is_compared_with_what_was_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "QUANTIZATION_LOSS", -1.0)  # as if every student had lost that much
    chosen, files, task = made_trial(tmp_path, {"quantization_epochs": 3, "epochs": 4})
    assert chosen.result.details["quantization_aware"]
    bundle = write_bundle(chosen, files, task, tmp_path / "bundle")
    assert bundle.parity["top1_agreement"] >= 0.995
    assert "Fine-tuned in simulated int8" in bundle.path(CARD).read_text()
    assert compare(bundle, task.validation.inputs, task.validation.labels).record() == bundle.parity
    plain = replace(chosen, result=replace(chosen.result, details={}))
    with pytest.raises(InputError, match=r"^model.onnx of trial 3 of made: "):
        write_bundle(plain, files, task, tmp_path / "without")


def corrupted(path: Path, folder: Path) -> Path:
    """Return a copy of an ONNX file whose last layer has the opposite sign."""
    model = onnx.load(path)
    (stored,) = [each for each in model.graph.initializer if each.name == "logits.weight"]
    stored.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(stored), stored.name))
    onnx.save(model, folder / "corrupted.onnx")
    return folder / "corrupted.onnx"


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_another_network_is_refused_and_nothing_is_written(quantize: str, tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {"quantize": quantize})
    before = sorted(tmp_path.iterdir())
    files[ONNX_FILE] = corrupted(files[ONNX_FILE], tmp_path / "made")
    with pytest.raises(InputError, match=r"^model.onnx of trial 3 of made: is not .*; they part at logits$"):
        write_bundle(chosen, files, task, tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_that_is_not_as_good_as_recorded_is_refused(tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {})
    accuracy = chosen.result.metrics["val_accuracy"]
    for images, refused in ((1, False), (2, True)):
        metrics = {**chosen.result.metrics, "val_accuracy": accuracy - images / 60}
        told = replace(chosen, result=replace(chosen.result, metrics=metrics))
        if refused:
            with pytest.raises(InputError, match=r"must have the validation accuracy 0\.\d+ that the trial recorded"):
                write_bundle(told, files, task, tmp_path / "bundle", force=True)
        else:
            write_bundle(told, files, task, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").metrics["val_accuracy"] == pytest.approx(accuracy - 1 / 60)


def test_other_data_than_the_studys_are_refused(tmp_path: Path) -> None:
    chosen, files, _ = made_trial(tmp_path, {})
    with pytest.raises(InputError, match=r"^task digits: has changed since the study was made"):
        write_bundle(chosen, files, synthetic_task(seed=1), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_only_a_bundle_is_replaced_and_only_where_asked(tmp_path: Path, written: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {"quantize": "none"})
    shutil.copytree(written, tmp_path / "bundle")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for name in ("bundle", "folder", "link"):
        with pytest.raises(InputError, match=r"^--to: must not be there yet"):
            write_bundle(chosen, files, task, tmp_path / name)
    for name in ("folder", "link"):
        with pytest.raises(InputError, match=r"^--to: --force replaces a bundle only"):
            write_bundle(chosen, files, task, tmp_path / name, force=True)
    before = read_bundle(tmp_path / "bundle")
    replaced = write_bundle(chosen, files, task, tmp_path / "bundle", force=True)
    assert (before.int8, replaced.int8) == (True, False)
    os.symlink(written, tmp_path / "current")
    write_bundle(chosen, files, task, tmp_path / "current", force=True)
    assert not (tmp_path / "current").is_symlink()
    assert read_bundle(written).int8  # what the link pointed to stays
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "years of work"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_whatever_ends_a_replacement_the_old_bundle_is_back(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, files, task = made_trial(tmp_path, {"quantize": "none"})
    shutil.copytree(written, tmp_path / "bundle")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if source == tmp_path / "bundle":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(chosen, files, task, tmp_path / "bundle", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "made"]
    assert read_bundle(tmp_path / "bundle").digest == read_bundle(written).digest


def test_a_lost_artefact_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {})
    files[ONNX_FILE] = tmp_path / "gone"
    with pytest.raises(StorageError, match=r"bundle: no bundle was made: [^\n]*gone"):
        write_bundle(chosen, files, task, tmp_path / "bundle")


def test_the_references_are_the_teacher_and_the_student_without_compression_or_before_int8(tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, HALVED | SPARSE | {"sparsity": 0.5}, teacher="mlp:width=4,depth=1")
    final = {"test_accuracy": 0.5, "test_seeds": 2}
    chosen = replace(chosen, final=final, teacher={"metrics": {"val_accuracy": 0.75}})
    bundle = write_bundle(chosen, files, task, tmp_path / "bundle", references=True)
    student, teacher, before_int8 = (
        onnx.load(bundle.path(REFERENCES[name])) for name in ("student", "teacher", "float")
    )
    weights = {t.name: tuple(t.dims) for t in student.graph.initializer}
    assert weights["convolution_1.weight"][0] == 20
    assert {t.data_type for t in student.graph.initializer} == {onnx.TensorProto.FLOAT}
    assert any(node.op_type == "Gemm" for node in teacher.graph.node)
    assert [value.dims for value in before_int8.graph.initializer if value.name == "logits.weight"]
    assert not any(node.op_type == "QuantizeLinear" for node in before_int8.graph.node)
    assert "same student, uncompressed" in bundle.path(CARD).read_text()
    open_bundle(tmp_path / "bundle")
    measured, metrics = bundle.references, bundle.metrics
    assert measured["teacher"].keys() == {"val_accuracy", "model_bytes"}
    assert measured["student"]["parameters"] > measured["float"]["parameters"] == metrics["parameters"]
    assert measured["student"]["model_bytes"] > measured["float"]["model_bytes"] > metrics["model_bytes"]
    assert all(0 <= known["test_accuracy"] <= 1 for known in (metrics, measured["student"], measured["float"]))


def test_a_teacher_that_is_no_single_network_is_left_out(tmp_path: Path) -> None:
    member = {"text": "mlp:width=4,depth=1", "weights": None, "share": 1.0}
    chosen, _, task = made_trial(tmp_path, {}, teacher={"members": [member, member]})
    told: list[str] = []
    measured = write_references(tmp_path, chosen, task, before_int8=None, tell=told.append)
    assert measured.keys() == {"student"}
    assert 0 < measured["student"]["val_accuracy"] <= 1
    assert "test_accuracy" not in measured["student"]  # no final run has read the test split
    assert [path.name for path in (tmp_path / "references").iterdir()] == ["student.onnx"]
    assert told[0].startswith("teacher mlp:width=4,depth=1 + mlp:width=4,depth=1: is no network that can be written")


def test_the_document_is_the_same_for_the_same_trial_but_for_its_time(tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {})
    documents = []
    for name in ("first", "second"):
        write_bundle(chosen, files, task, tmp_path / name, licence="MIT")
        document = json.loads((tmp_path / name / DOCUMENT).read_text())
        document["provenance"].pop("created")
        documents.append({key: value for key, value in document.items() if key != "digest"})
    assert documents[0] == documents[1]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    chosen, files, task = made_trial(tmp_path, {})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"^--to: cannot be written: [^\n]*file"):
        write_bundle(chosen, files, task, tmp_path / "file" / "bundle")
