from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metasearch.bundle import predict
from metasearch.bundle.predict import MOST_SCANS, ImageError, open_image, read_image, read_rows, softmax
from metasearch.bundle.runtime import open_bundle
from metasearch.tasks.image_files import _decode
from tests.bundle.stand_ins import write_stand_in

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")
REPOSITORY = Path(__file__).parent.parent.parent


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 4), dtype=np.uint8), "RGBA")
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(0, 60_000, 100, dtype=np.uint16).reshape(20, 30))


def thirty_two_bits() -> Image.Image:
    return Image.fromarray(np.arange(0, 60_000, 100, dtype=np.int32).reshape(20, 30))


def one_bit() -> Image.Image:
    return photo(20, 30, "L").convert("1")


def palette_with_a_transparent_colour() -> Image.Image:
    image = photo(20, 30).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    image.info["transparency"] = 3
    return image


FILES: dict[str, Callable[[], Image.Image]] = {
    "colour.png": lambda: photo(20, 30),
    "grey.png": lambda: photo(20, 30, "L"),
    "alpha.png": lambda: photo(20, 30, "RGBA"),
    "grey-alpha.png": lambda: photo(20, 30, "LA"),
    "palette.png": palette_with_a_transparent_colour,
    "palette.gif": palette_with_a_transparent_colour,
    "one-bit.png": one_bit,
    "sixteen.png": sixteen_bits,
    "sixteen.tiff": sixteen_bits,
    "thirty-two.tiff": thirty_two_bits,
    "cmyk.jpg": lambda: photo(200, 300, "CMYK"),
    "cmyk.tiff": lambda: photo(20, 30, "CMYK"),
    "large.jpg": lambda: photo(500, 300),
    "large-grey.jpg": lambda: photo(500, 300, "L"),
    "exact.jpg": lambda: photo(12, 10),
    "tall.webp": lambda: photo(9, 70),
    "alpha.webp": lambda: photo(20, 30, "RGBA"),
    "ycbcr.tiff": lambda: photo(20, 30, "YCbCr"),
    "plain.bmp": lambda: photo(20, 30),
    "tiny.png": lambda: photo(1, 1),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_an_image_is_read_as_the_training_images_were(name: str, channels: int, tmp_path: Path) -> None:
    FILES[name]().save(tmp_path / name)
    expected = _decode(tmp_path / name, channels, (12, 10))
    assert isinstance(expected, np.ndarray)
    for file in (tmp_path / name, str(tmp_path / name), io.BytesIO((tmp_path / name).read_bytes())):
        found = read_image(file, (channels, 10, 12))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_real_images_are_read_as_the_training_images_were(shared_data: Path) -> None:
    files = sorted((shared_data / "SignLanguageDigits").rglob("*.JPG"))[:40]
    assert files
    for file in files:
        np.testing.assert_array_equal(read_image(file, (3, 32, 32)), _decode(file, 3, (32, 32)))


def png_that_says(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header claims a size, with so much of compressed data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png_that_says(9500, 9500), "has 9500x9500 pixels, more than 89478485"),
        (png_that_says(60_000, 60_000), "could be decompression bomb"),
        (png_that_says(2**31 - 1, 2**31 - 1), "cannot be read as an image"),
        (png_that_says(0, 5), "damaged|cannot be read"),
        (png_that_says(8, 8, b"\0" * 20), "cannot be read as an image"),
        (b"", "is damaged, or no image of PNG, JPEG, GIF, BMP, WEBP, TIFF"),
        (b"P6 2 2 255 " + bytes(12), "is damaged, or no image"),  # a PPM, which Pillow itself would open
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is damaged, or no image"),  # Ghostscript's
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is damaged, or no image"),
        (b"\x80\x04\x95pickled", "is damaged, or no image"),
    ],
)
def test_a_file_that_is_no_image_has_a_reason_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as refused:
        read_image(io.BytesIO(content), (1, 8, 8))
    assert str(refused.value).isprintable()


def test_pixels_are_limited_before_any_is_decoded() -> None:
    content = io.BytesIO()
    photo(40, 30).save(content, "PNG")
    assert read_image(io.BytesIO(content.getvalue()), (3, 8, 8), most_pixels=1200).shape == (3, 8, 8)
    with pytest.raises(ImageError, match="has 40x30 pixels, more than 1199"):
        read_image(io.BytesIO(content.getvalue()[:60]), (3, 8, 8), most_pixels=1199)


