"""Random shifts and mirror images, drawn once per view so that they can be replayed, applied to whole batches.

Symbols: B images of a batch (B, C, H, W); N examples of the train split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from metasearch.tasks.task import Augmentation


@dataclass(frozen=True)
class Choices:
    """What is done to each of N images. dy, dx: (N,) int64, pixels down and right. flip: (N,) bool, mirrored first."""

    dy: Tensor
    dx: Tensor
    flip: Tensor

    def __len__(self) -> int:
        return len(self.dy)

    def __getitem__(self, indices: Tensor | slice) -> Choices:
        """Return the choices of the examples at `indices`, (B,) int64 on the device of the choices, or a slice."""
        return Choices(self.dy[indices], self.dx[indices], self.flip[indices])

    def to(self, device: torch.device | str) -> Choices:
        """Return the same choices on a device."""
        return Choices(self.dy.to(device), self.dx.to(device), self.flip.to(device))


def view_choices(augmentation: Augmentation, *, count: int, view: int, seed: int) -> Choices:
    """Return the choices for `count` images that (seed, view) determine: each shift uniform in [-shift, shift].

    view, seed: at least 0. A teacher's logits of view v and the student's batch of view v see the same pixels.
    """
    rng = np.random.default_rng([seed, view])
    shift = augmentation.shift
    dy, dx = (torch.from_numpy(rng.integers(-shift, shift, size=count, endpoint=True)) for _ in range(2))
    flip = rng.random(count) < 0.5 if augmentation.flip else np.zeros(count, np.bool_)
    return Choices(dy, dx, torch.from_numpy(flip))


def apply_choices(images: Tensor, choices: Choices) -> Tensor:
    """Return the images mirrored where `flip`, then moved by (dy, dx), zeros moving in; same shape and dtype.

    images: (B, C, H, W), uint8 or floating point, before normalisation; choices: B of them, on any device.
    out[b, c, y, x] = m[b, c, y - dy, x - dx], with m the mirrored images and 0 outside of them.
    """
    batch, _, height, width = images.shape
    dy, dx, flip = (t.to(images.device)[:, None] for t in (choices.dy, choices.dx, choices.flip))
    rows = torch.arange(height, device=images.device) - dy
    columns = torch.arange(width, device=images.device) - dx
    columns = torch.where(flip, width - 1 - columns, columns)
    # one row and column of zeros on each side stand for everything outside
    padded = pad(images, (1, 1, 1, 1))
    rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
    places = (rows[:, :, None] * (width + 2) + columns[:, None, :]).reshape(batch, 1, height * width)
    flat = padded.flatten(2)
    return flat.gather(2, places.expand(-1, flat.shape[1], -1)).reshape(images.shape)
