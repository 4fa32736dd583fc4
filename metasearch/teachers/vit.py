"""A small vision transformer (Dosovitskiy et al. 2021): pre-norm blocks over patches, mean pooling.

Symbols: B batch; C channels; T tokens; D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_TOKENS = 64
HEAD_WIDTH = 16


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each after LayerNorm and with a residual: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens, (B, T, D), after attention and perceptron."""
        split = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1))  # (B, T, 3, heads, D / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project(mixed.transpose(1, 2).flatten(2))
        output: Tensor = tokens + self.perceptron(self.norm2(tokens))
        return output


class VisionTransformer(nn.Module):
    """Patches of `patch_size` pixels, learnt positions, `depth` blocks, the mean of the tokens, a linear classifier.

    (B, C, H, W) -> (B, K). Zeros fill the last patches where the image is no multiple of them. Heads are 16 wide, or
    wider where 16 does not divide `width`.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        channels, height, image_width = input_shape
        size = patch_size(height, image_width)
        rows, columns = math.ceil(height / size), math.ceil(image_width / size)
        self.padding = (0, columns * size - image_width, 0, rows * size - height)
        self.patch_size = size
        # A convolution of the same weights would show its output as a feature map, which these tokens are not.
        self.embed = nn.Linear(channels * size * size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, rows * columns, width))
        heads = max(n for n in range(1, max(1, width // HEAD_WIDTH) + 1) if width % n == 0)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised images (B, C, H, W)."""
        pixels = functional.unfold(functional.pad(images, self.padding), self.patch_size, stride=self.patch_size)
        tokens = self.embed(pixels.transpose(1, 2)) + self.positions  # (B, T, D)
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


def patch_size(height: int, width: int) -> int:
    """Return the smallest patch of at least 2 pixels that leaves at most 64 tokens: 2 for 8 to 16, 4 for 28 and 32."""
    size = 2
    while math.ceil(height / size) * math.ceil(width / size) > MOST_TOKENS:
        size += 1
    return size
