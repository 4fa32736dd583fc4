from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metasearch.export import write_onnx
from metasearch.latency.network import works_of
from metasearch.latency.profile import profiled
from metasearch.latency.work import DENSE, DEPTHWISE, INPUT, LINEAR, OTHER, POINTWISE, Work
from metasearch.measure import count_macs
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import LoweredNetwork, lower
from metasearch.models.module_network import ModuleNetwork
from metasearch.quantize import QuantizedNetwork, quantize
from metasearch.tasks.task import Normalisation
from tests.networks import lived_in

NORMALISATION = Normalisation((1 / 80, 1 / 90), (-1.3, -1.0))
SHAPE = (2, 12, 10)
SPECS = ["convnet:width=5,depth=4", "mobilenet:width=4,depth=3", "resnet:width=4,depth=4", "mlp:width=3,depth=3"]


def deployed(spec: str, *, int8: bool) -> LoweredNetwork | QuantizedNetwork:
    model = build_network(NetworkSpec.parse(spec), input_shape=SHAPE, classes=7, seed=0)
    lowered = lower(lived_in(model), normalisation=NORMALISATION, input_shape=SHAPE)
    inputs = torch.randint(0, 256, (16, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return quantize(lowered, inputs) if int8 else lowered


def by_hand(path: Path) -> Counter[tuple[str, int, int]]:
    """Return kind, MACs and values moved of each convolution and linear layer, from ONNX's own shape inference."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [dimension.dim_value or 1 for dimension in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = Counter[tuple[str, int, int]]()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        read, weight, made = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        per_value = math.prod(weight[1:])  # products in one value of the output, by the definition of both operators
        kind = LINEAR if node.op_type == "Gemm" else DEPTHWISE if group > 1 else DENSE
        kind = POINTWISE if kind == DENSE and per_value == weight[1] else kind
        found[kind, per_value * math.prod(made), math.prod(read) + math.prod(weight) + math.prod(made)] += 1
    return found


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_works_are_those_of_the_onnx_graphs_own_shapes(spec: str, int8: bool, tmp_path: Path) -> None:
    network = deployed(spec, int8=int8)
    write_onnx(network, tmp_path / "model.onnx")
    size = 1 if int8 else 4
    weighted = [work for work in works_of(network) if work.macs]
    assert Counter((w.kind, w.macs, w.moved // size) for w in weighted) == by_hand(tmp_path / "model.onnx")


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_a_profile_finds_the_works_of_the_network_and_times_them(spec: str, int8: bool, tmp_path: Path) -> None:
    network = deployed(spec, int8=int8)
    write_onnx(network, tmp_path / "model.onnx")
    found = profiled(tmp_path / "model.onnx", np.zeros((1, *SHAPE), np.uint8), runs=3)
    assert Counter(layer.work for layer in found) == Counter(works_of(network))
    timed = [layer for layer in found if layer.work.macs]
    assert all(layer.ms is not None and layer.ms > 0 and layer.nodes >= 1 for layer in timed)


@pytest.mark.parametrize("spec", SPECS)
def test_works_sum_to_the_macs_that_torch_counts(spec: str) -> None:
    model = build_network(NetworkSpec.parse(spec), input_shape=SHAPE, classes=7, seed=0)
    assert sum(work.macs for work in works_of(deployed(spec, int8=False))) == count_macs(model, SHAPE)


def test_int8_moves_a_quarter_of_the_bytes() -> None:
    whole, quarter = (works_of(deployed(SPECS[1], int8=int8)) for int8 in (False, True))
    assert [work.moved for work in whole[1:]] == [4 * work.moved for work in quarter[1:]]
    assert (whole[0].kind, whole[0].moved, quarter[0].moved) == (INPUT, 5 * 240, 2 * 240)


def test_a_module_without_a_lowered_form_gives_the_works_of_its_layers() -> None:
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.GELU(), nn.Flatten(), nn.Linear(6 * 10 * 8, 7))
    works = works_of(ModuleNetwork(NORMALISATION, SHAPE, module.eval(), "GELU"))
    assert [work.kind for work in works] == [INPUT, DENSE, OTHER, LINEAR]
    assert sum(work.macs for work in works) == count_macs(module, SHAPE)


@given(
    st.builds(
        Work,
        kind=st.sampled_from([DENSE, LINEAR, INPUT]),
        int8=st.booleans(),
        macs=st.integers(0, 10**9),
        moved=st.integers(0, 10**9),
        channels=st.tuples(st.integers(0, 512), st.integers(0, 512)),
    )
)
def test_a_work_comes_back_from_its_short_form(work: Work) -> None:
    assert Work.from_plain(work.plain()) == work
