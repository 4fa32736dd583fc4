"""Bodies that are broken in many ways, by a seed: images, forms and JSON, mutated from whole ones."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

Item = TypeVar("Item")

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM")
"""The six that are read, and two that are not."""
MODES = ("L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK")
FORM = "multipart/form-data; boundary=xyz"
TOKENS = (
    b"\x00",
    b"\xff" * 4,
    b"\r\n",
    b"\r\n--xyz",
    b"--",
    b'"',
    b"]",
    b"[" * 50,
    b"}",
    b"NaN",
    b"1e999",
    b"-",
    b"9" * 400,
)
TYPES = ("image/png", "image/jpeg", "image/gif", "application/octet-stream", "image/", "image/png; charset=x")
STRANGE_TYPES = (
    "",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary*=x; boundary*0=y",
    f"multipart/form-data; boundary*{'0' * 5000}=x",
    "é",
    "application/json",
)
FILE_NAMES = (
    b'filename="a.png"',
    b"filename*=a; filename*0=b",
    b"filename*=a%00b''xx",
    b"filename*=idna''%ff",
    b"filename*=undefined''x",
    b"filename*=punycode''%ff",
    b"filename*=utf-7''%2B2AA-",
)
"""A plain one, and those of RFC 2231, which no form may have."""


@dataclass(frozen=True)
class Body:
    """A request's body and what it says that it is."""

    content: bytes
    content_type: str


def malformed_images(rng: np.random.Generator, count: int) -> Iterator[Body]:
    """Yield bodies for a network of images; a few of them may be whole by chance."""
    whole = _whole_images(rng)
    for _ in range(count):
        image = _choose(rng, whole)
        kind = rng.integers(10)
        if kind == 0:
            yield Body(_noise(rng), _choose(rng, TYPES))
        elif kind == 1:
            yield Body(_form(rng, image), FORM)
        elif kind == 2:
            yield Body(_mutated(rng, _form(rng, image)), FORM)
        elif kind == 3:
            yield Body(_mutated(rng, image), _choose(rng, STRANGE_TYPES))
        elif kind == 4:
            yield Body(_strange_png(rng), "image/png")
        elif kind == 5:
            yield Body(image[: int(rng.integers(60))] + _noise(rng), _choose(rng, TYPES))
        else:
            yield Body(_mutated(rng, image), _choose(rng, TYPES))


def malformed_rows(rng: np.random.Generator, count: int, *, features: int) -> Iterator[Body]:
    """Yield bodies for a network of vectors."""
    for _ in range(count):
        rows = rng.normal(size=(int(rng.integers(1, 4)), features)).round(3).tolist()
        whole = json.dumps({"rows": rows}).encode()
        kind = rng.integers(6)
        if kind == 0:
            yield Body(_noise(rng), "application/json")
        elif kind == 1:
            yield Body(json.dumps(_nested(rng, 6)).encode(), "application/json")
        elif kind == 2:
            rows[0][int(rng.integers(features))] = _nested(rng, 3)
            yield Body(json.dumps({"rows": rows}).encode(), "application/json")
        elif kind == 3:
            yield Body(whole, _choose(rng, STRANGE_TYPES[:-1]))
        else:
            yield Body(_mutated(rng, whole), "application/json")


def _whole_images(rng: np.random.Generator) -> list[bytes]:
    found = []
    for number, kind in enumerate(FORMATS * 4):
        size = tuple(int(side) for side in rng.integers(1, 200, 2))
        pixels = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        for mode in (MODES[number % len(MODES)], "RGB"):
            file = io.BytesIO()
            try:
                pixels.convert("L" if mode == "I;16" else mode).convert(mode).save(file, kind)
            except (OSError, ValueError):  # not every format has every mode
                continue
            found.append(file.getvalue())
            break
    return found


def _mutated(rng: np.random.Generator, content: bytes) -> bytes:
    for _ in range(int(rng.integers(1, 5))):
        content = _choose(rng, MUTATIONS)(rng, content, *sorted(int(n) for n in rng.integers(0, len(content) + 1, 2)))
    return content[:200_000]


def _bits_flipped(rng: np.random.Generator, content: bytes) -> bytes:
    flipped = bytearray(content)
    for place in rng.integers(0, max(len(flipped), 1), 8) if flipped else ():
        flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def _strange_png(rng: np.random.Generator) -> bytes:
    """Return a PNG whose header says anything, with sums that are right."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    sides = [int(2 ** rng.uniform(0, 31.9)) for _ in range(2)]
    depth, colors = _choose(rng, (1, 2, 4, 8, 16, 3, 255)), _choose(rng, (0, 2, 3, 4, 6, 1, 99))
    header = b"".join(side.to_bytes(4, "big") for side in sides) + bytes([depth, colors, 0, 0, int(rng.integers(3))])
    extra = chunk(_choose(rng, (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"eXIf")), _noise(rng)[:300])
    data = zlib.compress(bytes(int(rng.integers(100_000))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _form(rng: np.random.Generator, image: bytes) -> bytes:
    head = b'--xyz\r\nContent-Disposition: form-data; name="f"; ' + _choose(rng, FILE_NAMES) + b"\r\n\r\n"
    count = int(rng.integers(0, 4))
    return (head + image[:5000] + b"\r\n") * count + b"--xyz--\r\n"


def _nested(rng: np.random.Generator, depth: int) -> object:
    kind = rng.integers(8 if depth else 6)
    if kind == 6:
        return [_nested(rng, depth - 1) for _ in range(int(rng.integers(4)))]
    if kind == 7:
        return {_choose(rng, ("rows", "x", "")): _nested(rng, depth - 1) for _ in range(int(rng.integers(3)))}
    return (None, True, -1, 10**40, "text", float("inf"))[kind]


def _noise(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 2000)))


def _choose(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


Mutation = Callable[[np.random.Generator, bytes, int, int], bytes]
"""Of a content, between a start and an end."""
MUTATIONS: tuple[Mutation, ...] = (
    lambda rng, content, start, end: content[:start],
    lambda rng, content, start, end: content[:start] + content[end:],
    lambda rng, content, start, end: content[:start] + _choose(rng, TOKENS) + content[start:],
    lambda rng, content, start, end: content[:start] + rng.bytes(4) + content[start + 4 :],
    lambda rng, content, start, end: content[:start] + rng.bytes(1) + content[start + 1 :],
    lambda rng, content, start, end: content + content[start:end],
    lambda rng, content, start, end: _bits_flipped(rng, content),
)
