"""The `convnet` family: 3x3 convolutions with BatchNorm and ReLU in up to three stages, then a linear classifier."""

from __future__ import annotations

from torch import nn

from metasearch.models.stages import blocks_per_stage, convolution, stem


def convnet(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Sequential:
    """Return a plain convolutional network.

    depth convolutions, the stem among them, lie in min(depth, 3) stages of width, 2 width and 4 width channels, with
    2x2 max pooling between the stages, global average pooling and a linear layer at the end.
    input_shape: (C, H, W), H and W of at least 8; larger images are reduced as `stem` says.
    """
    layers = stem(input_shape, width, family="convnet")
    channels = width
    for stage, convolutions in enumerate(blocks_per_stage(depth)):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions - (stage == 0)):
            layers += convolution(channels, width << stage, 3)
            channels = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
