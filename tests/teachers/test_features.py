"""A teacher's features at places that the user names, in a module, an exported program and an ONNX graph."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.objective import FEATURE_LOSSES, features_to_teach
from metasearch.taps import Features
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import Augmentation
from metasearch.teachers import Teacher, TeacherMember, TeacherSource, check_teacher, open_teacher, teacher_for
from tests.synthetic import synthetic_task, with_augmentation

TASK = synthetic_task(shape=(3, 8, 8), counts=(24, 6, 11))
NAMES = {
    "module": ("first", "bent", "embed"),
    "pt2": ("conv2d", "relu", "flatten"),
    "onnx": ("/first/Conv", "/bent/Relu", "/embed/Flatten"),
}
"""The same three places of `network()`, as each kind of teacher names them."""
KINDS = sorted(NAMES)


def network() -> nn.Module:
    """Two maps and an embedding, where a layer in place follows the first map; a layer that is never called."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "first": nn.Conv2d(3, 4, 3, padding=1),
        "over": nn.ReLU(inplace=True),
        "second": nn.Conv2d(4, 6, 3, stride=2, padding=1),
        "bent": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "embed": nn.Flatten(),
        "head": nn.Linear(6, 3),
    }
    layers["head"].add_module("unused", nn.Identity())
    return nn.Sequential(OrderedDict(layers)).eval()


def member(kind: str, folder: Path, *, batch: int | None = None) -> TeacherMember:
    """Return the network of `network()` as a teacher of a kind. batch: that a file is made for, None for any."""
    model = network()
    if kind == "module":
        return TeacherMember(f"{__name__}:network", "own")
    path = folder / f"m.{kind}"
    if kind == "pt2":
        shapes = None if batch else ({0: torch.export.Dim("batch")},)
        example = torch.zeros(batch or 2, *TASK.input_shape)
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)
    else:
        write_onnx(model, path, batch or "batch")
    return TeacherMember(str(path))


