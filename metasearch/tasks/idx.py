"""The idx format of the MNIST family: a magic number, D sizes, then the values in C order, all big-endian.

Magic: two zero bytes, one byte for the type, one byte for D (yann.lecun.com/exdb/mnist, "the IDX file format").
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from metasearch.errors import InputError
from metasearch.tasks.raw import Array

TYPES: dict[int, str] = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> Array:
    """Return the array in an idx file, gzipped or not (told by its first bytes), in native byte order.

    Raises InputError, naming the file, for a bad magic number, truncated data, bytes left over, a broken gzip stream
    or a file that cannot be read.
    """
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read ({error})") from error
    return parse_idx(str(path), data)


def parse_idx(place: str, data: bytes) -> Array:
    """Return the array that `data` hold in idx format; raises InputError, naming `place`."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES or not 1 <= data[3] <= 4:
        rule = "is not an idx file: it must begin with 00 00, a type (08 to 0e) and the number of axes (01 to 04)"
        raise InputError(place, rule, data[:4].hex(" "))
    dtype, dimensions = np.dtype(TYPES[data[2]]), data[3]
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise InputError(place, f"is truncated: {start} bytes of header are announced", len(data))
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=dimensions, offset=4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        kind = "is truncated" if len(data) < expected else "has bytes left over"
        raise InputError(place, f"{kind}: shape {shape} needs {expected} bytes", len(data))
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
