from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from metasearch.errors import InputError, NotFoundError
from metasearch.models import NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.models.weights import load_weights, save_weights, write_tensors
from metasearch.prune import prune_to_ratio, total_channels
from tests.synthetic import synthetic_task

TASK = synthetic_task()
SPECS = [
    NetworkSpec("convnet", width=4, depth=4),
    NetworkSpec("mlp", width=3, depth=2),
    NetworkSpec("resnet", width=4, depth=3),
    NetworkSpec("mobilenet", width=4, depth=3),
]


def network(spec: NetworkSpec, *, share: float = 1.0) -> nn.Module:
    """Return a network after one batch in train mode, with about `share` of each group's channels left."""
    model = build_network(spec, input_shape=TASK.input_shape, classes=TASK.classes, seed=3)
    model(TASK.normalisation(TASK.train.inputs))
    if share < 1:
        keep = [torch.arange(group.size)[:: round(1 / share)] for group in channel_groups(model)]
        model = keep_channels(model, keep)
    return model.eval()


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads(file.metadata()["network"])


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_network_survives_its_file(spec: NetworkSpec, share: float, tmp_path: Path) -> None:
    model, path = network(spec, share=share), tmp_path / "student.safetensors"
    save_weights(model, path, spec=spec, task=TASK)
    loaded = load_weights(path)
    inputs = TASK.normalisation(TASK.validation.inputs)
    assert torch.equal(loaded(inputs), model(inputs))
    assert not loaded.training
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_network_survives_being_pruned_twice(spec: NetworkSpec, tmp_path: Path) -> None:
    model = network(spec, share=0.5)
    model = keep_channels(model, [torch.tensor([group.size - 1]) for group in channel_groups(model)]).eval()
    save_weights(model, tmp_path / "w", spec=spec, task=TASK)
    inputs = TASK.normalisation(TASK.validation.inputs)
    assert torch.equal(load_weights(tmp_path / "w")(inputs), model(inputs))


def test_class_names_are_kept_and_a_file_without_them_loads(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    tensors, described = read(path)
    assert described.pop("class_names") == list(TASK.class_names)
    save_file(tensors, path, metadata={"network": json.dumps(described)})
    assert load_weights(path).state_dict().keys() == tensors.keys()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", ["smooth", "grouped", "plain"])
def test_a_user_network_survives_its_file(name: str, ratio: float, tmp_path: Path) -> None:
    spec = NetworkSpec(f"tests.user_networks:{name}", width=4, depth=2)
    model = build_network(spec, input_shape=TASK.input_shape, classes=TASK.classes, seed=3)
    model(TASK.normalisation(TASK.train.inputs))
    before = total_channels(model, TASK.input_shape)
    model = prune_to_ratio(model, ratio=ratio, original=before, input_shape=TASK.input_shape).eval()
    assert total_channels(model, TASK.input_shape) == before - math.ceil(ratio * before)
    save_weights(model, tmp_path / "w", spec=spec, task=TASK)
    loaded = load_weights(tmp_path / "w", family=spec.family)
    inputs = TASK.normalisation(TASK.validation.inputs)
    assert torch.equal(loaded(inputs), model(inputs))
    assert str(loaded) == str(model)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nowhere": {"groups": 2}}, "has no nowhere.groups, got 2"),
        ({"first.0": {"secret": 2}}, "has no first.0.secret, got 2"),
        ({"first.0": {"out_channels": "many"}}, "has no first.0.out_channels, got 'many'"),
        ({"first.0": {"padding": [8000, 8000]}}, "first.0.padding must be at most (1, 1), got (8000, 8000)"),
        ({"first.0": {"stride": [-1, 1]}}, "first.0.stride must be at most (1, 1), got (-1, 1)"),
        ({"first.0": {"out_channels": 2**62}}, "first.0.out_channels must be at most 4, got"),
        ({"first.0": 3}, "sizes must be a mapping of layers to mappings"),
    ],
)
def test_sizes_that_a_user_network_does_not_have_are_refused(sizes: object, message: str, tmp_path: Path) -> None:
    path, spec = tmp_path / "w", NetworkSpec("tests.user_networks:smooth", width=4, depth=2)
    save_weights(build_network(spec, input_shape=(1, 8, 8), classes=3, seed=0), path, spec=spec, task=TASK)
    tensors, described = read(path)
    save_file(tensors, path, metadata={"network": json.dumps(described | {"sizes": sizes})})
    assert message in refusal_of(path)


