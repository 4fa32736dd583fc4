"""The `convnet` family: 3x3 convolutions with BatchNorm and ReLU in up to three stages, then a linear classifier."""

from __future__ import annotations

from torch import nn

from metasearch.errors import InputError

STAGES = 3


def convnet(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Sequential:
    """Return a plain convolutional network.

    depth convolutions lie in min(depth, 3) stages of width, 2 width and 4 width channels (the later stages get the
    odd ones), with 2x2 max pooling between the stages, global average pooling and a linear layer at the end. Images
    wider than 40 pixels are reduced by a strided first convolution, so that at most 40 are left, or as many as leave
    the shorter side its 8.
    input_shape: (C, H, W), H and W of at least 8.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        raise InputError("student.family", "convnet needs images of at least 8 x 8 pixels", str(input_shape))
    stride = 1
    while max(input_shape[1:]) > 40 * stride and min(input_shape[1:]) >= 16 * stride:
        stride *= 2
    stages = min(depth, STAGES)
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for stage in range(stages):
        convolutions = depth // stages + (stage >= stages - depth % stages)
        for _ in range(convolutions):
            first = not layers
            kernel = max(3, stride + 1) if first else 3
            layers += [
                nn.Conv2d(
                    channels,
                    width << stage,
                    kernel,
                    stride=stride if first else 1,
                    padding=kernel // 2,
                    bias=False,
                ),
                nn.BatchNorm2d(width << stage),
                nn.ReLU(),
            ]
            channels = width << stage
        if stage < stages - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
