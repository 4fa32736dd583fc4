from __future__ import annotations

import importlib
import math
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError
from metasearch.taps import Tap
from metasearch.tasks.task import Task
from metasearch.teachers import TeacherMember, TeacherNetwork, TeacherSource, open_teacher, teacher_for
from metasearch.teachers.networks import build_teacher
from metasearch.teachers.vit import VisionTransformer, patch_size
from tests.synthetic import synthetic_task

TASK = synthetic_task(shape=(2, 8, 8), counts=(12, 6, 6))
VIT = "vit:width=32,depth=2"


def built(text: str, task: Task = TASK, *, seed: int = 0) -> nn.Module:
    return build_teacher(text, input_shape=task.input_shape, classes=task.classes, seed=seed).eval()


def logits_of(network: TeacherNetwork, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.logits(inputs)


def weights_file(folder: Path, content: object) -> str:
    torch.save(content, folder / "w.pt")
    return str(folder / "w.pt")


@pytest.mark.parametrize("text", ["resnet18", "googlenet", VIT, "convnet:width=2,depth=2"])
def test_every_architecture_takes_any_channels_and_gives_the_tasks_classes(text: str) -> None:
    network = open_teacher(TeacherMember(text), TASK, train=False)
    logits = logits_of(network, TASK.validation.inputs)
    assert logits.shape == (6, 3)
    torch.testing.assert_close(logits, built(text)(TASK.normalisation(TASK.validation.inputs)).detach())


def test_small_images_keep_their_resolution_in_the_stem() -> None:
    for size, expected in ((16, 16), (64, 16)):
        model = build_teacher("resnet18", input_shape=(1, size, size), classes=3, seed=0)
        stem = nn.Sequential(model.conv1, model.maxpool)  # type: ignore[arg-type]  # torch gives Tensor | Module
        assert stem(torch.zeros(1, 1, size, size)).shape[2:] == (expected, expected)


def test_weights_are_drawn_from_the_seed_alone() -> None:
    for text in ("resnet18", VIT):
        first, again, other = (next(built(text, seed=seed).parameters()) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [8, 9, 16, 28, 32, 100, 224])
def test_a_square_image_becomes_16_to_64_tokens(size: int) -> None:
    assert 16 <= math.ceil(size / patch_size(size, size)) ** 2 <= 64


def test_a_vision_transformer_sees_every_pixel() -> None:
    model = build_teacher(VIT, input_shape=(1, 9, 9), classes=3, seed=0).eval()
    image = torch.zeros(1, 1, 9, 9, requires_grad=True)
    model(image).square().sum().backward()
    assert image.grad is not None
    assert bool((image.grad != 0).all())


def test_images_are_asked_for() -> None:
    task = synthetic_task(shape=(5,))
    for text in ("resnet18", "googlenet", VIT):
        with pytest.raises(InputError, match="--teacher: must be a network for vectors, such as mlp"):
            open_teacher(TeacherMember(text), task, train=False)


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "module"])
def test_weights_are_read_as_training_programs_save_them(form: str, tmp_path: Path) -> None:
    model = built(VIT, seed=5)
    state = model.state_dict()
    content: dict[str, object] = {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state},
        "model": {"model": state, "optimizer": {}},
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
    }
    if form == "safetensors":
        path = str(tmp_path / "w.safetensors")
        save_file(state, path)
    else:
        path = weights_file(tmp_path, content[form])
    logits = logits_of(open_teacher(TeacherMember(VIT, path), TASK), TASK.test.inputs)
    torch.testing.assert_close(logits, model(TASK.normalisation(TASK.test.inputs)).detach())