def test_the_scans_of_a_jpeg_are_limited_before_any_is_decoded() -> None:
    content = io.BytesIO()
    photo(40, 30).save(content, "JPEG", progressive=True)
    whole, end = content.getvalue()[:-2], content.getvalue()[-2:]
    scan = whole[whole.rindex(b"\xff\xda") :]
    repeated = whole + (MOST_SCANS - whole.count(b"\xff\xda")) * scan
    assert read_image(io.BytesIO(repeated + end), (3, 8, 8)).shape == (3, 8, 8)
    with pytest.raises(ImageError, match="has more than 100 scans"):
        read_image(io.BytesIO(repeated + scan + end), (3, 8, 8))
    trailer = 2 * MOST_SCANS * b"\xff\xda"  # as a camera's film or depth map behind the photograph has by chance
    assert read_image(io.BytesIO(whole + end + trailer), (3, 8, 8)).shape == (3, 8, 8)


@pytest.mark.parametrize("part", [b"\xff\xe1\x00\x0aExif\0\0..", b"\xff\xfe\x00\x02", b"\xff\xff", b"."])
def test_the_parts_of_a_jpeg_before_its_pixels_are_limited(part: bytes) -> None:
    content = io.BytesIO()
    photo(40, 30).save(content, "JPEG")
    start, rest = content.getvalue()[:20], content.getvalue()[20:]  # behind the first segment
    assert read_image(io.BytesIO(start + 50 * part + rest), (3, 8, 8)).shape == (3, 8, 8)
    for read in (lambda file: read_image(file, (3, 8, 8)), open_image):
        with pytest.raises(ImageError, match="has more than 1000 segments before its pixels"):
            read(io.BytesIO(start + 2000 * part + rest))


def test_the_tiles_of_a_tiff_count_as_pixels() -> None:
    def tiled(side: int) -> io.BytesIO:
        tile = zlib.compress(bytes(256))
        tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
        end = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
        return io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + end)

    assert not read_image(tiled(16), (1, 10, 10), most_pixels=256).any()
    for side, most in ((16, 255), (46000, 25_000_000)):
        with pytest.raises(ImageError, match=f"has {side}x{side} pixels, more than {most}"):
            read_image(tiled(side), (1, 10, 10), most_pixels=most)


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^is not there$"):
        read_image(tmp_path / "nothing.png", (1, 8, 8))
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path, (1, 8, 8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
@given(data=st.data())
def test_a_damaged_image_is_read_or_has_a_reason_in_one_line(kind: str, data: st.DataObject) -> None:
    whole = io.BytesIO()
    photo(24, 16).save(whole, kind)
    changed = bytearray(whole.getvalue()[: data.draw(st.integers(1, len(whole.getvalue())))])
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = read_image(io.BytesIO(bytes(changed)), (3, 8, 8), most_pixels=100_000)
    except ImageError as error:
        reason = str(error)
    else:
        reason = ""
        assert image.shape == (3, 8, 8)
    assert "\n" not in reason


@pytest.mark.parametrize(
    "text", ["1,2,3\n4,5,6\n", "a,b,c\n1,2,3\n4,5,6", "\ufeff1, 2, 3\r\n\r\n4,5,6\r\n", "1,2,3\n4e0,5.0,6"]
)
def test_rows_of_csv_are_read_with_and_without_a_header(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8", newline="")
    rows = read_rows(tmp_path / "rows.csv", (3,))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[1, 2, 3], [4, 5, 6]])


