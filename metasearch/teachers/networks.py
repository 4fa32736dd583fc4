"""Architectures that a teacher may have: our families, torchvision's, a small vision transformer, the user's own.

Shapes: images (C, H, W); K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metasearch.errors import InputError
from metasearch.functions import call_with_accepted, import_function
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.teachers.vit import VisionTransformer

SMALL = 64
"""Images with a shorter side below this many pixels keep their resolution in the stem."""


def resnet18(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return torchvision's ResNet-18 (He et al. 2016) for any number of channels.

    On images below 64 pixels its stem is a 3x3 convolution of stride 1 without max pooling, as in section 4.2 there.
    """
    from torchvision.models import resnet18 as build

    network: nn.Module = build(num_classes=classes)
    channels, small = _image(input_shape)
    network.conv1 = _stem(channels, small=small)
    if small:
        network.maxpool = nn.Identity()
    return network


def googlenet(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return torchvision's GoogLeNet (Szegedy et al. 2015) without auxiliary heads, for any number of channels.

    On images below 64 pixels the stem is a 3x3 convolution of stride 1, without its two max poolings.
    """
    from torchvision.models import googlenet as build

    network: Any = build(num_classes=classes, aux_logits=False, init_weights=True)
    channels, small = _image(input_shape)
    network.conv1.conv = _stem(channels, small=small)
    if small:
        network.maxpool1, network.maxpool2 = nn.Identity(), nn.Identity()
    return network  # type: ignore[no-any-return]  # mypy does not read torchvision


def vit(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Module:
    """Return a small vision transformer; see `VisionTransformer`."""
    _image(input_shape)
    return VisionTransformer(input_shape, classes, width=width, depth=depth)


FIXED: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "googlenet": googlenet}
SIZED: dict[str, Callable[..., nn.Module]] = {"vit": vit}
"""Architectures by width and depth that only teachers have; `FAMILIES` are the others."""

SPELLINGS = (
    ", ".join([*(f"{name}:width=W,depth=D" for name in (*FAMILIES, *SIZED)), *FIXED])
    + ", package.module:function, FILE.pt2, FILE.onnx or FILE.npz"
)


def is_function(text: str) -> bool:
    """Whether the text is spelled package.module:function."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None


def check_spelling(text: str, *, place: str) -> None:
    """Raise InputError unless the text names an architecture; a function is not looked up."""
    name, width, _ = _sizes(text)
    if not (text in FIXED or is_function(text) or (name in {**FAMILIES, **SIZED} and width)):
        raise InputError(place, f"must be one of {SPELLINGS}", text)


def build_teacher(text: str, *, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return the network that a text names, on the CPU, its weights drawn from `seed` alone.

    Raises InputError if it cannot take the input shape or a function fails, NotFoundError if a function is not there.
    """
    name, width, depth = _sizes(text)
    if name in FAMILIES:
        spec = NetworkSpec(name, width=width, depth=depth)
        return build_network(spec, input_shape=input_shape, classes=classes, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        if name in SIZED:
            return SIZED[name](input_shape=input_shape, classes=classes, width=width, depth=depth)
        if text in FIXED:
            return FIXED[text](input_shape=input_shape, classes=classes)
        return _call_function(text, input_shape=input_shape, classes=classes)


def _call_function(text: str, *, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the network that a user's function builds, which gets what it names, torchvision's names among it."""
    place = f"teacher {text}"
    function = import_function(text, place=place)
    offered = {"input_shape": input_shape, "classes": classes, "num_classes": classes, "in_channels": input_shape[0]}
    network = call_with_accepted(function, offered, place=place, name="the function")
    if not isinstance(network, nn.Module):
        raise InputError(place, "must return a torch.nn.Module", type(network).__name__)
    return network


def _sizes(text: str) -> tuple[str, int, int]:
    """Return name, width and depth of a text such as vit:width=64,depth=4; zeros for any other text."""
    match = re.fullmatch(r"(\w+):width=([1-9]\d*),depth=([1-9]\d*)", text)
    return (match[1], int(match[2]), int(match[3])) if match else ("", 0, 0)


def _image(input_shape: tuple[int, ...]) -> tuple[int, bool]:
    """Return the number of channels, and whether the image is small."""
    if len(input_shape) != 3:
        raise InputError("--teacher", "must be a network for vectors, such as mlp", str(input_shape))
    return input_shape[0], min(input_shape[1:]) < SMALL


def _stem(channels: int, *, small: bool) -> nn.Conv2d:
    stem = nn.Conv2d(channels, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
