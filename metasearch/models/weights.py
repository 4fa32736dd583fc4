"""A student's trained weights in a safetensors file, whole enough to build the network again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError
from metasearch.functions import first_line
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.tasks import Task

DESCRIBED = {"spec", "input_shape", "classes"}
CLASS_NAMES = "class_names"
"""Described too, for who reads the file; older files lack it."""
META = "meta"
"""A second entry of the metadata, in files of meta-learned weights: how they came about."""
CHANNELS = "channels"
"""The present size of each channel group, for a network whose groups are known."""
SIZES = "sizes"
"""For any other network, the numbers of its layers (in_channels, groups, ...) that pruning changed, by layer."""
BESIDE = "meta:"
"""Before the names of tensors that lie in a file beside the network's: a meta-learner's."""

Sizes = dict[str, dict[str, int | tuple[int, ...]]]


def save_weights(
    model: nn.Module,
    path: Path,
    *,
    spec: NetworkSpec,
    task: Task,
    beside: Mapping[str, Tensor] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights atomically, with the network's spec, present channels and class names.

    beside: tensors that are not the network's, under BESIDE and their names: `load_weights` does not read them. meta:
    how it was meta-learned, JSON-ready, for `describe_weights`.
    """
    described: dict[str, Any] = {
        "spec": str(spec),
        "input_shape": list(task.input_shape),
        "classes": task.classes,
        CLASS_NAMES: list(task.class_names),
    }
    try:
        described[CHANNELS] = [group.size for group in channel_groups(model)]
    except TypeError:
        built = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
        described[SIZES] = _changed_sizes(built, model)
    noted = {"network": json.dumps(described)} | ({} if meta is None else {META: json.dumps(meta)})
    tensors = model.state_dict() | {BESIDE + name: tensor for name, tensor in (beside or {}).items()}
    write_tensors(tensors, path, metadata=noted)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically: `path` holds the whole of it or what it held before.

    Tensors that share memory, as tied weights do, are written one by one. Raises OSError if the file cannot be written.
    """
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    content = save(apart, metadata=metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: Path, *, family: str | None = None) -> nn.Module:
    """Return the network that `save_weights` wrote, in eval mode on the CPU.

    family: `package.module:build` of a network of the user's own. It is imported only where the caller names it: a
    stranger's file could name any module.
    Raises NotFoundError if there is no such file; InputError if it is damaged, not ours, of a family that was not
    named, or its tensors do not have the shapes that its description asks for.
    """
    described, tensors = _read(path)
    spec = NetworkSpec.parse(described["spec"], place=str(path))
    if spec.family not in FAMILIES and spec.family != family:
        rule = "is of a family that runs code of its own: needs load_weights(path, family=...) with its name"
        raise InputError(str(path), rule, spec.family)
    model = build_network(
        spec,
        input_shape=tuple(described["input_shape"]),
        classes=described["classes"],
        seed=0,
    )
    if CHANNELS in described:
        model = _with_channels(model, described[CHANNELS], path)
    else:
        _set_sizes(model, described[SIZES], tensors, path)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[name].shape) if name in expected else None
        got = tuple(tensors[name].shape) if name in tensors else None
        if want != got:
            raise InputError(str(path), f"{name}: must have shape {want}", f"shape={got}")
    model.load_state_dict(tensors)
    model.eval()
    if SIZES in described:
        _require_run(model, tuple(described["input_shape"]), path)
    return model


def describe_weights(path: Path) -> dict[str, Any]:
    """Return what a weights file says of its network: spec, input_shape, classes, class_names; `meta`, {} if none.

    `meta` is how it was meta-learned: `method`, and what else its maker noted. Raises as `load_weights` does.
    """
    described, _ = _read(path)
    return described


def read_meta(path: Path) -> dict[str, Any]:
    """Return what a file of `meta-train`, of weights or of a policy network, says of its making; {} if nothing.

    Raises as `read_tensors` does.
    """
    meta = read_tensors(path)[0].get(META)
    return meta if isinstance(meta, dict) else {}


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write_tensors` wrote: the metadata, each text of them read as JSON, and the tensors, on the CPU.

    Raises NotFoundError if there is no such file; InputError if it is damaged or no safetensors file. One that may hold
    code, a pickle for instance, is never opened as such.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            noted = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, RecursionError) as error:  # no JSON, digits or brackets without end
        raise InputError(str(path), "must be a weights file written by metasearch", str(error)) from error
    return noted, tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description in a weights file, with `meta`, and its network's tensors."""
    noted, tensors = read_tensors(path)
    described, meta = noted.get("network"), noted.get(META, {})
    shapes = (DESCRIBED | {CHANNELS}, DESCRIBED | {SIZES})
    if not isinstance(described, dict) or described.keys() - {CLASS_NAMES} not in shapes or not isinstance(meta, dict):
        raise InputError(str(path), "must carry a description of its network in the metadata")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(BESIDE)}
    return described | {META: meta}, own


