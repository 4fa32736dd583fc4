from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metasearch.tasks import Augmentation
from metasearch.tasks.augment import Choices, apply_choices, view_choices


def shifted_one_by_one(images: Tensor, choices: Choices) -> Tensor:
    """The definition of apply_choices, pixel by pixel."""
    out = torch.zeros_like(images)
    batch, _, height, width = images.shape
    for b in range(batch):
        image = images[b].flip(-1) if choices.flip[b] else images[b]
        for y in range(height):
            for x in range(width):
                row, column = y - int(choices.dy[b]), x - int(choices.dx[b])
                if 0 <= row < height and 0 <= column < width:
                    out[b, :, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "height", "width", "shift"), [(1, 5, 5, 2), (3, 4, 7, 3), (2, 3, 3, 6)])
def test_applied_choices_match_a_loop_over_pixels(
    dtype: torch.dtype, channels: int, height: int, width: int, shift: int
) -> None:
    images = torch.randint(1, 256, (40, channels, height, width)).to(dtype)
    choices = view_choices(Augmentation(shift, flip=True), count=40, view=1, seed=3)
    changed = apply_choices(images, choices)
    assert changed.dtype == dtype
    assert torch.equal(changed, shifted_one_by_one(images, choices))


def test_choices_depend_on_seed_and_view_only() -> None:
    augmentation = Augmentation(2, flip=True)
    first, again = (view_choices(augmentation, count=500, view=4, seed=7) for _ in range(2))
    other_view = view_choices(augmentation, count=500, view=5, seed=7)
    other_seed = view_choices(augmentation, count=500, view=4, seed=8)
    for name in ("dy", "dx", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other_view, name))
        assert not torch.equal(getattr(first, name), getattr(other_seed, name))


def test_shifts_cover_their_whole_range_and_flips_are_half() -> None:
    choices = view_choices(Augmentation(2, flip=True), count=4000, view=0, seed=0)
    assert choices.dy.dtype == choices.dx.dtype == torch.int64
    assert choices.flip.dtype == torch.bool
    assert sorted(set(choices.dy.tolist())) == sorted(set(choices.dx.tolist())) == [-2, -1, 0, 1, 2]
    assert 0.45 < choices.flip.float().mean() < 0.55


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8)).to(torch.uint8)
    assert torch.equal(apply_choices(images, view_choices(Augmentation(), count=6, view=0, seed=0)), images)


def test_choices_of_a_batch_are_those_of_its_examples() -> None:
    images = torch.randint(0, 256, (10, 1, 6, 6)).to(torch.uint8)
    choices = view_choices(Augmentation(2, flip=True), count=10, view=0, seed=0)
    batch = torch.tensor([7, 2, 2, 9])
    assert torch.equal(apply_choices(images[batch], choices[batch]), apply_choices(images, choices)[batch])
    assert len(choices[batch]) == len(choices[2:6]) == 4