def test_logits_that_are_not_finite_have_no_probabilities_and_warn_of_nothing() -> None:
    logits = np.array([[np.inf, 0.0], [-np.inf, -np.inf], [-3e38, 3e38]], np.float32)
    with np.errstate(all="raise"):
        found = softmax(logits)
    np.testing.assert_array_equal(found, [[np.nan, np.nan], [np.nan, np.nan], [0.0, 1.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.float16])
def test_rows_of_npy_are_read_from_any_real_type(dtype: type[np.generic], tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    np.save(tmp_path / "rows.npy", values)
    np.testing.assert_array_equal(read_rows(tmp_path / "rows.npy", (3,)), values.astype(np.float32))
    np.save(tmp_path / "row.npy", values[0])
    assert read_rows(tmp_path / "row.npy", (3,)).shape == (1, 3)


class Armed:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_an_npy_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([Armed(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"cannot be read as \.npy or \.csv"):
        read_rows(tmp_path / "rows.npy", (1,))
    assert not (tmp_path / "sprung").exists()


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no rows"),
        (b"a,b,c\n", "holds no rows"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }\n"), "holds no rows"),
        (b"1,2\n", "must have 3 columns, got 2"),
        (b"1,2,3\n4,5\n", "cannot be read as"),
        (b"1,2,3\n4,5,six\n", "cannot be read as"),
        (b"1,2,nan\n", "must hold finite numbers only"),
        (b"1,2,1e60\n", "must hold finite numbers only"),
        (b"\xff\xfe\x00", "cannot be read as"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }\n"), "cannot be read as"),
        (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1, 3), }\n", bytes(24)), "cannot be read as"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 3), }\n", bytes(12)), "must have 3 columns"),
        (npy("__import__('os').mkdir('sprung')\n"), "cannot be read as"),
    ],
)
def test_a_file_of_no_rows_has_a_reason_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as refused:
        read_rows(io.BytesIO(content), (3,))
    assert "\n" not in str(refused.value)


def test_images_are_no_rows_and_rows_no_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="takes vectors"):
        read_image(tmp_path / "x.png", (3,))
    with pytest.raises(ImageError, match="takes images"):
        read_rows(tmp_path / "x.csv", (1, 8, 8))


def test_softmax_is_torch_s_also_of_huge_logits() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(dim=1), atol=1e-6)


def test_predict_py_imports_nothing_of_this_package_and_only_its_three() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1], run_name='alone'); print(*sorted(sys.modules))"
    command = [sys.executable, "-I", "-c", code, str(predict.__file__)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert not {"metasearch", "torch", "onnx", "ray", "typer"} & set(loaded)


def test_predict_py_prints_the_classes_of_the_package(stand_in: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("colour.png", "large.jpg", "alpha.png")]
    for file in files:
        FILES[file.name]().save(file)
    bad = tmp_path / "b\x1b[31mad.png"
    bad.write_bytes(b"")
    command = [sys.executable, "-I", str(stand_in / "predict.py"), *map(str, files), str(bad)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr == f"{str(bad)!a}: is damaged, or no image of PNG, JPEG, GIF, BMP, WEBP, TIFF\n"
    opened = open_bundle(stand_in)
    expected = opened.classify(np.stack([read_image(file, opened.bundle.input_shape) for file in files]))
    assert run.stdout.splitlines() == [
        f"{file}\t{name}\t{probability:.4f}" for file, (name, probability) in zip(files, expected, strict=True)
    ]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what predict.py asks for, in the versions of constraints.txt, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.partition("==")[0].lower() in ("onnxruntime", "numpy", "pillow")]
    assert len(wanted) == 3
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=300)
    installed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    assert not {"metasearch", "torch", "onnx"} & {package["name"] for package in json.loads(installed)}
    return python


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "int8"), [((1, 8, 8), True), ((6,), False)])
def test_predict_py_runs_with_its_three_packages_alone(
    shape: tuple[int, ...], int8: bool, bare_python: Path, tmp_path: Path
) -> None:
    bundle = write_stand_in(tmp_path / "bundle", shape=shape, family="mlp", int8=int8)
    opened = open_bundle(bundle.folder)
    rng = np.random.default_rng(0)
    if bundle.is_image:
        inputs = rng.integers(0, 256, (20, *shape), dtype=np.uint8)
        names = [str(tmp_path / f"{number}.png") for number in range(20)]
        for name, image in zip(names, inputs, strict=True):
            Image.fromarray(image[0]).save(name)
        arguments = names
    else:
        inputs = rng.normal(size=(20, *shape)).astype(np.float32)
        np.save(tmp_path / "rows.npy", inputs)
        arguments = [str(tmp_path / "rows.npy")]
        names = [f"{arguments[0]}:{number}" for number in range(20)]
    shutil.move(bundle.folder, tmp_path / "elsewhere")
    run = subprocess.run(
        [bare_python, "-I", str(tmp_path / "elsewhere" / "predict.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split("\t") for line in run.stdout.splitlines()]
    assert [name for name, _, _ in found] == names
    assert [predicted for _, predicted, _ in found] == [name for name, _ in opened.classify(inputs)]
    probabilities = [probability for _, probability in opened.classify(inputs)]
    np.testing.assert_allclose([float(probability) for _, _, probability in found], probabilities, atol=1e-3)
