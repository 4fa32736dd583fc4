"""What several tests do to a network before they compare it with another form of itself."""

from __future__ import annotations

import torch
from torch import nn


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm layers statistics and an affine map as after training, and return the model in eval mode.

    Scales of both signs, as pruning and folding must cope with.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.2, 2, generator=generator)
            if layer.affine:
                layer.weight.data.uniform_(-1.5, 1.5, generator=generator)
                layer.bias.data.normal_(0, 0.5, generator=generator)
    return model.eval()
