"""What the families of convolutional networks share: the first convolution, and how blocks are dealt to stages."""

from __future__ import annotations

from torch import nn

from metasearch.errors import InputError

STAGES = 3
SMALLEST_SIDE = 8
LARGEST_SIDE = 40


def stem(input_shape: tuple[int, ...], width: int, *, family: str) -> list[nn.Module]:
    """Return the first convolution, from the image to `width` channels, with its BatchNorm and ReLU.

    Images wider than 40 pixels are reduced by its stride, so that at most 40 are left, or as many as leave the shorter
    side its 8. input_shape: (C, H, W). family: for the message of the InputError where H or W is below 8.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_SIDE:
        raise InputError(
            "student.family",
            f"{family} needs images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels",
            str(input_shape),
        )
    stride = 1
    while max(input_shape[1:]) > LARGEST_SIDE * stride and min(input_shape[1:]) >= 2 * SMALLEST_SIDE * stride:
        stride *= 2
    return convolution(input_shape[0], width, max(3, stride + 1), stride=stride)


def convolution(channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution from `channels` to `width` channels that keeps the image's size, BatchNorm and ReLU."""
    return [
        nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def blocks_per_stage(depth: int) -> list[int]:
    """Return how many of `depth` blocks lie in each of min(depth, 3) stages; the later stages get the odd ones."""
    stages = min(depth, STAGES)
    return [depth // stages + (stage >= stages - depth % stages) for stage in range(stages)]
