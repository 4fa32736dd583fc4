"""Networks as a user might bring them, by width and depth, and some that break the rules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Smooth(nn.Module):
    """GELU, a concatenation, a channel gate and a residual sum with a view in between."""

    def __init__(self, channels: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.GELU())
        self.beside = nn.Sequential(nn.Conv2d(channels, width, 1), nn.SiLU())
        self.blocks = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(depth))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * width, 2 * width, 1), nn.Sigmoid())
        self.last = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first(x), self.beside(x)], dim=1)
        for block in self.blocks:
            x = nn.functional.gelu(x + block(x))
        x = x * self.gate(x)
        logits: Tensor = self.last(x.mean(dim=(2, 3)).view(x.shape[0], -1))
        return logits


def smooth(width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Smooth(input_shape[0], width, depth, classes)


def grouped(*, width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Grouped and depthwise convolutions with GroupNorm and LayerNorm."""
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 4 * width, 3, padding=1), nn.GELU()]
    for _ in range(depth):
        layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=2), nn.GroupNorm(2, 4 * width), nn.SiLU()]
        layers += [nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width), nn.PReLU(4 * width)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4 * width), nn.Linear(4 * width, classes)]
    return nn.Sequential(*layers)


def plain(width: int, depth: int, classes: int = 3, **others: Any) -> nn.Module:
    """What channel_groups and lower know, with a bottleneck of the user's own."""
    features = math.prod(others["input_shape"])
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(features, 4 * width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(4 * width, width), nn.Linear(width, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4 * width, classes))


class AddsToInput(nn.Module):
    """A residual sum with the input itself, whose channels therefore must stay."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.up, self.down, self.last = (
            nn.Linear(features, width),
            nn.Linear(width, features),
            nn.Linear(features, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.last(x + self.down(nn.functional.gelu(self.up(x))))
        return logits


def adds_to_input(width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return AddsToInput(math.prod(input_shape), width * depth, classes)


def in_eights(width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Only for widths that are a multiple of 8."""
    layers = [nn.Conv2d(input_shape[0], width, 3), nn.GroupNorm(8, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))


class FixedView(Smooth):
    """Writes its width into its forward pass, so that nothing can be removed."""

    def __init__(self, channels: int, width: int, depth: int, classes: int) -> None:
        super().__init__(channels, width, depth, classes)
        self.features = 2 * width * 4

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(torch.cat([self.first(x), self.beside(x)], dim=1), 2)
        logits: Tensor = self.last(x.view(x.shape[0], self.features)[:, : self.last.in_features])
        return logits


def fixed_view(width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return FixedView(input_shape[0], width, depth, classes)


def no_module(width: int, depth: int) -> int:
    return width * depth


def wrong_logits(width: int, depth: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width * depth))


def wrong_input(width: int, depth: int) -> nn.Module:
    return nn.Linear(width, depth)


def needs_more(width: int, depth: int, dropout: float) -> nn.Module:
    return nn.Dropout(dropout)


def raising(width: int, depth: int) -> nn.Module:
    raise RuntimeError(f"no network of width {width}\nand so on")


def no_depth(width: int) -> nn.Module:
    return nn.Linear(width, width)


NOT_CALLABLE = 3
