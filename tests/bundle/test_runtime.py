from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metasearch.bundle import bench as bench_module
from metasearch.bundle import graph
from metasearch.bundle.contents import PROGRAM, read_bundle
from metasearch.bundle.runtime import Classifier, check_model, open_bundle
from metasearch.bundle.subjects import subjects_of
from metasearch.errors import InputError
from metasearch.teachers.exported import open_exported
from tests.bundle.stand_ins import write_stand_in
from tests.serving.asking import make_bundle
from tests.synthetic import synthetic_task


@pytest.mark.parametrize(
    ("shape", "family", "int8"), [((1, 8, 8), "convnet", False), ((3, 8, 8), "mobilenet", True), ((6,), "mlp", False)]
)
def test_a_bundle_classifies_as_its_exported_program_does(
    shape: tuple[int, ...], family: str, int8: bool, tmp_path: Path
) -> None:
    written = write_stand_in(tmp_path / "bundle", shape=shape, family=family, int8=int8)
    opened = open_bundle(tmp_path / "bundle")
    assert opened.bundle == written == read_bundle(tmp_path / "bundle")
    inputs = synthetic_task(shape=shape).test.inputs
    module = open_exported(written.path(PROGRAM), place="program", device=torch.device("cpu")).module
    logits = module(inputs).detach().numpy()
    np.testing.assert_allclose(opened.logits(inputs.numpy()), logits, atol=1e-4)
    classified = opened.classify(inputs.numpy())
    assert [name for name, _ in classified] == [written.class_names[i] for i in logits.argmax(axis=1)]
    probabilities = torch.from_numpy(logits).softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose([probability for _, probability in classified], probabilities, atol=1e-4)


def test_a_network_takes_so_many_inputs_at_once() -> None:
    sizes = []

    class Session:
        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            sizes.append(len(inputs["input"]))
            return [inputs["input"][:, :3]]

    rows = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    np.testing.assert_array_equal(Classifier(make_bundle(shape=(6,)), Session(), 4).logits(rows), rows[:, :3])
    assert sizes == [4, 4, 2]


def test_a_network_that_computes_much_takes_fewer_inputs_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stand_in(tmp_path / "bundle")
    opened = open_bundle(tmp_path / "bundle", batch=9)
    _, values = check_model(opened.bundle)
    assert (opened.batch, values > 64) == (9, True)
    monkeypatch.setattr(graph, "MOST_VALUES", 5 * (values + 64))
    assert open_bundle(tmp_path / "bundle", batch=9).batch == 5
    [subject] = subjects_of([tmp_path / "bundle"])
    assert subject.values == values
    assert bench_module._batches(subject, 64) == [1, 4, 5]


def test_a_file_that_is_replaced_while_it_is_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.onnx: cannot be read \(No such file"):
        check_model(replace(make_bundle(), folder=tmp_path))
