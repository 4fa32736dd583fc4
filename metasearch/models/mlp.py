"""The `mlp` family: fully connected layers with BatchNorm and ReLU, for vectors and (flattened) images."""

from __future__ import annotations

import math

from torch import nn


def mlp(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Sequential:
    """Return a multilayer perceptron with `depth` hidden layers of 4 * width units each.

    input_shape: (C, H, W) or (F,). The factor 4 lets one searched width serve convolutions and this family alike.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(input_shape)
    for _ in range(depth):
        layers += [nn.Linear(features, 4 * width, bias=False), nn.BatchNorm1d(4 * width), nn.ReLU()]
        features = 4 * width
    return nn.Sequential(*layers, nn.Linear(features, classes))