def test_the_training_heads_of_a_googlenet_are_left_out(tmp_path: Path) -> None:
    model = built("googlenet", seed=2)
    path = weights_file(tmp_path, model.state_dict() | {"aux1.fc2.weight": torch.zeros(3, 1024)})
    logits = logits_of(open_teacher(TeacherMember("googlenet", path), TASK), TASK.test.inputs)
    torch.testing.assert_close(logits, model(TASK.normalisation(TASK.test.inputs)).detach())


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.putenv, ("METASEARCH_TRAP", "sprung")


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    path = weights_file(tmp_path, {"state_dict": built(VIT).state_dict(), "trap": Trap()})
    with pytest.raises(
        InputError, match=r"w\.pt: holds pickled objects beside tensors.*save network\.state_dict\(\).*putenv"
    ):
        open_teacher(TeacherMember(VIT, path), TASK)
    whole = weights_file(tmp_path, built(VIT))
    with pytest.raises(InputError, match="holds pickled objects beside tensors"):
        open_teacher(TeacherMember(VIT, whole), TASK)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    state = built(VIT).state_dict()

    def refused(content: object, message: str) -> None:
        with pytest.raises(InputError, match=rf"w\.pt: {message}"):
            open_teacher(TeacherMember(VIT, weights_file(tmp_path, content)), TASK)

    fewer = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    refused(fewer, r"lacks classifier\.weight and 1 more of the network")
    refused(state | {"head.weight": torch.zeros(1)}, r"has head\.weight, which the network has not")
    other = state | {"classifier.bias": torch.zeros(7)}
    refused(other, r"classifier\.bias: must have shape \(3,\), got shape=\(7,\)")
    refused([1, 2], r"must hold a state_dict, bare or under 'state_dict', 'model', got 'list'")
    refused({"epoch": 3}, r"must hold a state_dict.*keys=\['epoch'\]")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_a_damaged_or_missing_checkpoint_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(NotFoundError, match="no such weights file"):
        open_teacher(TeacherMember(VIT, str(path)), TASK)
    for content in (b"", b"rubbish", pickle.dumps([1])[:5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: cannot be read as"):
            open_teacher(TeacherMember(VIT, str(path)), TASK)


def test_a_vision_transformer_shows_its_embedding_and_no_map() -> None:
    tap = Tap.of(built(VIT), TASK.input_shape)
    assert tap == Tap((), ("classifier", 0))


def test_patches_are_embedded_as_by_a_convolution_of_their_size() -> None:
    network = built(VIT)
    assert isinstance(network, VisionTransformer)
    size, images = network.patch_size, torch.randn(3, *TASK.input_shape, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    with network.embed.register_forward_hook(lambda _, inputs, output: found.append(output)), torch.no_grad():
        network(images)
    weight = network.embed.weight.reshape(-1, TASK.input_shape[0], size, size)
    wanted = torch.nn.functional.conv2d(images, weight, network.embed.bias, stride=size)
    torch.testing.assert_close(found[0], wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


SOURCE = """
import functools
import torch
from torch import nn

class Rows(nn.Module):
    def __init__(self, columns, classes, kind=nn.LSTM):
        super().__init__()
        self.recurrent = kind(columns, 5, batch_first=True)
        self.out = nn.Linear(5, classes)
    def forward(self, x):
        return self.out(self.recurrent(x.mean(1))[0][:, -1])

class Returning(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result
    def forward(self, x):
        return self.result(x)

def lstm(input_shape, classes): return Rows(input_shape[2], classes)
def gru(input_shape, classes): return Rows(input_shape[2], classes, nn.GRU)
def rnn(input_shape, classes): return Rows(input_shape[2], classes, nn.RNN)
def attention(classes):
    layer = nn.TransformerEncoderLayer(64, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(2), layer, nn.Flatten(), nn.Linear(128, classes))
def fixed(): return Rows(8, 3)
def four(): return Rows(8, 4)
def wide(): return Rows(9, 3)
def needy(input_shape, width): return Rows(8, width)
def nothing(classes): return None
def of_torchvision(*, num_classes=4, in_channels=3, **others):
    assert not others
    return nn.Sequential(nn.Conv2d(in_channels, 5, 8), nn.Flatten(), nn.Linear(5, num_classes))
def forwarding(*, weights=None, **others):
    assert not others
    return Rows(8, 3)
def failing(): raise KeyError("first")
by_name = functools.partial(Rows, columns=8)
class Sized(Rows):
    def __init__(self, classes): super().__init__(8, classes)
def pair(): return Returning(lambda x: (x, x))
def image(): return Returning(lambda x: x)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own, importable."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1), ("fixed", 4)])
def test_a_recurrent_network_is_a_teacher_and_its_macs_are_counted(mine: str, name: str, gates: int) -> None:
    network = open_teacher(TeacherMember(f"{mine}:{name}", "own"), TASK)
    logits = logits_of(network, TASK.test.inputs)
    assert network.module is not None
    assert network.prepare is TASK.normalisation
    torch.testing.assert_close(logits, network.module(network.prepare(TASK.test.inputs)).detach())
    assert network.macs == 8 * gates * 5 * (8 + 5) + 5 * 3
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("name", ["of_torchvision", "forwarding", "by_name", "Sized"])
def test_a_function_gets_what_its_parameters_name_and_nothing_else(mine: str, name: str) -> None:
    teacher = teacher_for(TASK, TeacherSource((TeacherMember(f"{mine}:{name}", "own"),)))
    assert teacher.logits["test"].shape == (len(TASK.test), 3)


def test_attention_is_counted_on_its_slow_path(mine: str) -> None:
    network = open_teacher(TeacherMember(f"{mine}:attention", "own"), TASK)
    tokens, width, hidden = 2, 64, 16
    layer = tokens * width * (4 * width + 2 * hidden) + 2 * tokens * tokens * width
    assert network.macs == layer + 128 * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("four", r"must have the task's 3 classes, got 4"),
        ("wide", r"does not take inputs of shape \(2, 8, 8\) \(.*9"),
        ("needy", r"the function may require only input_shape, classes, num_classes, in_channels, got 'width'"),
        ("failing", r"the function fails \(KeyError: 'first"),
        ("nothing", r"must return a torch\.nn\.Module, got 'NoneType'"),
        ("pair", r"must return one tensor of logits, got 'tuple'"),
        ("image", r"must return logits of shape \(1, K\), got shape=\(1, 2, 8, 8\)"),
    ],
)
def test_a_function_whose_network_does_not_fit_is_refused(mine: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^teacher my_networks:{name}: {message}"):
        open_teacher(TeacherMember(f"{mine}:{name}"), TASK, train=False)


def test_a_function_that_is_not_there_is_named(mine: str) -> None:
    with pytest.raises(NotFoundError, match="the module my_networks has no function absent"):
        open_teacher(TeacherMember(f"{mine}:absent"), TASK)
    with pytest.raises(NotFoundError, match="no_such_module"):
        open_teacher(TeacherMember("no_such_module:build"), TASK)


def test_a_function_sees_the_task_of_the_moment(mine: str) -> None:
    module = importlib.import_module(mine)
    network = open_teacher(TeacherMember(f"{mine}:gru"), TASK, train=False)
    assert isinstance(network.module, module.Rows)
    assert network.parameters == 3 * 5 * (8 + 5 + 2) + 18


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("unit", lambda x: x / 255),
        ("raw", lambda x: x),
        ("0.5,0.5/0.5,0.25", lambda x: (x / 255 - 0.5) / Tensor([0.5, 0.25])[:, None, None]),
    ],
)
def test_a_network_gets_its_inputs_as_it_was_trained(normalisation: str, expected: object) -> None:
    network = open_teacher(TeacherMember(VIT), TASK, normalisation=normalisation, train=False)
    assert callable(expected)
    torch.testing.assert_close(network.prepare(TASK.test.inputs), expected(TASK.test.inputs.float()))


def test_imagenets_normalisation_needs_three_channels() -> None:
    colour = synthetic_task(shape=(3, 8, 8), counts=(12, 6, 6))
    network = open_teacher(TeacherMember(VIT), colour, normalisation="imagenet", train=False)
    white = network.prepare(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(white, Tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))
    with pytest.raises(InputError, match="must have a number for each of 2 channels"):
        open_teacher(TeacherMember(VIT), TASK, normalisation="imagenet", train=False)
    with pytest.raises(InputError, match="must be task or raw for vectors"):
        open_teacher(
            TeacherMember("mlp:width=2,depth=1"), synthetic_task(shape=(5,)), normalisation="unit", train=False
        )