def write_onnx(model: nn.Module, path: Path, batch: int | str) -> None:
    """Write the graph of `network()` with values that are no features beside it, its weights in a file of their own."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["/first/Conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["/first/Conv"], ["/over/Relu"]),
        helper.make_node(
            "Conv", ["/over/Relu", "second.weight", "second.bias"], ["/second/Conv"], pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["/second/Conv"], ["/bent/Relu"]),
        helper.make_node("GlobalAveragePool", ["/bent/Relu"], ["/pool"]),
        helper.make_node("Flatten", ["/pool"], ["/embed/Flatten"]),
        helper.make_node("Gemm", ["/embed/Flatten", "head.weight", "head.bias"], ["y"], transB=1),
        helper.make_node("ReduceMean", ["/embed/Flatten", "zero"], ["/mean"], keepdims=1),
        helper.make_node("SplitToSequence", ["/embed/Flatten"], ["/parts"]),
    ]
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    stored.append(helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *TASK.input_shape])
    graph = helper.make_graph(
        nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save_model(made, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)


def source(kind: str, folder: Path, *, batch: int | None = None) -> TeacherSource:
    return TeacherSource((member(kind, folder, batch=batch),), features=NAMES[kind])


@torch.no_grad()
def expected(inputs: Tensor) -> Features:
    """Return the features by calling the layers."""
    layers = network().get_submodule
    first = layers("first")(TASK.normalisation(inputs))
    bent = layers("second")(first.relu()).relu()
    return Features({"first": first, "bent": bent}, bent.mean(dim=(2, 3)))


def assert_taught(teacher: Teacher, split: str, inputs: Tensor) -> None:
    """Assert that what is kept of (V, N, ...) is the features of all V * N inputs."""
    wanted = {f"{split}.{name}": values for name, values in features_to_teach(expected(inputs)).items()}
    kept = {name: values for name, values in teacher.features.items() if name.startswith(split)}
    assert kept.keys() == wanted.keys() == {f"{split}.{n}" for n in ("attention.0", "attention.1", "hint", "embedding")}
    for name, values in kept.items():
        torch.testing.assert_close(values.flatten(0, 1), wanted[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_values_are_what_the_layers_make(kind: str, tmp_path: Path) -> None:
    opened = open_teacher(member(kind, tmp_path), TASK, features=NAMES[kind])
    with torch.inference_mode():
        shown, logits = opened.features(TASK.test.inputs), opened.logits(TASK.test.inputs)
    wanted = expected(TASK.test.inputs)
    assert tuple(shown.maps) == NAMES[kind][:2]
    for values, reference in zip(shown.maps.values(), wanted.maps.values(), strict=True):
        torch.testing.assert_close(values, reference, atol=1e-3, rtol=1e-3)
    assert shown.embedding is not None
    torch.testing.assert_close(shown.embedding, wanted.embedding, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits, network()(TASK.normalisation(TASK.test.inputs)).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_places_of_every_kind_of_teacher_teach_the_same(kind: str, tmp_path: Path) -> None:
    teacher = teacher_for(TASK, source(kind, tmp_path), features=FEATURE_LOSSES)
    assert_taught(teacher, "train", TASK.train.inputs)
    assert teacher.teaching("train", loss="at").keys() == {"logits", "attention.0", "attention.1"}


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_for_a_fixed_batch_shows_the_features_of_every_input(kind: str, tmp_path: Path) -> None:
    teacher = teacher_for(TASK, source(kind, tmp_path, batch=5), features=FEATURE_LOSSES)
    assert_taught(teacher, "train", TASK.train.inputs)


def test_features_of_a_file_are_shown_on_augmented_views(tmp_path: Path) -> None:
    task = with_augmentation(TASK, Augmentation(shift=1, flip=True))
    teacher = teacher_for(task, source("onnx", tmp_path), seed=2, features=FEATURE_LOSSES, views=True)
    views = [view_choices(task.augmentation, count=len(task.train), view=view, seed=2) for view in range(4)]
    assert_taught(teacher, "views", torch.cat([apply_choices(task.train.inputs, choices) for choices in views]))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_without_names_shows_no_features(kind: str, tmp_path: Path) -> None:
    teacher = teacher_for(TASK, TeacherSource((member(kind, tmp_path),)), features=FEATURE_LOSSES)
    assert teacher.features == {}


def test_named_maps_of_a_module_leave_the_embedding_to_be_found(tmp_path: Path) -> None:
    opened = open_teacher(member("module", tmp_path), TASK, features=("over",))
    with torch.inference_mode():
        shown = opened.features(TASK.test.inputs)
    wanted = expected(TASK.test.inputs)
    torch.testing.assert_close(shown.maps, {"over": wanted.maps["first"].relu()})
    torch.testing.assert_close(shown.embedding, wanted.embedding)


def test_the_logits_may_be_named_too(tmp_path: Path) -> None:
    opened = open_teacher(member("onnx", tmp_path), TASK, features=("y",))
    torch.testing.assert_close(opened.features(TASK.test.inputs).embedding, opened.logits(TASK.test.inputs))


def test_other_names_give_other_features_and_the_same_logits_file(tmp_path: Path, metasearch_home: Path) -> None:
    both = source("onnx", tmp_path)
    teachers = [
        teacher_for(TASK, replace(both, features=names), features=FEATURE_LOSSES)
        for names in (both.features, both.features[1:], both.features)
    ]
    assert [len(teacher.feature_names) for teacher in teachers] == [4, 3, 4]
    names = sorted(path.stem.partition("-")[2] for path in (metasearch_home / "cache" / "teachers").iterdir())
    assert names == ["", *sorted(2 * ["features-attention", "features-embedding", "features-hint"])]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("module", "frist", r"must name a layer of teacher .*:network \(did you mean first\?\), got 'frist'"),
        ("module", "7", r"\(known: first, over, second, bent, pool, embed, head, head\.unused\), got '7'"),
        ("pt2", "relu_3", r"must name a node of teacher .*m\.pt2 \(did you mean relu_, relu\?\), got 'relu_3'"),
        ("pt2", "?", r"\(known: conv2d, relu_, conv2d_1, relu, adaptive_avg_pool2d, flatten, linear\), got '\?'"),
        ("pt2", "input", r"must name a node of"),
        (
            "onnx",
            "/bent/relu_0",
            r"must name a value of teacher .*m\.onnx \(did you mean /bent/Relu, .*got '/bent/relu_0'",
        ),
        ("onnx", "x", r"must name a value of"),
    ],
)
def test_a_name_that_is_not_there_is_told_the_nearest(kind: str, name: str, message: str, tmp_path: Path) -> None:
    given = TeacherSource((member(kind, tmp_path),), features=(name,))
    with pytest.raises(InputError, match=rf"^--teacher-features: .*{message}"):
        check_teacher(given, TASK, views=False)


SHAPE = r"must be \(B, C, h, w\) of more than one pixel, or \(B, D\), where B=2, got shape="


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("module", "pool", rf"{SHAPE}\(2, 6, 1, 1\)"),
        ("module", "head.unused", r"must be a tensor that every pass makes, got 'NoneType'"),
        ("pt2", "adaptive_avg_pool2d", rf"{SHAPE}\(2, 6, 1, 1\)"),
        ("onnx", "/mean", rf"{SHAPE}\(1, 6\)"),
        ("onnx", "/parts", r"must be a tensor that every pass makes, got 'list'"),
    ],
)
def test_a_value_that_is_no_feature_is_refused_with_its_shape(
    kind: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"^--teacher-features: {name}: {message}$"):
        open_teacher(member(kind, tmp_path), TASK, features=(name,))


def test_a_network_for_other_inputs_is_refused_as_without_names(tmp_path: Path) -> None:
    grey = synthetic_task(shape=(1, 8, 8), counts=(6, 6, 6))
    with pytest.raises(InputError, match=r"does not take inputs of shape \(1, 8, 8\) \("):
        open_teacher(member("module", tmp_path), grey, features=("bent",))


def test_a_second_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^--teacher-features: may name one value of shape \(B, D\), got 'embed, head'$"
    ):
        open_teacher(member("module", tmp_path), TASK, features=("embed", "head"))


def test_a_damaged_onnx_file_is_one_line_where_features_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"m\.onnx: cannot be opened by onnxruntime \(.*\)$"):
        open_teacher(TeacherMember(str(tmp_path / "m.onnx")), TASK, features=("y",))
