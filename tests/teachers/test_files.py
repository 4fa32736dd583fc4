"""Networks in files: what torch.export and ONNX exporters write, and what must not be opened."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.export import write_onnx
from metasearch.measure import count_macs, count_parameters
from metasearch.models.lowered import lower
from metasearch.tasks.augment import apply_choices, view_choices
from metasearch.tasks.task import Augmentation
from metasearch.teachers import TeacherMember, TeacherSource, open_teacher, teacher_for
from metasearch.teachers.networks import build_teacher
from tests.synthetic import synthetic_task, with_augmentation

TASK = synthetic_task(shape=(3, 8, 8), counts=(24, 6, 11))
ANY = ({0: torch.export.Dim("batch")},)


def network(text: str = "resnet18") -> nn.Module:
    return build_teacher(text, input_shape=TASK.input_shape, classes=TASK.classes, seed=1).eval()


def small() -> nn.Module:
    """A network that is exported in no time, with dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def expected(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(TASK.normalisation(TASK.test.inputs))
    return logits


def exported(model: nn.Module, path: Path, *, batch: int | None = None) -> str:
    """Write a .pt2 file for any batch, or a fixed one."""
    example = torch.zeros(batch or 2, *TASK.input_shape)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=None if batch else ANY), path)
    return str(path)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network exported for any batch."""
    return Path(exported(small(), tmp_path_factory.mktemp("exported") / "small.pt2"))


def rewritten(program: Path, to: Path, change: Callable[[dict[str, bytes]], None]) -> TeacherMember:
    """Write the archive again with its records changed."""
    with zipfile.ZipFile(program) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    inner = {name.partition("/")[2]: content for name, content in records.items()}
    change(inner)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in inner.items():
            archive.writestr(f"{root}/{name}", content)
    return TeacherMember(str(to))


def changed_json(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    loaded = json.loads(records[name])
    change(loaded)
    records[name] = json.dumps(loaded).encode()


@pytest.mark.slow
def test_a_resnet_gives_the_same_logits_from_its_checkpoint_and_its_exported_program(tmp_path: Path) -> None:
    model = network()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    checkpoint = open_teacher(TeacherMember("resnet18", str(tmp_path / "w.pt")), TASK)
    program = open_teacher(TeacherMember(exported(model, tmp_path / "m.pt2")), TASK)
    for opened in (checkpoint, program):
        torch.testing.assert_close(opened.logits(TASK.test.inputs).detach(), expected(model), atol=1e-4, rtol=1e-4)
        assert opened.parameters == count_parameters(model)
        assert opened.macs == count_macs(model, TASK.input_shape)
        assert isinstance(opened.module, nn.Module)


@pytest.mark.slow
def test_a_resnet_gives_the_same_logits_from_onnx(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "m.onnx"
    example = torch.zeros(2, *TASK.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own code
        torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    opened = open_teacher(TeacherMember(str(path)), TASK)
    torch.testing.assert_close(opened.logits(TASK.test.inputs), expected(model), atol=1e-4, rtol=1e-4)
    assert opened.module is None
    assert opened.macs == count_macs(model, TASK.input_shape)
    before = teacher_for(TASK, TeacherSource.of(str(path)))
    weights = path.with_name("m.onnx.data")
    changed = bytearray(weights.read_bytes())
    changed[:4000] = bytes(4000)
    weights.write_bytes(changed)
    after = teacher_for(TASK, TeacherSource.of(str(path)))
    assert not torch.equal(before.logits["test"], after.logits["test"])


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_program_for_a_fixed_batch_is_run_in_batches_of_that_size(batch: int, tmp_path: Path) -> None:
    model = small()
    opened = open_teacher(TeacherMember(exported(model, tmp_path / "m.pt2", batch=batch)), TASK)
    assert opened.batch == batch
    torch.testing.assert_close(opened.logits(TASK.test.inputs).detach(), expected(model))
    assert opened.macs == count_macs(model, TASK.input_shape)


def test_logits_and_counts_of_a_program_are_cached(program: Path) -> None:
    first, again = (teacher_for(TASK, str(program)) for _ in range(2))
    torch.testing.assert_close(first.logits["test"], expected(small()))
    assert first.metrics == again.metrics
    assert first.metrics["parameters"] == count_parameters(small())


def test_a_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    member = TeacherMember(exported(small().train(), tmp_path / "m.pt2"))
    with pytest.raises(InputError, match=r"must be exported in eval mode, got .*dropout.*in training mode"):
        open_teacher(member, TASK)


def test_a_rewritten_archive_opens_where_nothing_was_changed(program: Path, tmp_path: Path) -> None:
    opened = open_teacher(rewritten(program, tmp_path / "m.pt2", lambda records: None), TASK)
    torch.testing.assert_close(opened.logits(TASK.test.inputs).detach(), expected(small()))


def test_sample_inputs_are_never_unpickled(program: Path, tmp_path: Path) -> None:
    def poison(records: dict[str, bytes]) -> None:
        records["data/sample_inputs/model.pt"] = b"cmetasearch_no_such_module\ntrap\n."

    opened = open_teacher(rewritten(program, tmp_path / "m.pt2", poison), TASK)
    torch.testing.assert_close(opened.logits(TASK.test.inputs).detach(), expected(small()))


def test_pickled_weights_and_foreign_parts_are_refused(program: Path, tmp_path: Path) -> None:
    def pickled(records: dict[str, bytes]) -> None:
        def mark(config: Any) -> None:
            config["config"]["0.weight"]["use_pickle"] = True

        changed_json(records, "data/weights/model_weights_config.json", mark)

    with pytest.raises(InputError, match=r"holds pickled objects, which are never loaded.*got '0\.weight'"):
        open_teacher(rewritten(program, tmp_path / "a.pt2", pickled), TASK)
    for name in (
        "data/weights/model.pt",
        "data/aotinductor/model/x.so",
        "models/other.json",
        "data/constants/opaque_obj_0",
    ):
        with pytest.raises(InputError, match=rf"holds a part that no exported network has.*got '{name}'"):
            open_teacher(rewritten(program, tmp_path / "b.pt2", lambda r, n=name: r.update({n: b""})), TASK)  # type: ignore[misc]  # mypy knows no default of a lambda


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.x",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "#torch.os.system",
    ],
)
def test_an_operator_that_is_none_of_a_network_is_refused(target: str, program: Path, tmp_path: Path) -> None:
    def change(loaded: Any) -> None:
        loaded["graph_module"]["graph"]["nodes"][0]["target"] = target

    member = rewritten(program, tmp_path / "m.pt2", lambda records: changed_json(records, "models/model.json", change))
    with pytest.raises(InputError, match="target: is not what an exported network needs, and may run code"):
        open_teacher(member, TASK)


@pytest.mark.parametrize(
    "expression",
    [
        "exec(bytes((112,)))",
        "__import__('os')",
        "s77.__class__",
        "Symbol('s77').func",
        "lambda: 0",
        "[s0 for s0 in s1]",
    ],
)
def test_a_size_that_is_no_arithmetic_is_refused(expression: str, program: Path, tmp_path: Path) -> None:
    def change(loaded: Any) -> None:
        values = loaded["graph_module"]["graph"]["tensor_values"]
        size = next(s for value in values.values() for s in value["sizes"] if "as_expr" in s)
        size["as_expr"]["expr_str"] = expression

    member = rewritten(program, tmp_path / "m.pt2", lambda records: changed_json(records, "models/model.json", change))
    with pytest.raises(InputError, match="expr_str: is not what an exported network needs, and may run code"):
        open_teacher(member, TASK)


def test_a_name_or_a_tree_that_would_become_code_is_refused(program: Path, tmp_path: Path) -> None:
    def rename(loaded: Any) -> None:
        loaded["graph_module"]["graph"]["nodes"][0]["name"] = "x = 1; import os"

    def retype(loaded: Any) -> None:
        spec = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
        loaded["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    for change, key in ((rename, "name"), (retype, "in_spec")):
        with pytest.raises(InputError, match=f"{key}: is not what an exported network needs, and may run code"):
            open_teacher(
                rewritten(program, tmp_path / "m.pt2", lambda r, c=change: changed_json(r, "models/model.json", c)),  # type: ignore[misc]  # mypy knows no default of a lambda
                TASK,
            )


def test_guards_are_left_out(program: Path, tmp_path: Path) -> None:
    def change(loaded: Any) -> None:
        loaded["guards_code"] = ["1 / 0"]

    member = rewritten(program, tmp_path / "m.pt2", lambda records: changed_json(records, "models/model.json", change))
    torch.testing.assert_close(open_teacher(member, TASK).logits(TASK.test.inputs).detach(), expected(small()))


@pytest.mark.parametrize("name", ["m.pt2", "m.onnx"])
def test_a_damaged_file_is_one_line(name: str, program: Path, tmp_path: Path) -> None:
    whole = program.read_bytes()
    for content in (b"", b"rubbish", whole[:200], whole[:-30]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: (cannot be opened|must be written)") as caught:
            teacher_for(TASK, str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_foreign_archive_is_told_what_is_wanted(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"must be written by torch\.export\.save"):
        open_teacher(TeacherMember(str(tmp_path / "m.pt2")), TASK)


def test_a_program_for_other_images_is_refused(tmp_path: Path, program: Path) -> None:
    other = synthetic_task(shape=(3, 9, 9), counts=(6, 6, 6))
    with pytest.raises(InputError, match=r"does not take inputs of shape \(3, 9, 9\) \("):
        open_teacher(TeacherMember(str(program)), other)


def test_our_own_deployed_network_takes_bytes_as_they_are(tmp_path: Path) -> None:
    model = network("convnet:width=4,depth=2")
    lowered = lower(model, normalisation=TASK.normalisation, input_shape=TASK.input_shape)
    write_onnx(lowered, tmp_path / "m.onnx")
    member = TeacherMember(str(tmp_path / "m.onnx"))
    opened = open_teacher(member, TASK, normalisation="raw")
    torch.testing.assert_close(opened.logits(TASK.test.inputs), expected(model), atol=1e-4, rtol=1e-4)
    assert opened.macs == count_macs(model, TASK.input_shape)
    with pytest.raises(InputError, match="takes bytes: needs --teacher-normalisation raw, and images, got 'task'"):
        open_teacher(member, TASK)


def onnx_file(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Tensor], *, batch: int | str = "batch", inputs: int = 1
) -> TeacherMember:
    """Write a graph from `x` to `y`."""
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *TASK.input_shape])
        for name in ("x", "x2")[:inputs]
    ]
    stored = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", given, [result], stored)
    opset = [helper.make_opsetid("", 20)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    return TeacherMember(str(path))


LINEAR = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_an_onnx_file_for_any_or_a_fixed_batch_is_run_on_every_input(batch: int | str, tmp_path: Path) -> None:
    weight = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
    opened = open_teacher(onnx_file(tmp_path / "m.onnx", LINEAR, {"w": weight}, batch=batch), TASK)
    wanted = TASK.normalisation(TASK.test.inputs).flatten(1) @ weight
    torch.testing.assert_close(opened.logits(TASK.test.inputs), wanted, atol=1e-4, rtol=1e-4)
    assert (opened.parameters, opened.macs) == (192 * 3, 192 * 3)


def test_macs_of_onnx_are_counted_by_hand_or_not_at_all(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k3"], ["c"], group=3, pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"], transB=1),
    ]
    weights = {"k3": torch.zeros(6, 1, 3, 3), "w3": torch.zeros(3, 6)}
    opened = open_teacher(onnx_file(tmp_path / "m.onnx", nodes, weights), TASK)
    assert opened.macs == 6 * 4 * 4 * 9 + 6 * 3
    einsum = [LINEAR[0], helper.make_node("Einsum", ["f", "w"], ["y"], equation="bi,ij->bj")]
    unknown = open_teacher(onnx_file(tmp_path / "e.onnx", einsum, {"w": torch.zeros(192, 3)}), TASK)
    assert (unknown.parameters, unknown.macs) == (192 * 3, None)
    assert "macs" not in teacher_for(TASK, str(tmp_path / "e.onnx")).metrics


@pytest.mark.parametrize("batch", ["batch", 4])
def test_recurrent_layers_of_onnx_are_counted(batch: int | str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=3),
        helper.make_node("Squeeze", ["last", "zero"], ["y"]),
    ]
    weights = {"w": torch.zeros(1, 12, 8), "r": torch.zeros(1, 12, 3)}
    constants = {"shape": torch.tensor([0, 24, 8]), "zero": torch.tensor([0])}
    opened = open_teacher(onnx_file(tmp_path / "m.onnx", nodes, weights | constants, batch=batch), TASK)
    assert opened.macs == 24 * 4 * 3 * (8 + 3)
    assert opened.parameters == 4 * 3 * (8 + 3)


def test_a_network_in_a_file_is_asked_about_augmented_images(tmp_path: Path) -> None:
    weight = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
    onnx_file(tmp_path / "m.onnx", LINEAR, {"w": weight})
    task = with_augmentation(TASK, Augmentation(shift=1, flip=True))
    teacher = teacher_for(task, str(tmp_path / "m.onnx"), seed=2, views=True)
    for view, logits in enumerate(teacher.logits["views"]):
        choices = view_choices(task.augmentation, count=len(task.train), view=view, seed=2)
        inputs = task.normalisation(apply_choices(task.train.inputs, choices))
        torch.testing.assert_close(logits, inputs.flatten(1) @ weight, atol=1e-4, rtol=1e-4)


class Rows(nn.Module):
    """Reads the rows of an image one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.out = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = self.recurrent(images.mean(1))[0]
        logits: Tensor = self.out(states[:, -1])
        return logits


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch's exporter, of its own LSTM
def test_a_recurrent_program_is_opened_and_counted(tmp_path: Path) -> None:
    model = Rows().eval()
    opened = open_teacher(TeacherMember(exported(model, tmp_path / "m.pt2")), TASK)
    torch.testing.assert_close(opened.logits(TASK.test.inputs).detach(), expected(model))
    assert opened.macs == 8 * 4 * 5 * (8 + 5) + 5 * 3


def test_an_onnx_file_of_two_inputs_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x2"], ["s"]), helper.make_node("Flatten", ["s"], ["y"])]
    with pytest.raises(InputError, match="must take one tensor, got inputs=2"):
        open_teacher(onnx_file(tmp_path / "m.onnx", nodes, {}, inputs=2), TASK)


def test_a_program_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a + b).flatten(1)[:, :3]

    example = torch.zeros(1, *TASK.input_shape)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(Sum(), (example, example)), stream)
    (tmp_path / "m.pt2").write_bytes(stream.getvalue())
    with pytest.raises(InputError, match="must take one tensor, got inputs=2"):
        open_teacher(TeacherMember(str(tmp_path / "m.pt2")), TASK)
