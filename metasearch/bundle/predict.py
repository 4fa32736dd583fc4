"""Predict with the network of a bundle: `python predict.py IMAGE...` prints a line for each: file, class, probability.

Needs onnxruntime, numpy and pillow, and no metasearch. The file stands alone, beside model.onnx and bundle.json; a
network of vectors takes .npy and .csv files of rows instead of images.
Symbols: N inputs, K classes; an image is (C, H, W) uint8 with C 1 (grey) or 3 (RGB), a vector (F,) float32.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""The head of a JPEG's scan: none with another length is decoded."""
MOST_SCANS = 100
"""Of a JPEG: each goes over all of its pixels, and may have 42 bytes. For a JPEG in a TIFF, libtiff has this limit."""
MOST_SEGMENTS = 1000
"""Of a JPEG before its first scan, stray bytes included: Pillow takes one after the other, and joins those of Exif."""
WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
"""Markers of a JPEG that stand alone."""
TILE_WIDTH, TILE_LENGTH = 322, 323
"""Tags of a TIFF, whose tiles are decoded whole, however little of them lies within the image."""
GREY_MODES = frozenset(("1", "L", "I;16", "I;16B", "I;16L", "I"))
NOT_FINITE = "the network gives no finite numbers for it"


class ImageError(ValueError):
    """Why a file is no input of the network, in one line."""


