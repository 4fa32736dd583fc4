"""A network's weights from a file of the user's own: safetensors, or a state_dict saved by torch; code is never run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError
from metasearch.functions import first_line

WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep the state_dict beside epochs and optimizers."""
PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put before every name."""
AUXILIARY = ("aux1.", "aux2.")
"""GoogLeNet's heads for training, which `googlenet` is built without."""
COUNTER = "num_batches_tracked"


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load the weights in a file into a network.

    Raises NotFoundError if there is no such file; InputError if it is damaged, holds pickled code, or its tensors are
    not those of the network.
    """
    tensors = {name: t for name, t in read_tensors(path).items() if not name.startswith(AUXILIARY)}
    expected = network.state_dict()
    # BatchNorm's counters came late to checkpoints, and nothing here reads them.
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTER)]
    unexpected = [name for name in tensors if name not in expected]
    if missing:
        raise InputError(str(path), f"lacks {_counted(missing)} of the network")
    if unexpected:
        raise InputError(str(path), f"has {_counted(unexpected)}, which the network has not")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            want, got = tuple(expected[name].shape), tuple(tensor.shape)
            raise InputError(str(path), f"{name}: must have shape {want}", f"shape={got}")
    network.load_state_dict(dict(tensors), strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pt or .pth file by name, on the CPU, without wrapping and prefix."""
    if not path.is_file():
        raise NotFoundError(f"{path}: no such weights file")
    loaded: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not (isinstance(loaded, Mapping) and loaded and all(isinstance(t, Tensor) for t in loaded.values())):
        wrapped = ", ".join(map(repr, WRAPPERS))
        raise InputError(str(path), f"must hold a state_dict, bare or under {wrapped}", _described(loaded))
    if all(name.startswith(PARALLEL) for name in loaded):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in loaded.items()}
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise InputError(str(path), f"cannot be read as safetensors ({first_line(error)})") from error
    return tensors


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of the message advises to run the code
        if found is None:
            raise InputError(str(path), "cannot be read as a torch file of tensors") from error
        rule = "holds pickled objects beside tensors, which are never loaded because they can run code"
        raise InputError(str(path), f"{rule}: save network.state_dict() instead", found[1]) from error
    except (
        Exception
    ) as error:  # a damaged file fails anywhere in torch's unpickler: IndexError, EOFError, KeyError, ...
        raise InputError(str(path), f"cannot be read as a torch file ({first_line(error)})") from error


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _described(loaded: object) -> str:
    return f"keys={list(loaded)[:4]}" if isinstance(loaded, Mapping) else type(loaded).__name__
