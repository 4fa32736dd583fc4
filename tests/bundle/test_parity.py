from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from metasearch.bundle.contents import read_bundle
from metasearch.bundle.parity import FLOAT_TOLERANCE, compare, measured_parity, parting_layer, require_parity
from metasearch.bundle.program import open_program, write_program
from metasearch.errors import InputError
from metasearch.export import write_onnx
from metasearch.measure import predict
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import Linear, LoweredNetwork
from metasearch.models.module_network import deployable
from metasearch.quantize import QuantizedNetwork, quantize
from metasearch.run import Deployed
from tests.bundles import make_bundle
from tests.synthetic import synthetic_task

USERS = "tests.user_networks:smooth"
NETWORKS = [
    ("convnet", False), ("convnet", True), ("resnet", False), ("resnet", True), ("mobilenet", True), ("mlp", True),
    (USERS, False),
]  # fmt: skip


def deployed(family: str, int8: bool, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[Deployed, Tensor, Tensor]:
    """Return an untrained network to deploy, and validation data."""
    task = synthetic_task(shape=shape)
    model = build_network(NetworkSpec(family, 8, 2), input_shape=shape, classes=task.classes, seed=1).eval()
    network: Deployed = deployable(model, normalisation=task.normalisation, input_shape=shape)
    if int8:
        assert isinstance(network, LoweredNetwork)
        network = quantize(network, task.train.inputs)
    return network, task.validation.inputs, task.validation.labels


def corrupted(path: Path, tensor: str) -> None:
    """Turn the sign of a stored tensor."""
    model = onnx.load(path)
    (stored,) = [each for each in model.graph.initializer if each.name == tensor]
    stored.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(stored), tensor))
    onnx.save(model, path)


@pytest.mark.parametrize(("family", "int8"), NETWORKS)
def test_a_file_is_the_network_that_it_was_written_from(family: str, int8: bool, tmp_path: Path) -> None:
    network, inputs, labels = deployed(family, int8)
    write_onnx(network, tmp_path / "model.onnx")
    parity = require_parity(network, tmp_path / "model.onnx", inputs, labels, place="model", in_float=None)
    assert (parity.images, parity.top1_agreement) == (60, 1.0)
    assert parity.largest_difference <= (0.05 if int8 else FLOAT_TOLERANCE)
    assert parting_layer(network, tmp_path / "model.onnx", inputs, place="model") == "logits"


@pytest.mark.parametrize(
    ("family", "int8", "tensor", "layer"),
    [
        ("convnet", False, "convolution_3.weight", "convolution_3"),
        ("convnet", True, "convolution_3.weight", "convolution_3"),
        ("convnet", False, "normalisation.shift", "normalised"),
        ("mlp", False, "logits.weight", "logits"),
        ("mlp", True, "logits.weight", "logits"),
        (USERS, False, "module.blocks.1.weight", "conv2d_3"),
    ],
)
def test_a_changed_weight_is_refused_with_the_layer_that_it_changes(
    family: str, int8: bool, tensor: str, layer: str, tmp_path: Path
) -> None:
    network, inputs, labels = deployed(family, int8)
    write_onnx(network, tmp_path / "model.onnx")
    corrupted(tmp_path / "model.onnx", tensor)
    rule = rf"^model: is not the network that was trained: must give [^\n]*; they part at {layer}$"
    with pytest.raises(InputError, match=rule):
        require_parity(network, tmp_path / "model.onnx", inputs, labels, place="model")


@pytest.mark.parametrize(("family", "int8"), NETWORKS)
def test_a_program_of_torch_computes_what_the_network_does_for_any_batch(
    family: str, int8: bool, tmp_path: Path
) -> None:
    network, inputs, _ = deployed(family, int8)
    write_program(network, tmp_path / "model.pt2")
    program = open_program(tmp_path / "model.pt2")
    torch.testing.assert_close(predict(program, inputs, batch_size=7), predict(network, inputs), atol=1e-5, rtol=1e-5)
    assert program(inputs[:1]).shape == (1, 3)
    content = (tmp_path / "model.pt2").read_bytes()
    assert not [text for text in (str(tmp_path), str(Path.cwd()), "site-packages", ".py") if text.encode() in content]


def test_an_int8_program_stores_its_weights_in_a_byte_each(tmp_path: Path) -> None:
    network, _, _ = deployed("mlp", True, shape=(4000,))
    write_program(network, tmp_path / "model.pt2")
    assert isinstance(network, QuantizedNetwork)
    first = next(operation for operation in network.operations if isinstance(operation, Linear))
    assert first.weight.numel() < (tmp_path / "model.pt2").stat().st_size < 3 * first.weight.numel()


@pytest.mark.parametrize(
    ("int8", "shift", "same_class", "broken"),
    [
        (False, 0.9e-4, True, False),
        (False, 1.1e-4, True, True),
        (False, float("nan"), True, True),
        (True, 0.5, True, False),
        (True, 0.0, False, True),
    ],
)
def test_the_tolerance_is_of_logits_in_float_and_of_classes_in_int8(
    int8: bool, shift: float, same_class: bool, broken: bool
) -> None:
    reference = torch.eye(4).repeat(60, 1)
    found = reference + shift
    if not same_class:
        found[:2] = 1 - found[:2]  # 2 of 240: more than 0.5 %
    parity = measured_parity(found, reference, reference.argmax(dim=1), int8=int8)
    assert (parity.breach(int8=int8) is not None) == broken


@pytest.mark.parametrize(
    ("shift", "other_form", "broken"), [(0.9e-2, False, False), (1.1e-2, False, True), (1.9e-2, True, False)]
)
def test_large_logits_may_differ_by_as_much_of_their_size_and_two_exports_by_twice_that(
    shift: float, other_form: bool, broken: bool
) -> None:
    reference = 100 * torch.eye(4)
    parity = measured_parity(reference + shift, reference, torch.arange(4), int8=False, other_form=other_form)
    assert parity.tolerance == pytest.approx(2e-2 if other_form else 1e-2, rel=0.001)
    assert (parity.breach(int8=False) is not None) == broken


@pytest.mark.parametrize("outlier", [1e30, float("inf")])
def test_no_network_widens_the_tolerance_by_a_logit_of_its_own(outlier: float) -> None:
    reference = torch.eye(4)
    found = torch.full((4, 4), 0.5)
    found[0, 0] = outlier
    for a, b in ((found, reference), (reference, found)):
        assert measured_parity(a, b, torch.arange(4), int8=False).breach(int8=False) is not None


@pytest.mark.parametrize("config", [{"quantize": "none"}, {}])
def test_a_bundle_is_compared_with_its_own_program(config: dict[str, Any], tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path, config))
    task = synthetic_task()
    parity = compare(bundle, task.validation.inputs, task.validation.labels)
    assert parity.breach(int8=bundle.int8) is None
    assert parity.val_accuracy == bundle.parity["val_accuracy"]
    assert parity.float_agreement == bundle.parity.get("float_agreement")