def read_image(
    file: str | Path | BinaryIO, input_shape: tuple[int, ...], *, most_pixels: int = 89_478_485
) -> np.ndarray:
    """Return the image in a file as the network was trained on images: (C, H, W) uint8.

    Transparent pixels are laid over white, 16 bits cut to 8, and another size is resized (antialiased bilinear, the
    aspect ratio is not kept); of several frames the first counts. most_pixels: more are refused before any is decoded.
    Raises ImageError for a file that is damaged, too large or not of FORMATS.
    """
    if len(input_shape) != 3:
        raise ImageError("the network takes vectors, no images")
    channels, height, width = input_shape
    size = (width, height)
    try:
        with open_image(file) as opened:
            decoded = _decoded_size(opened)
            if decoded[0] * decoded[1] > most_pixels:
                raise ImageError(f"has {decoded[0]}x{decoded[1]} pixels, more than {most_pixels}")
            if opened.format in ("JPEG", "MPO") and len(SCAN.findall(_content(file))) > MOST_SCANS:
                raise ImageError(f"has more than {MOST_SCANS} scans")
            if opened.size != size:
                opened.draft(opened.mode, (2 * width, 2 * height))  # JPEG: decodes at 1/2, 1/4 or 1/8, much faster
            image = _to_mode(opened, "L" if channels == 1 else "RGB")
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            pixels = np.asarray(image, np.uint8)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"is damaged, or no image of {', '.join(FORMATS)}") from error
    except FileNotFoundError as error:
        raise ImageError("is not there") from error
    except Exception as error:  # a damaged file fails anywhere in Pillow, with any exception
        raise ImageError(f"cannot be read as an image ({_first_line(error)})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image without decoding its pixels. Raises as Pillow does, and ImageError for a head that takes long."""
    if isinstance(file, (str, Path)):
        with Path(file).open("rb") as stream:
            _check_segments(stream)
    else:
        _check_segments(file)
        file.seek(0)
    return Image.open(file, formats=FORMATS)


def _check_segments(stream: BinaryIO) -> None:
    """Raise ImageError for a JPEG of more than MOST_SEGMENTS, walked over as Pillow does."""
    if stream.read(2) != b"\xff\xd8":
        return
    for _ in range(MOST_SEGMENTS):
        if (first := stream.read(1)) != b"\xff":
            if not first:
                return
            continue
        code = stream.read(1)
        if code in (b"", b"\xda"):
            return
        if code == b"\xff":
            stream.seek(-1, io.SEEK_CUR)
        elif code[0] not in WITHOUT_LENGTH:
            stream.seek(max(0, int.from_bytes(stream.read(2), "big") - 2), io.SEEK_CUR)
    raise ImageError(f"has more than {MOST_SEGMENTS} segments before its pixels")


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of what is decoded of an image: of a TIFF in tiles, those at its edge are whole."""
    tags = getattr(image, "tag_v2", {})
    tile = [int(tags.get(tag, 1)) for tag in (TILE_WIDTH, TILE_LENGTH)]
    width, height = (-(-size // side) * side for size, side in zip(image.size, tile, strict=True))
    return width, height


def _content(file: str | Path | BinaryIO) -> bytes:
    """Return all that is in a file; an open one stays where it is."""
    if isinstance(file, (str, Path)):
        return Path(file).read_bytes()
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def read_rows(file: str | Path | BinaryIO, input_shape: tuple[int, ...]) -> np.ndarray:
    """Return the vectors in a .npy file, (N, F) or (F,), or in a CSV of F columns with or without a header: (N, F).

    Raises ImageError for a file that is neither, of no rows, of another number of columns, or with numbers that are not
    finite.
    """
    if len(input_shape) != 1:
        raise ImageError("the network takes images, no vectors")
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            rows = _rows(Path(file).read_bytes() if isinstance(file, (str, Path)) else file.read())
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("is not there") from error
    except Exception as error:  # a damaged file fails anywhere in NumPy, with any exception
        raise ImageError(f"cannot be read as .npy or .csv of rows ({_first_line(error)})") from error
    if not len(rows):
        raise ImageError("holds no rows")
    if rows.shape[1:] != tuple(input_shape):
        raise ImageError(f"must have {input_shape[0]} columns, got {', '.join(map(str, rows.shape[1:]))}")
    if not np.isfinite(rows).all():
        raise ImageError("must hold finite numbers only")
    return rows


def open_session(model: str | Path | bytes, *, threads: int = 1) -> Any:
    """Return onnxruntime's InferenceSession of an ONNX file, or of its content, on the CPU with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; they come as exceptions, too
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def logits_of(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) of inputs (N, C, H, W) uint8 or (N, F) float32."""
    return np.asarray(session.run(["logits"], {"input": inputs})[0])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, K) of logits (N, K); NaN in the rows of logits that are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def shown(file: str | Path) -> str:
    """Return a file's name without what a terminal would obey, or cannot print."""
    name = str(file)
    return name if name.isprintable() else ascii(name)


def main() -> int:
    """Predict for the files of the command line; return 1 if one could not be read, 2 where none is given."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stderr.write(f"usage: python {Path(__file__).name} IMAGE...\n")
        return 2
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged file has its one line
    folder = Path(__file__).resolve().parent
    bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    shape = tuple(bundle["input_shape"])
    session = open_session(folder / "model.onnx")
    failed = 0
    for file in sys.argv[1:]:
        try:
            inputs = read_image(file, shape)[None] if len(shape) == 3 else read_rows(file, shape)
            probabilities = softmax(logits_of(session, inputs))
            if not np.isfinite(probabilities).all():
                raise ImageError(NOT_FINITE)
        except ImageError as error:
            sys.stderr.write(f"{shown(file)}: {error}\n")
            failed = 1
            continue
        for number, row in enumerate(probabilities):
            place = shown(file) + ("" if len(shape) == 3 else f":{number}")
            sys.stdout.write(f"{place}\t{bundle['class_names'][row.argmax()]}\t{row.max():.4f}\n")
    return failed


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in GREY_MODES - {"1", "L"}:  # Pillow's own conversion clips 16-bit values at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert(mode)


def _rows(content: bytes) -> np.ndarray:
    """Return the rows of a .npy file or a CSV, (N, columns)."""
    if content.startswith(np.lib.format.MAGIC_PREFIX):
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return np.atleast_2d(loaded).astype(np.float32, casting="same_kind")
    lines = [line for line in csv.reader(content.decode("utf-8-sig").splitlines()) if line]
    return np.array(lines[_has_header(lines) :], np.float32)


def _has_header(lines: list[list[str]]) -> bool:
    try:
        [float(cell) for line in lines[:1] for cell in line]
    except ValueError:
        return True
    return False


def _first_line(error: BaseException) -> str:
    """Return the first line of an error without the file's name, which some end with."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(" '")[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