def test_tensors_of_a_user_network_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    path, spec = tmp_path / "w", NetworkSpec("tests.user_networks:smooth", width=4, depth=2)
    save_weights(build_network(spec, input_shape=(1, 8, 8), classes=3, seed=0), path, spec=spec, task=TASK)
    tensors, described = read(path)
    tensors["last.weight"] = tensors["last.weight"][:, 1:].contiguous()
    save_file(tensors, path, metadata={"network": json.dumps(described)})
    assert "its tensors must fit the network of its description" in refusal_of(path)


@pytest.mark.parametrize("family", [None, "tests.user_networks:smooth"])
def test_a_file_runs_no_code_that_the_caller_did_not_name(
    family: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spec = tmp_path / "w", NetworkSpec("convnet", width=2, depth=1)
    save_weights(network(spec), path, spec=spec, task=TASK)
    tensors, described = read(path)
    (tmp_path / "a_strangers_module.py").write_text("raise SystemExit('code of a stranger')")
    monkeypatch.syspath_prepend(tmp_path)
    described["spec"] = "a_strangers_module:build:width=2,depth=1"
    save_file(tensors, path, metadata={"network": json.dumps(described)})
    assert "needs load_weights(path, family=...)" in refusal_of(path, family=family)


def test_tensors_that_share_memory_are_written_one_by_one(tmp_path: Path) -> None:
    values = torch.arange(12.0)
    tensors = {"whole": values, "again": values.reshape(3, 4), "part": values[2:5]}
    write_tensors(tensors, tmp_path / "w", metadata={})
    found = load_file(tmp_path / "w")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotFoundError, match="no such weights file"):
            load_weights(path)


def refusal_of(path: Path, *, family: str | None = "tests.user_networks:smooth") -> str:
    with pytest.raises(InputError) as refusal:
        load_weights(path, family=family)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_tensor_of_wrong_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    tensors, described = read(path)
    tensors["1.weight"] = tensors["1.weight"][:-1].contiguous()
    save_file(tensors, path, metadata={"network": json.dumps(described)})
    assert "1.weight: must have shape (12, 64), got shape=(11, 64)" in refusal_of(path)


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    tensors, described = read(path)
    save_file({n: t for n, t in tensors.items() if n != "4.weight"}, path, {"network": json.dumps(described)})
    assert "4.weight: must have shape (12, 12), got shape=None" in refusal_of(path)
    save_file({**tensors, "more": torch.zeros(2)}, path, {"network": json.dumps(described)})
    assert "more: must have shape None, got shape=(2,)" in refusal_of(path)


@pytest.mark.parametrize("length", [0, 5, 100, 2000])
def test_a_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[0]), path, spec=SPECS[0], task=TASK)
    assert path.stat().st_size > 2000
    path.write_bytes(path.read_bytes()[:length])
    assert "must be a weights file written by metasearch" in refusal_of(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights here")
    assert "must be a weights file written by metasearch" in refusal_of(tmp_path / "text")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "checkpoint")
    assert "must be a weights file written by metasearch" in refusal_of(tmp_path / "checkpoint")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other")
    assert "must carry a description of its network" in refusal_of(tmp_path / "other")


@pytest.mark.parametrize("described", [None, 3, [], {}, {"spec": "mlp:width=3,depth=2"}])
def test_a_description_of_another_kind_is_refused(described: object, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w", metadata={"network": json.dumps(described)})
    assert "must carry a description of its network" in refusal_of(tmp_path / "w")


@pytest.mark.parametrize("channels", [[12], [12, 13], [0, 12], [12, 12, 12]])
def test_channels_that_the_network_does_not_have_are_refused(channels: list[int], tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    tensors, described = read(path)
    save_file(tensors, path, metadata={"network": json.dumps(described | {"channels": channels})})
    assert f"channels must be at least 1 and at most [12, 12], got {channels}" in refusal_of(path)


def test_a_spec_that_is_unknown_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    tensors, described = read(path)
    save_file(tensors, path, metadata={"network": json.dumps(described | {"spec": "resnet18"})})
    assert "must look like convnet:width=16,depth=4, got 'resnet18'" in refusal_of(path)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_weights(network(SPECS[1]), tmp_path / "nowhere" / "w", spec=SPECS[1], task=TASK)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    save_weights(network(SPECS[1]), path, spec=SPECS[1], task=TASK)
    old = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(network(SPECS[0]), path, spec=SPECS[0], task=TASK)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
