"""ONNX files that a stranger made, in bundles whose hashes fit them."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from metasearch.bundle import graph
from metasearch.bundle.contents import MODEL, read_bundle
from metasearch.bundle.graph import MOST_VALUES, check_sizes, parse_graph
from metasearch.bundle.runtime import check_model, open_bundle
from metasearch.errors import InputError, MetasearchError
from metasearch.export import write_onnx
from metasearch.models.module_network import ModuleNetwork, deployable
from metasearch.tasks import Normalisation
from tests.bundle.forged import forge


def graph_of(
    nodes: Sequence[NodeProto], tensors: Sequence[TensorProto] = (), *, domains: Sequence[tuple[str, int]] = ()
) -> ModelProto:
    """Return a model of (batch, 1, 8, 8) uint8 to (batch, 3): `nodes` make what is added to its logits, `spoil`."""
    mean = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["scores"]),
    ]
    last = helper.make_node("Add", ["scores", "spoil"], ["logits"])
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "weight")
    return helper.make_model(
        helper.make_graph(
            [*mean, *nodes, last],
            "spoilt",
            [helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [weight, *tensors],
        ),
        opset_imports=[helper.make_opsetid("", 20), *(helper.make_opsetid(*domain) for domain in domains)],
        ir_version=9,
    )


def numbers(name: str, values: Sequence[int] | Sequence[float]) -> TensorProto:
    return numpy_helper.from_array(np.array(values), name)


def spoil(kind: str, inputs: Sequence[str], domain: str = "") -> NodeProto:
    return helper.make_node(kind, list(inputs), ["spoil"], domain=domain)


def harmless() -> ModelProto:
    return graph_of([], [numpy_helper.from_array(np.zeros(3, np.float32), "spoil")])


def outside_tensor() -> ModelProto:
    tensor = TensorProto(name="spoil", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return graph_of([], [tensor])


def outside_tensor_in_an_attribute() -> ModelProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return graph_of([helper.make_node("Constant", [], ["spoil"], value=tensor)])


def outside_tensor_without_its_flag() -> ModelProto:
    model = harmless()
    model.graph.initializer[1].external_data.add(key="location", value="/etc/passwd")
    return model


def custom_operator() -> ModelProto:
    return graph_of([spoil("Shell", ["scores"], "evil")], domains=[("evil", 1)])


def operator_of_onnxruntime() -> ModelProto:
    return graph_of([spoil("FusedGemm", ["flat", "weight"], "com.microsoft")], domains=[("com.microsoft", 1)])


def operator_of_classical_learning() -> ModelProto:
    return graph_of([spoil("Normalizer", ["scores"], "ai.onnx.ml")], domains=[("ai.onnx.ml", 4)])


def our_function_that_is_not_there() -> ModelProto:
    return graph_of([spoil("Unpack", ["scores"], "metasearch")], domains=[("metasearch", 1)])


def function_of(name: str, nodes: Sequence[NodeProto]) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("metasearch", 1)]
    return helper.make_function("metasearch", name, ["x"], ["y"], list(nodes), opsets)


def functions_that_double() -> ModelProto:
    model = graph_of([spoil("Double0", ["scores"], "metasearch")], domains=[("metasearch", 1)])
    for level in range(40):
        calls = [helper.make_node(f"Double{level + 1}", [x], [y], domain="metasearch") for x, y in ("xa", "ay")]
        model.functions.append(function_of(f"Double{level}", calls))
    model.functions.append(function_of("Double40", [helper.make_node("Identity", ["x"], ["y"])]))
    return model


def function_that_calls_itself() -> ModelProto:
    model = graph_of([spoil("Unpack", ["scores"], "metasearch")], domains=[("metasearch", 1)])
    model.functions.append(function_of("Unpack", [helper.make_node("Unpack", ["x"], ["y"], domain="metasearch")]))
    return model


def function_that_fills_memory() -> ModelProto:
    model = graph_of(
        [helper.make_node("Unpack", ["shape"], ["spoil"], domain="metasearch")],
        [numbers("shape", [2**20, 2**20])],
        domains=[("metasearch", 1)],
    )
    fill = helper.make_node("ConstantOfShape", ["x"], ["filled"])
    model.functions.append(function_of("Unpack", [fill, helper.make_node("ReduceSum", ["filled"], ["y"], keepdims=0)]))
    return model


def function_of_another_opset() -> ModelProto:
    model = graph_of(
        [helper.make_node("Unpack", ["shape"], ["spoil"], domain="metasearch")],
        [numbers("shape", [2**20, 2**14])],
        domains=[("metasearch", 1)],
    )
    one = helper.make_node("Constant", [], ["one"], value_float=1.0)
    filled = helper.make_node("Expand", ["one", "x"], ["filled"])
    total = helper.make_node("ReduceSum", ["filled"], ["y"], keepdims=0)
    model.functions.append(function_of("Unpack", [one, filled, total]))
    model.functions[0].opset_import[0].version = 19
    return model


def many_calls() -> ModelProto:
    calls = [helper.make_node("Unpack", ["weight"], [f"v{i}"], domain="metasearch") for i in range(1000)]
    model = graph_of([*calls, spoil("Identity", ["v0"])], domains=[("metasearch", 1)])
    model.functions.append(function_of("Unpack", [helper.make_node("Identity", ["x"], ["y"])] * 1000))
    return model


def branch() -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["out"])],
        "body",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["yes"], ["spoil"], then_branch=body, else_branch=body)
    return graph_of([node], [numbers("yes", [True])])


def loop() -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    times, yes = numpy_helper.from_array(np.array(2**62), "times"), numpy_helper.from_array(np.array(True), "yes")
    return graph_of([helper.make_node("Loop", ["times", "yes", "scores"], ["spoil"], body=body)], [times, yes])


def constant_of_a_terabyte() -> ModelProto:
    filled = helper.make_node("ConstantOfShape", ["shape"], ["filled"])
    total = helper.make_node("ReduceSum", ["filled"], ["spoil"], keepdims=0)
    return graph_of([filled, total], [numbers("shape", [2**20, 2**18])])


def many_constants_of_a_gigabyte() -> ModelProto:
    fills = [helper.make_node("ConstantOfShape", ["shape"], [f"filled{i}"]) for i in range(64)]
    sums = [helper.make_node("ReduceSum", [f"filled{i}"], [f"sum{i}"], keepdims=0) for i in range(64)]
    return graph_of([*fills, *sums, spoil("Sum", [f"sum{i}" for i in range(64)])], [numbers("shape", [2**27])])


def outer_product() -> ModelProto:
    tall = helper.make_node("Expand", ["one", "tall"], ["column"])
    wide = helper.make_node("Expand", ["one", "wide"], ["row"])
    product = helper.make_node("MatMul", ["column", "row"], ["product"])
    total = helper.make_node("ReduceMax", ["product"], ["spoil"], keepdims=0)
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    return graph_of([tall, wide, product, total], [one, numbers("tall", [10**6, 1]), numbers("wide", [1, 10**6])])


def doubling_concatenation() -> ModelProto:
    doubled = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(40)]
    first = helper.make_node("Identity", ["weight"], ["v0"])
    total = helper.make_node("ReduceMax", ["v40"], ["spoil"], keepdims=0)
    return graph_of([first, *doubled, total])


def size_that_depends_on_the_image() -> ModelProto:
    places = helper.make_node("NonZero", ["input"], ["places"])
    floats = helper.make_node("Cast", ["places"], ["cast"], to=TensorProto.FLOAT)
    total = helper.make_node("ReduceSum", ["cast"], ["spoil"], keepdims=0)
    return graph_of([places, floats, total])


def long_range() -> ModelProto:
    bounds = [numpy_helper.from_array(np.array(value), name) for name, value in zip("abc", (0, 10**12, 1), strict=True)]
    count = helper.make_node("Range", ["a", "b", "c"], ["counted"])
    floats = helper.make_node("Cast", ["counted"], ["cast"], to=TensorProto.FLOAT)
    return graph_of([count, floats, helper.make_node("ReduceMax", ["cast"], ["spoil"], keepdims=0)], bounds)


def sparse_tensor() -> ModelProto:
    model = graph_of([])
    values, places = numbers("spoil", [1.0]), numbers("places", [5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**40]))
    return model


def sparse_constant() -> ModelProto:
    sparse = helper.make_sparse_tensor(numbers("v", [1.0]), numbers("i", [5]), [2**40])
    return graph_of([helper.make_node("Constant", [], ["spoil"], sparse_value=sparse)])


def tensor_larger_than_its_bytes() -> ModelProto:
    tensor = TensorProto(name="spoil", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"\0" * 12)
    return graph_of([helper.make_node("Identity", ["huge"], ["spoil2"])], [tensor])


def training_part() -> ModelProto:
    model = harmless()
    model.training_info.add()
    return model


def many_nodes() -> ModelProto:
    nodes = [helper.make_node("Identity", ["scores" if i == 0 else f"v{i}"], [f"v{i + 1}"]) for i in range(50_001)]
    return graph_of([*nodes, spoil("Identity", ["v50001"])])


def no_input() -> ModelProto:
    model = harmless()
    del model.graph.input[:]
    return model


def two_inputs() -> ModelProto:
    model = harmless()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch"]))
    return model


def fixed_batch() -> ModelProto:
    model = harmless()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def float_input() -> ModelProto:
    model = harmless()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def other_size() -> ModelProto:
    model = harmless()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 9
    return model


def other_number_of_classes() -> ModelProto:
    model = harmless()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return model


def other_opset() -> ModelProto:
    model = harmless()
    model.opset_import[0].version = 19
    return model


def other_classes() -> ModelProto:
    model = harmless()
    helper.set_model_props(model, {"classes": '["cat", "dog", "cow"]'})
    return model


def unknown_operator() -> ModelProto:
    return graph_of([spoil("Shell", ["scores"])])


def cycle() -> ModelProto:
    return graph_of([spoil("Identity", ["logits"])])


SPOILT: dict[Callable[[], ModelProto], str] = {
    outside_tensor: "must hold its tensors itself, got one in another file, .*/etc/passwd",
    outside_tensor_in_an_attribute: "must hold its tensors itself",
    outside_tensor_without_its_flag: "must hold its tensors itself",
    custom_operator: "must have operators of the ONNX standard and metasearch.Unpack only, got 'evil' 'Shell'",
    operator_of_onnxruntime: "got 'com.microsoft' 'FusedGemm'",
    operator_of_classical_learning: "got 'ai.onnx.ml' 'Normalizer'",
    our_function_that_is_not_there: "got 'metasearch' 'Unpack'",
    functions_that_double: "must define no function but metasearch.Unpack",
    function_that_calls_itself: "got 'metasearch' 'Unpack'",
    function_that_fills_memory: f"must compute at most {MOST_VALUES} numbers for an input, got .* of 'ConstantOfShape'",
    function_of_another_opset: "metasearch.Unpack must be of the opset of its graph",
    many_calls: "must have at most 50000 nodes, those of each call of Unpack included",
    branch: "must have neither branches nor loops, got 'If'",
    loop: "must have neither branches nor loops, got 'Loop'",
    constant_of_a_terabyte: f"must compute at most {MOST_VALUES} numbers for an input",
    many_constants_of_a_gigabyte: f"must compute at most {MOST_VALUES} numbers for an input",
    outer_product: f"must compute at most {MOST_VALUES} numbers for an input",
    doubling_concatenation: f"must compute at most {MOST_VALUES} numbers for an input",
    size_that_depends_on_the_image: "must have values of known sizes only, got 'places' of 'NonZero'",
    long_range: f"must compute at most {MOST_VALUES} numbers|must have values of known sizes only",
    sparse_tensor: "must not hold sparse tensors",
    sparse_constant: "must not hold sparse tensors",
    tensor_larger_than_its_bytes: "does not pass ONNX's checker",
    training_part: "must not hold a part for training",
    many_nodes: "must have at most 50000 nodes",
    no_input: "must have one input of any number",
    two_inputs: "must have one input of any number",
    fixed_batch: "must have one input of any number",
    float_input: "must have one input of any number",
    other_size: "must have one input of any number",
    other_number_of_classes: "must have one logits of any number",
    other_opset: "must be of opset 20, as bundle.json says, got",
    other_classes: "must name the classes of bundle.json",
    unknown_operator: "does not pass ONNX's checker",
    cycle: "does not pass ONNX's checker",
}


def test_the_graph_that_the_others_spoil_is_opened(stand_in: Path) -> None:
    forge(stand_in, {MODEL: harmless().SerializeToString()})
    images = np.full((5, 1, 8, 8), 3, np.uint8)
    np.testing.assert_allclose(open_bundle(stand_in).logits(images), np.full((5, 3), 3.0))


@pytest.mark.parametrize("make", SPOILT, ids=lambda make: make.__name__)
def test_a_spoilt_graph_is_refused_before_it_is_opened(make: Callable[[], ModelProto], stand_in: Path) -> None:
    forge(stand_in, {MODEL: make().SerializeToString()})
    with pytest.raises(InputError, match=re.escape(MODEL)) as refused:
        check_model(read_bundle(stand_in))
    assert re.search(SPOILT[make], str(refused.value))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95pickled", b"GGUF", b"\x0a" * 10_000, b"PK\x03\x04"])
def test_what_is_no_onnx_file_is_refused(content: bytes, stand_in: Path) -> None:
    forge(stand_in, {MODEL: content})
    with pytest.raises(InputError, match=r"model\.onnx: (is no ONNX file|must be of opset)"):
        open_bundle(stand_in)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_random_damage_with_fitting_hashes_is_refused_or_still_a_network(
    data: st.DataObject, pristine: Path, stand_in: Path
) -> None:
    changed = bytearray((pristine / MODEL).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    forge(stand_in, {MODEL: bytes(changed)})
    try:
        logits = open_bundle(stand_in).logits(np.zeros((3, 1, 8, 8), np.uint8))
    except MetasearchError:
        return
    assert logits.shape == (3, 3)


def many_outer_sums() -> ModelProto:
    tall, wide = np.ones((1024, 1), np.int64), np.ones((1, 1024), np.int64)
    sums = [helper.make_node("Add", ["tall", "wide"], [f"v{i}"]) for i in range(300)]
    tensors = [numpy_helper.from_array(tall, "tall"), numpy_helper.from_array(wide, "wide")]
    return graph_of([*sums, helper.make_node("Identity", ["weight"], ["spoil"])], tensors)


def long_concatenation() -> ModelProto:
    joined = helper.make_node("Concat", ["few"] * 300_000, ["joined"], axis=0)
    tensors = [numpy_helper.from_array(np.ones(1024, np.float32), "few")]
    return graph_of([joined, helper.make_node("ReduceMax", ["joined"], ["spoil"], keepdims=0)], tensors)


@pytest.mark.parametrize("make", [many_outer_sums, long_concatenation], ids=lambda make: make.__name__)
def test_what_is_made_of_few_numbers_is_not_made_where_it_is_large(make: Callable[[], ModelProto]) -> None:
    model = make()
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"must compute at most {MOST_VALUES} numbers for an input"):
        check_sizes(model)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 * 2**20


def test_sizes_that_come_out_one_after_the_other_are_found_in_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, nodes = 20, []
    for level, value in enumerate(["floats", *(f"v{i}" for i in range(levels - 1))]):
        nodes += [helper.make_node("Shape", [value], [f"s{level}"])]
        nodes += [helper.make_node("Reshape", [value, f"s{level}"], [f"v{level}"])]
    model = graph_of([*nodes, helper.make_node("ReduceMax", [f"v{levels - 1}"], ["spoil"], keepdims=0)])
    assert check_sizes(model) > levels * 64
    monkeypatch.setattr(graph, "MOST_INFERRED", 3 * len(nodes))
    with pytest.raises(ValueError, match="its sizes are not known after 120 steps"):
        check_sizes(model)


def test_a_file_that_changes_after_the_bundle_was_read_is_refused(stand_in: Path) -> None:
    bundle = read_bundle(stand_in)
    (stand_in / MODEL).write_bytes(harmless().SerializeToString())
    with pytest.raises(InputError, match="was changed since the bundle was read"):
        check_model(bundle)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.linear = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.convolution(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        logits: Tensor = self.linear((tokens + self.attention(tokens, tokens, tokens)[0]).mean(dim=1))
        return logits


class GroupsAndResize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect")
        self.norm, self.linear = nn.GroupNorm(2, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.interpolate(nn.functional.silu(self.norm(self.convolution(images))), scale_factor=2)
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("build", [Attention, GroupsAndResize])
def test_networks_that_torch_exports_have_known_sizes(build: type[nn.Module], tmp_path: Path) -> None:
    network = deployable(build().eval(), normalisation=Normalisation((1 / 255,), (0.0,)), input_shape=(1, 12, 12))
    assert isinstance(network, ModuleNetwork)
    write_onnx(network, tmp_path / MODEL)
    model = parse_graph((tmp_path / MODEL).read_bytes())
    check_sizes(model)
