"""The `mobilenet` family: depthwise separable blocks (MobileNetV1, Howard et al. 2017) in up to three stages."""

from __future__ import annotations

from torch import nn

from metasearch.models.stages import blocks_per_stage, convolution, stem


def mobilenet(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Sequential:
    """Return a network of depthwise separable convolutions (Howard et al. 2017, section 3.1 and figure 3, right).

    After a plain stem, depth blocks lie in min(depth, 3) stages of width, 2 width and 4 width channels; a block is a
    3x3 depthwise convolution (of stride 2 where a later stage begins) and a 1x1 pointwise one, each with BatchNorm and
    ReLU. Global average pooling and a linear layer end it.
    input_shape: (C, H, W), H and W of at least 8; larger images are reduced as `stem` says.
    """
    layers = stem(input_shape, width, family="mobilenet")
    channels = width
    for stage, blocks in enumerate(blocks_per_stage(depth)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += convolution(channels, channels, 3, stride=stride, groups=channels)
            layers += convolution(channels, width << stage, 1)
            channels = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