def _with_channels(model: nn.Module, present: Any, path: Path) -> nn.Module:
    """Return the network cut to the present number of channels of each group."""
    built = [group.size for group in channel_groups(model)]
    numbers = isinstance(present, list) and all(map(_is_number, present)) and len(built) == len(present)
    if not numbers or not all(1 <= p <= b for p, b in zip(present, built, strict=True)):
        raise InputError(str(path), f"channels must be at least 1 and at most {built}", present)
    return keep_channels(model, [torch.arange(size) for size in present])


def _changed_sizes(built: nn.Module, present: nn.Module) -> Sizes:
    """Return the numbers of each layer that are not those of the network as it was built."""
    sizes: Sizes = {}
    for name, layer in present.named_modules():
        before = _numbers(built.get_submodule(name))
        if changed := {key: value for key, value in _numbers(layer).items() if before.get(key) != value}:
            sizes[name] = changed
    return sizes


def _numbers(layer: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """Return a layer's own whole numbers and tuples of them, by name."""
    return {
        name: value
        for name, value in vars(layer).items()
        if _is_number(value) or (isinstance(value, tuple) and all(_is_number(item) for item in value))
    }


def _is_within(cut: int | tuple[Any, ...], built: int | tuple[int, ...]) -> bool:
    """Whether a number, or each of a tuple, is what cutting can have left of another."""
    small, large = (value if isinstance(value, tuple) else (value,) for value in (cut, built))
    return len(small) == len(large) and all(_is_number(a) and 0 <= a <= b for a, b in zip(small, large, strict=True))


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set_sizes(model: nn.Module, sizes: Sizes, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give the layers of a network, in place, the sizes and the tensors' shapes of a pruned one.

    Raises InputError for a number or a tensor that the network does not have.
    """
    if not isinstance(sizes, dict) or not all(isinstance(numbers, dict) for numbers in sizes.values()):
        raise InputError(str(path), "sizes must be a mapping of layers to mappings", sizes)
    layers = dict(model.named_modules())
    for name, numbers in sizes.items():
        present = _numbers(layers[name]) if name in layers else {}
        for key, value in numbers.items():
            value = tuple(value) if isinstance(value, list) else value
            if type(value) is not type(present.get(key)):
                raise InputError(str(path), f"sizes: the network of its description has no {name}.{key}", value)
            if not _is_within(value, present[key]):
                raise InputError(str(path), f"sizes: {name}.{key} must be at most {present[key]}", value)
            setattr(layers[name], key, value)
    for name, tensor in model.state_dict().items():
        got = tensors.get(name)
        if got is not None and got.shape != tensor.shape and got.ndim == tensor.ndim:
            owner, _, key = name.rpartition(".")
            old, new = getattr(layers[owner], key), torch.empty_like(got)
            setattr(layers[owner], key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def _require_run(model: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Raise InputError unless the network takes an input: its shapes came from the file alone."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape))
    except RuntimeError as error:  # torch's shapes that do not fit
        rule = f"its tensors must fit the network of its description: {first_line(error)}"
        raise InputError(str(path), rule) from error
