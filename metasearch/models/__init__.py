"""Network families, each built by width and depth.

Shapes: images (C, H, W) with C channels; vectors (F,). K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from metasearch.errors import InputError
from metasearch.models.convnet import convnet
from metasearch.models.mlp import mlp
from metasearch.models.mobilenet import mobilenet
from metasearch.models.resnet import resnet
from metasearch.models.user_family import build_user_network
from metasearch.parameters import PARAMETERS, USER_FAMILY

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "mlp": mlp,
    "resnet": resnet,
    "mobilenet": mobilenet,
}


@dataclass(frozen=True)
class NetworkSpec:
    """A network family with its width and depth; as text, `convnet:width=16,depth=4`.

    family: a key of FAMILIES, or a user's own function, `package.module:build`.
    """

    family: str
    width: int
    depth: int

    def __post_init__(self) -> None:
        PARAMETERS["student.family"].check(self.family, "network.family")
        for name in ("width", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"network.{name}", "must be a whole number of at least 1", value)

    @classmethod
    def parse(cls, text: str, *, place: str = "network") -> NetworkSpec:
        """Return the spec that a text such as `convnet:width=16,depth=4` names."""
        match = re.fullmatch(rf"(\w+|{USER_FAMILY}):width=(\d{{1,9}}),depth=(\d{{1,9}})", text)
        if match is None:
            raise InputError(place, "must look like convnet:width=16,depth=4", text)
        return cls(match[1], int(match[2]), int(match[3]))

    def __str__(self) -> str:
        return f"{self.family}:width={self.width},depth={self.depth}"


def build_network(spec: NetworkSpec, *, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return the network of `spec` on the CPU, its weights drawn from `seed` alone.

    input_shape: (C, H, W) or (F,). Maps (B, *input_shape), normalised float32, to logits (B, classes).
    Raises InputError if the family cannot take the input shape; for a user's own one, what `build_user_network` says.
    """
    build = FAMILIES.get(spec.family) or partial(build_user_network, spec.family)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        return build(input_shape=input_shape, classes=classes, width=spec.width, depth=spec.depth)
