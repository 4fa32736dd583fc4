"""Small data files in their true formats, and raw data read as `load_task` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from metasearch.tasks.idx import TYPES
from metasearch.tasks.raw import RawData, Request
from metasearch.tasks.sources import find_source

Array = npt.NDArray[Any]


def to_idx(values: Array) -> bytes:
    """Return `values` in idx format, the inverse of parse_idx."""
    big_endian = values.dtype.newbyteorder(">")
    code = next(code for code, text in TYPES.items() if np.dtype(text) == big_endian)
    sizes = np.asarray(values.shape, ">u4").tobytes()
    return bytes((0, 0, code, values.ndim)) + sizes + values.astype(big_endian).tobytes()


def read(text: str, root: Path, **options: Any) -> RawData:
    """Return the raw data of a TASK text, as load_task reads them."""
    source, argument = find_source(text)
    request = Request(argument, root, **options)
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    return source.read(request, source.locate(request), scratch)


def save_images(root: Path, sizes: dict[str, tuple[int, int]], *, mode: str = "RGB") -> None:
    """Write one image of random pixels for each path and (W, H)."""
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (height, width) if mode == "L" else (height, width, len(mode))
        Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(path)
