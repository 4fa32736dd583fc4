from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from metasearch.export import onnx_tensor_bytes, write_onnx
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import LoweredNetwork, lower
from metasearch.quantize import QuantizedNetwork, quantize
from metasearch.tasks.task import Normalisation

RUN_FILES = """
import sys
import numpy as np
import onnxruntime
for stem in sys.argv[1:]:
    session = onnxruntime.InferenceSession(stem + ".onnx", providers=["CPUExecutionProvider"])
    np.save(stem + ".logits.npy", session.run(["logits"], {"input": np.load(stem + ".inputs.npy")})[0])
"""
CONFIGURATIONS: dict[str, tuple[str, tuple[int, ...], int, int]] = {
    "convnet-grey-8": ("convnet", (1, 8, 8), 3, 1),
    "convnet-grey-28": ("convnet", (1, 28, 28), 6, 3),
    "convnet-rgb-16": ("convnet", (3, 16, 16), 16, 4),
    "convnet-rgb-50": ("convnet", (3, 50, 50), 5, 5),
    "mlp-grey-8": ("mlp", (1, 8, 8), 4, 2),
    "mlp-rgb-16": ("mlp", (3, 16, 16), 8, 3),
    "mlp-vector": ("mlp", (64,), 8, 1),
    "residual-rgb-12": ("residual", (3, 12, 12), 8, 2),
    "resnet-grey-16": ("resnet", (1, 16, 16), 6, 3),
    "mobilenet-rgb-16": ("mobilenet", (3, 16, 16), 8, 4),
}


class Block(nn.Module):
    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.last = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(x) + x)
        return result


