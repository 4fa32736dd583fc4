"""The `resnet` family: basic residual blocks (He et al. 2016) in up to three stages, then a linear classifier."""

from __future__ import annotations

from torch import Tensor, nn

from metasearch.models.stages import blocks_per_stage, convolution, stem


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as in figure 5 (left) of He et al. (2016).

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where the shape changes (option B of section 4.1).
    """

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(channels, width, 3, stride=stride), *convolution(width, width, 3)[:-1])
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(*convolution(channels, width, 1, stride=stride)[:-1])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU(body + shortcut)."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def resnet(*, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Sequential:
    """Return a residual network.

    After the stem, ceil(depth / 2) basic blocks of two convolutions lie in up to three stages of width, 2 width and
    4 width channels; the first block of every later stage has stride 2. Global average pooling and a linear layer end
    it. That depth counts convolutions lets one searched depth serve convnet and this family alike.
    input_shape: (C, H, W), H and W of at least 8; larger images are reduced as `stem` says.
    """
    layers = stem(input_shape, width, family="resnet")
    channels = width
    for stage, blocks in enumerate(blocks_per_stage((depth + 1) // 2)):
        for block in range(blocks):
            layers.append(BasicBlock(channels, width << stage, stride=2 if stage > 0 and block == 0 else 1))
            channels = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
