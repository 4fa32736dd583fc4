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
from metasearch.models import NetworkSpec, build_network
from metasearch.models.channels import channel_groups, keep_channels
from metasearch.tasks import Task

DESCRIBED = {"spec", "input_shape", "classes", "channels"}
CLASS_NAMES = "class_names"
"""Described too, for who reads the file; older files lack it."""


def save_weights(model: nn.Module, path: Path, *, spec: NetworkSpec, task: Task) -> None:
    """Write the weights atomically, with the spec of the network, its present channels and the task's class names."""
    described = {
        "spec": str(spec),
        "input_shape": list(task.input_shape),
        "classes": task.classes,
        "channels": [group.size for group in channel_groups(model)],
        CLASS_NAMES: list(task.class_names),
    }
    write_tensors(model.state_dict(), path, metadata={"network": json.dumps(described)})


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically: `path` holds the whole of it or what it held before.

    Raises OSError if the file cannot be written.
    """
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: Path) -> nn.Module:
    """Return the network that `save_weights` wrote, in eval mode on the CPU.

    Raises NotFoundError if there is no such file, InputError if it is damaged, not ours, or its tensors do not have the
    shapes that its description asks for.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            described: Any = json.loads((file.metadata() or {}).get("network", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(str(path), "must be a weights file written by metasearch", str(error)) from error
    if not isinstance(described, dict) or described.keys() - {CLASS_NAMES} != DESCRIBED:
        raise InputError(str(path), "must carry a description of its network in the metadata")
    model = build_network(
        NetworkSpec.parse(described["spec"], place=str(path)),
        input_shape=tuple(described["input_shape"]),
        classes=described["classes"],
        seed=0,
    )
    built, present = [group.size for group in channel_groups(model)], described["channels"]
    if len(built) != len(present) or not all(1 <= p <= b for p, b in zip(present, built, strict=True)):
        raise InputError(str(path), f"channels must be at least 1 and at most {built}", present)
    model = keep_channels(model, [torch.arange(size) for size in present])
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[name].shape) if name in expected else None
        got = tuple(tensors[name].shape) if name in tensors else None
        if want != got:
            raise InputError(str(path), f"{name}: must have shape {want}", f"shape={got}")
    model.load_state_dict(tensors)
    return model.eval()
