from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from metasearch.errors import InputError
from metasearch.export import onnx_tensor_bytes, write_onnx
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import LoweredNetwork
from metasearch.models.module_network import ModuleNetwork, deployable, require_int8
from metasearch.models.weights import load_weights
from metasearch.pipeline import ONNX_FILE, WEIGHTS_FILE, run_pipeline
from tests.synthetic import knowing_teacher, synthetic_task

TASK = synthetic_task()


def network(family: str) -> nn.Module:
    model = build_network(NetworkSpec(family, width=4, depth=2), input_shape=TASK.input_shape, classes=3, seed=0)
    model(TASK.normalisation(TASK.train.inputs))  # moves the statistics of BatchNorm
    return model.eval()


def deployed(family: str) -> LoweredNetwork | ModuleNetwork:
    return deployable(network(family), normalisation=TASK.normalisation, input_shape=TASK.input_shape)


def test_a_network_of_known_layers_is_lowered_whoever_wrote_it() -> None:
    assert isinstance(deployed("resnet"), LoweredNetwork)
    plain = deployed("tests.user_networks:plain")
    assert isinstance(plain, LoweredNetwork)
    assert require_int8(plain) is plain


def test_any_other_network_is_deployed_as_it_is() -> None:
    model = network("tests.user_networks:smooth").train()
    before = copy.deepcopy(model.state_dict())
    other = deployable(model, normalisation=TASK.normalisation, input_shape=TASK.input_shape)
    assert isinstance(other, ModuleNetwork)
    inputs = TASK.validation.inputs
    with torch.no_grad():
        logits = other(inputs)
        torch.testing.assert_close(logits, model.eval()(TASK.normalisation(inputs)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    parameters = sum(p.numel() for p in model.parameters())
    assert other.stored_bytes == 4 * (parameters + 2 * 4 + 2)  # BatchNorm's statistics, scale and shift


def test_int8_for_a_layer_that_has_none_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"^quantize: int8 needs layers of: Conv2d, .*layer 1 \(GELU\)") as refusal:
        require_int8(deployed("tests.user_networks:grouped"))
    assert "\n" not in str(refusal.value)
    convolution = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    lowered = deployable(convolution, normalisation=TASK.normalisation, input_shape=TASK.input_shape)
    with pytest.raises(InputError, match=r"^quantize: int8 needs layers of: .*the last is a Flatten"):
        require_int8(lowered)


def test_int8_is_refused_before_anything_is_trained() -> None:
    def fail(report: object) -> None:
        raise AssertionError

    config: dict[str, Any] = {"student.family": "tests.user_networks:smooth", "student.width": 3, "alpha": 0}
    with pytest.raises(InputError, match=r"^quantize: int8 needs layers of"):
        run_pipeline(TASK, config, report=fail)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "grouped"])
def test_the_pruned_network_of_a_user_is_measured_saved_and_exported(name: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "student.family": f"tests.user_networks:{name}",
        "student.width": 4,
        "student.depth": 1,
        "epochs": 2,
        "fine_tune_epochs": 1,
        "pruning_ratio": 0.4,
        "quantize": "none",
    }
    result = run_pipeline(TASK, config, teacher=knowing_teacher(TASK), save_to=tmp_path)
    assert result.details["channels_removed"] >= 0.4
    session = onnxruntime.InferenceSession(str(tmp_path / ONNX_FILE), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"input": TASK.validation.inputs.numpy()})
    model = load_weights(tmp_path / WEIGHTS_FILE, family=config["student.family"])
    with torch.no_grad():
        ours = model(TASK.normalisation(TASK.validation.inputs)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-4)
    accuracy = float((theirs.argmax(1) == TASK.validation.labels.numpy()).mean())
    assert accuracy == pytest.approx(result.metrics["val_accuracy"], abs=0.02)
    assert onnx_tensor_bytes(tmp_path / ONNX_FILE) == pytest.approx(result.metrics["model_bytes"], rel=0.01)


@pytest.mark.slow
def test_the_exported_file_holds_no_path_and_no_source_line(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_onnx(deployed("tests.user_networks:smooth"), path)
    content = path.read_bytes()
    here = str(Path(__file__).parent).encode()
    assert not [text for text in (str(tmp_path).encode(), here, b".py", b"forward", b"File ") if text in content]
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