def residual(channels: int, width: int, depth: int) -> nn.Module:
    blocks = [Block(width, relu=i % 2 == 1) for i in range(2 * depth)]
    stem = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def digits(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits as inputs at rest of the shape: enlarged and repeated bytes, or float32 vectors."""
    data = load_digits()
    labels = torch.tensor(data.target)
    if len(shape) == 1:
        return torch.tensor(data.data, dtype=torch.float32), labels
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] * 15.9
    images = nn.functional.interpolate(images, size=shape[1:], mode="bilinear").clamp(0, 255)
    return images.round().to(torch.uint8).repeat(1, shape[0], 1, 1), labels


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    lowered: LoweredNetwork
    quantized: QuantizedNetwork
    inputs: Tensor
    """Digits that were not trained on, then noise: 1,000 in all."""


def train(name: str) -> Trained:
    family, shape, width, depth = CONFIGURATIONS[name]
    torch.manual_seed(0)
    if family == "residual":
        model = residual(shape[0], width, depth)
    else:
        model = build_network(NetworkSpec(family, width, depth), input_shape=shape, classes=10, seed=0)
    inputs, labels = digits(shape)
    full = 255.0 if len(shape) == 3 else 16.0
    normalisation = Normalisation(
        tuple((2.5 + 0.2 * c % 1) / full for c in range(shape[0])), tuple(-0.9 + 0.05 * c % 1 for c in range(shape[0]))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)
    for _ in range(25):
        batch = torch.randint(0, 1200, (48,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(normalisation(inputs[batch])), labels[batch]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    model.eval()
    lowered = lower(model, normalisation=normalisation, input_shape=shape)
    noise = torch.rand(1000 - len(inputs[1200:]), *shape) * full
    evaluated = torch.cat([inputs[1200:], noise.to(inputs.dtype)])
    return Trained(model, lowered, quantize(lowered, inputs[:200]), evaluated)


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    return {name: train(name) for name in CONFIGURATIONS}


@pytest.fixture(scope="module")
def deployed_logits(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Return what onnxruntime makes of the exported files in a fresh process that knows nothing of this package."""
    folder = tmp_path_factory.mktemp("deployed")
    stems = []
    for name, networks in trained.items():
        for kind, network in (("float", networks.lowered), ("int8", networks.quantized)):
            stem = folder / f"{name}.{kind}"
            write_onnx(network, f"{stem}.onnx")
            np.save(f"{stem}.inputs.npy", networks.inputs.numpy())
            stems.append(stem)
    subprocess.run([sys.executable, "-I", "-c", RUN_FILES, *map(os.fspath, stems)], check=True, timeout=120)
    return {stem.name: np.load(f"{stem}.logits.npy") for stem in stems}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_float_file_in_a_fresh_process_agrees_with_the_module(
    name: str, trained: dict[str, Trained], deployed_logits: dict[str, np.ndarray]
) -> None:
    network = trained[name]
    with torch.no_grad():
        module = network.model(network.lowered.normalisation(network.inputs)).numpy()
    np.testing.assert_allclose(deployed_logits[f"{name}.float"], network.lowered(network.inputs), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(deployed_logits[f"{name}.float"], module, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_int8_file_in_a_fresh_process_reproduces_the_logits_of_the_trial(
    name: str, trained: dict[str, Trained], deployed_logits: dict[str, np.ndarray]
) -> None:
    ours, theirs = trained[name].quantized(trained[name].inputs).numpy(), deployed_logits[f"{name}.int8"]
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() >= 0.995
    if sys.platform == "linux" and os.uname().machine == "x86_64":  # elsewhere onnxruntime may round a tie otherwise
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_stored_tensors_of_the_file_are_exactly_those_counted(
    name: str, trained: dict[str, Trained], tmp_path: Path
) -> None:
    for network in (trained[name].lowered, trained[name].quantized):
        path = tmp_path / "network.onnx"
        write_onnx(network, path)
        assert onnx_tensor_bytes(path) == network.stored_bytes
        graph = onnx.load(os.fspath(path)).graph
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        expected = network.stored_tensors()
        assert stored.keys() == expected.keys()
        assert all(stored[key].dtype == expected[key].dtype for key in stored)
        assert all(np.array_equal(stored[key], expected[key]) for key in stored)
        assert not [node for node in graph.node if node.op_type == "Constant"]
        assert {key for node in graph.node for key in node.input} >= stored.keys()


def test_same_network_gives_the_same_bytes_and_no_path_or_comment(trained: dict[str, Trained], tmp_path: Path) -> None:
    paths = [tmp_path / "here" / "a.onnx", tmp_path / "elsewhere" / "b.onnx"]
    for path, network in zip(paths, (trained["convnet-grey-8"], train("convnet-grey-8")), strict=True):
        path.parent.mkdir()
        write_onnx(network.quantized, path)
    written = [path.read_bytes() for path in paths]
    assert written[0] == written[1]
    assert not [text for text in (os.fspath(tmp_path), os.getcwd(), "torch", ".py") if text.encode() in written[0]]
    model = onnx.load(os.fspath(paths[0]))
    assert not model.doc_string + model.graph.doc_string + "".join(node.doc_string for node in model.graph.node)
    assert os.listdir(tmp_path / "here") == ["a.onnx"]


def test_class_names_are_kept_in_the_metadata_and_change_nothing_else(
    trained: dict[str, Trained], tmp_path: Path
) -> None:
    network, names = trained["mlp-vector"].quantized, ("T-shirt/top", "ä", '"')
    for name, given in (("plain", ()), ("named", names), ("again", names)):
        write_onnx(network, tmp_path / name, class_names=given)
    named = onnx.load(os.fspath(tmp_path / "named"))
    assert [(entry.key, json.loads(entry.value)) for entry in named.metadata_props] == [("classes", list(names))]
    assert (tmp_path / "again").read_bytes() == (tmp_path / "named").read_bytes()
    del named.metadata_props[:]
    assert named == onnx.load(os.fspath(tmp_path / "plain"))
    session = onnxruntime.InferenceSession(os.fspath(tmp_path / "named"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(names)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(trained: dict[str, Trained], tmp_path: Path) -> None:
    target = tmp_path / "network.onnx"
    target.mkdir()
    with pytest.raises(OSError, match=r"network\.onnx"):
        write_onnx(trained["mlp-vector"].lowered, target)
    assert os.listdir(tmp_path) == ["network.onnx"]


@pytest.mark.parametrize(
    "name", ["convnet-rgb-16", "residual-rgb-12", "mlp-rgb-16", "resnet-grey-16", "mobilenet-rgb-16"]
)
def test_onnxruntime_runs_every_int8_layer_on_integers(name: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    path, optimized = tmp_path / "network.onnx", tmp_path / "optimized.onnx"
    write_onnx(trained[name].quantized, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = os.fspath(optimized)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(os.fspath(optimized)).graph.node)
    assert kinds["QuantizeLinear"] == 1
    assert not kinds.keys() & {"DequantizeLinear", "Conv", "FusedConv", "Gemm", "MatMul", "GlobalAveragePool"}
    assert kinds["Add"] == 1  # the normalisation's; residual sums are QLinearAdd


def test_one_image_gives_the_logits_that_it_gives_in_a_batch(trained: dict[str, Trained], tmp_path: Path) -> None:
    network = trained["convnet-rgb-16"]
    write_onnx(network.quantized, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(os.fspath(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    ours = network.quantized(network.inputs[:5]).numpy()
    theirs = [session.run(None, {"input": network.inputs[i : i + 1].numpy()})[0] for i in range(5)]
    np.testing.assert_array_equal(ours, np.concatenate(theirs))


def test_dead_and_saturating_layers_run_alike_in_onnxruntime(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 140, 3), nn.ReLU(), nn.Conv2d(140, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("2.weight")[0].fill_(1.0)  # sums beyond 2^24
        model.get_parameter("2.weight")[1].fill_(0.0)  # a dead channel
        model.get_parameter("4.weight").fill_(-1.0)
        model.get_parameter("4.bias").fill_(-1.0)  # a dead activation
    lowered = lower(model, normalisation=Normalisation((1 / 255,), (0.0,)), input_shape=(1, 12, 12))
    images = torch.randint(0, 256, (40, 1, 12, 12), dtype=torch.uint8)
    quantized = quantize(lowered, images)
    write_onnx(quantized, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(os.fspath(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"input": images.numpy()})[0], quantized(images).numpy())
