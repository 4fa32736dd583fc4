"""Image files decoded in blocks, so that a folder larger than memory can be prepared.

Symbols: N images, C channels (1 where all are grey, else 3), H, W pixels; sizes are (W, H), as Pillow has them.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.tasks.image_folder import Listing
from metasearch.tasks.raw import Array, RawData, RawSplit

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for the damaged files of its formats."""

BLOCK_BYTES = 64 * 2**20
GREY_MODES = frozenset(("1", "L", "I;16", "I;16B", "I;16L", "I"))

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Header:
    """What the first bytes of an image file say."""

    size: tuple[int, int]
    grey: bool


def read_images(
    listing: Listing, *, image_size: int | None, skip_corrupt: bool, scratch: Path, channels: int | None = None
) -> RawData:
    """Return the images of a listing as memory-mapped arrays, whose files are written into the folder `scratch`.

    channels: 1 or 3; without it images are stored as grey where every one is, else as RGB. Transparent pixels are laid
    over white. Where image_size is given each image is resized to (image_size, image_size) as it is read (antialiased
    bilinear, the aspect ratio is not kept); else all must have one size. Memory: one block of `BLOCK_BYTES` and an
    image a thread.
    Raises InputError for images of differing sizes, and for unreadable ones unless skip_corrupt, which leaves them
    out and names them in the notes.
    """
    corrupt: dict[Path, str] = {}
    splits: dict[str, RawSplit] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        headers: dict[Path, _Header] = {}
        for paths in _blocks(listing.files, 4096):
            for path, header in zip(paths, pool.map(_read_header, paths), strict=True):
                if isinstance(header, str):
                    corrupt[path] = header
                else:
                    headers[path] = header
        if not headers:
            raise InputError(listing.place, f"none of the {len(corrupt)} image files can be read")
        size = (image_size, image_size) if image_size else _common_size(listing, headers)
        channels = channels or (1 if all(header.grey for header in headers.values()) else 3)
        for split, pairs in listing.splits.items():
            readable = [pair for pair in pairs if pair[0] in headers]
            splits[split] = _decode_all(readable, channels, size, pool, scratch / f"{split}.raw", corrupt)
    notes = _corrupt_notes(listing, corrupt, splits, skip_corrupt=skip_corrupt)
    if listing.other_files:
        notes["other_files_ignored"] = listing.other_files
    return RawData(splits["train"], splits.get("validation"), splits.get("test"), listing.class_names, notes)


def _decode_all(
    pairs: Sequence[tuple[Path, int]],
    channels: int,
    size: tuple[int, int],
    pool: ThreadPoolExecutor,
    target: Path,
    corrupt: dict[Path, str],
) -> RawSplit:
    """Append the images to the file `target` block by block; record the unreadable in `corrupt` and leave them out."""
    shape = (channels, size[1], size[0])
    labels: list[int] = []
    with target.open("wb") as file:
        for block in _blocks(pairs, max(1, BLOCK_BYTES // math.prod(shape))):
            pixels = pool.map(lambda pair: _decode(pair[0], channels, size), block)
            for (path, label), image in zip(block, pixels, strict=True):
                if isinstance(image, str):
                    corrupt[path] = image
                else:
                    file.write(image.tobytes())
                    labels.append(label)
    if not labels:
        return RawSplit(np.empty((0, *shape), np.uint8), np.empty(0, np.int64))
    return RawSplit(np.memmap(target, np.uint8, "r", shape=(len(labels), *shape)), np.asarray(labels, np.int64))


def _read_header(path: Path) -> _Header | str:
    try:
        with Image.open(path) as image:
            return _Header(image.size, image.mode in GREY_MODES)
    except DECODE_ERRORS as error:
        return _reason(error)


def _decode(path: Path, channels: int, size: tuple[int, int]) -> Array | str:
    """Return (C, H, W) uint8, or why the file cannot be decoded. size: (W, H)."""
    try:
        with Image.open(path) as opened:
            if opened.size != size:
                opened.draft(opened.mode, (2 * size[0], 2 * size[1]))  # JPEG: decodes at 1/2, 1/4 or 1/8, much faster
            image = _to_mode(opened, "L" if channels == 1 else "RGB")
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            pixels = np.asarray(image, np.uint8)
    except DECODE_ERRORS as error:
        return _reason(error)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in GREY_MODES - {"1", "L"}:  # Pillow's own conversion clips 16-bit values at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert(mode)


def _common_size(listing: Listing, headers: dict[Path, _Header]) -> tuple[int, int]:
    (first, header), *_ = headers.items()
    for path, other in headers.items():
        if other.size != header.size:
            shown = [
                f"{file.relative_to(listing.root)} is {_shown(found.size)}"
                for file, found in ((first, header), (path, other))
            ]
            sizes = ", ".join(shown)
            raise InputError(listing.place, f"images of differing sizes need --image-size: {sizes}")
    return header.size


def _corrupt_notes(
    listing: Listing, corrupt: dict[Path, str], splits: dict[str, RawSplit], *, skip_corrupt: bool
) -> dict[str, object]:
    if not corrupt:
        return {}
    names = sorted(str(path.relative_to(listing.root)) for path in corrupt)
    if not skip_corrupt:
        shown = "; ".join(f"{path.relative_to(listing.root)} ({corrupt[path]})" for path in sorted(corrupt)[:3])
        rule = f"{len(corrupt)} of {len(listing.files)} image files cannot be read"
        raise InputError(listing.place, f"{rule}: {shown}{'; ...' if len(corrupt) > 3 else ''}")
    for split, raw in splits.items():
        counts = np.bincount(raw.labels, minlength=len(listing.class_names))
        if len(raw) == 0 or (split == "train" and counts.min() == 0):
            rule = f"too few readable images are left in the {split} split, without {', '.join(names[:3])}"
            raise InputError(listing.place, rule, counts.tolist())
    return {"corrupt_files_skipped": len(names), "corrupt_files": names[:100]}


def _blocks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def _reason(error: BaseException) -> str:
    return first_line(error).split(" '")[0]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
