from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metasearch.bundle.contents import PROGRAM, SCRIPT, Bundle
from metasearch.bundle.predict import read_image, softmax
from metasearch.bundle.runtime import open_bundle
from tests.bundle.forged import forge
from tests.bundle.stand_ins import write_stand_in
from tests.command_line import Run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_stand_in(tmp_path_factory.mktemp("images") / "bundle")


@pytest.fixture(scope="module")
def of_vectors(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_stand_in(tmp_path_factory.mktemp("vectors") / "bundle", shape=(6,), family="mlp")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of seven images, some below it, and of files that are none."""
    folder = tmp_path / "photos"
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    rng = np.random.default_rng(0)
    names = ["a.png", "b.JPG", "c.bmp", "sub/d.png", "sub/e.webp", "sub/deeper/f.gif", "sub/deeper/g.tiff"]
    for name in [*names, ".hidden/h.png", ".i.png"]:
        Image.fromarray(rng.integers(0, 256, (9, 12), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


IN_PHOTOS = ["a.png", "b.JPG", "c.bmp", "sub/d.png", "sub/deeper/f.gif", "sub/deeper/g.tiff", "sub/e.webp"]


def expected_lines(bundle: Bundle, files: list[Path]) -> list[str]:
    classified = open_bundle(bundle.folder).classify(np.stack([read_image(f, bundle.input_shape) for f in files]))
    return [f"{f}\t{name}\t{share:.4f}" for f, (name, share) in zip(files, classified, strict=True)]


@pytest.mark.parametrize("options", [[], ["--batch", "1"], ["--batch", "3", "--threads", "2"]])
def test_files_and_folders_are_predicted_in_their_order(
    options: list[str], bundle: Bundle, photos: Path, metasearch: Run
) -> None:
    files = [photos / "c.bmp", *(photos / name for name in IN_PHOTOS)]
    code, out, err = metasearch("predict", str(bundle.folder), str(photos / "c.bmp"), str(photos), *options)
    assert code == 0
    assert out.splitlines() == expected_lines(bundle, files)
    assert re.fullmatch(r"8 images in \d+\.\d\d s: [\d,]+ a second\n", err)


def test_a_file_that_cannot_be_read_is_a_line_and_the_others_are_predicted(
    bundle: Bundle, photos: Path, metasearch: Run
) -> None:
    (photos / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photos / "sub" / "line\nbreak.png").write_bytes(b"")
    (photos / "empty").mkdir()
    arguments = [photos, photos / "nothing.png", photos / "notes.txt", photos / "empty"]
    code, out, err = metasearch("predict", str(bundle.folder), *map(str, arguments))
    assert code == 1
    assert out.splitlines() == expected_lines(bundle, [photos / name for name in IN_PHOTOS])
    *failed, last = err.splitlines()
    damaged = "is damaged, or no image of PNG, JPEG, GIF, BMP, WEBP, TIFF"
    assert sorted(failed) == sorted(
        [
            f"metasearch: {photos / 'aa.png'}: {damaged}",
            f"metasearch: {str(photos / 'sub' / 'line')!r}"[:-1] + f"\\nbreak.png': {damaged}",
            f"metasearch: {photos / 'nothing.png'}: is not there",
            f"metasearch: {photos / 'notes.txt'}: {damaged}",
            f"metasearch: {photos / 'empty'}: cannot be read as an image (Is a directory)",
        ]
    )
    assert last.startswith("7 images in ")


def test_json_names_the_likeliest_classes_and_what_failed(bundle: Bundle, photos: Path, metasearch: Run) -> None:
    (photos / "aa.png").write_bytes(b"")
    code, out, err = metasearch("predict", str(bundle.folder), str(photos), "--json", "--top", "2")
    found = json.loads(out)
    assert code == 1
    assert len(err.splitlines()) == 2
    assert (found["model"], found["digest"]) == (bundle.name, bundle.digest)
    assert [each["file"] for each in found["failed"]] == [str(photos / "aa.png")]
    assert [each["file"] for each in found["predictions"]] == [str(photos / name) for name in IN_PHOTOS]
    for each in found["predictions"]:
        image = read_image(each["file"], bundle.input_shape)[None]
        shares = softmax(open_bundle(bundle.folder).logits(image))[0]
        best = np.argsort(-shares)[:2]
        assert [part["class"] for part in each["top"]] == [bundle.class_names[index] for index in best]
        np.testing.assert_allclose([part["probability"] for part in each["top"]], shares[best], atol=1e-5)
        assert {"class": each["class"], "probability": each["probability"]} == each["top"][0]


def test_rows_are_predicted_from_csv_and_npy(of_vectors: Bundle, tmp_path: Path, metasearch: Run) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.savetxt(tmp_path / "b.csv", rows[:2], delimiter=",", fmt="%.9g", header="u,v,w,x,y,z", comments="")
    classified = open_bundle(of_vectors.folder).classify(np.concatenate([rows, rows[:2]]))
    places = [f"{tmp_path / 'a.npy'}:{row}" for row in range(5)] + [f"{tmp_path / 'b.csv'}:{row}" for row in range(2)]
    code, out, err = metasearch("predict", str(of_vectors.folder), str(tmp_path), "--batch", "2")
    assert code == 0
    assert out.splitlines() == [
        f"{place}\t{name}\t{share:.4f}" for place, (name, share) in zip(places, classified, strict=True)
    ]
    assert err.startswith("7 rows in ")


def test_rows_that_the_network_cannot_take_fail_alone(of_vectors: Bundle, tmp_path: Path, metasearch: Run) -> None:
    files = [tmp_path / name for name in ("good.csv", "empty.csv", "vast.csv")]
    for file, line in zip(files, ("1,2,3,4,5,6", "u,v,w,x,y,z", "3e38,3e38,3e38,3e38,3e38,3e38"), strict=True):
        file.write_text(line + "\n", encoding="utf-8")
    code, out, err = metasearch("predict", str(of_vectors.folder), "--json", *map(str, files), "x" * 300)
    found = json.loads(out, parse_constant=pytest.fail)
    assert code == 1
    assert [each["file"] for each in found["predictions"]] == [str(files[0])]
    reasons = ["holds no rows", "the network gives no finite numbers for it", "cannot be read as .npy or .csv of rows"]
    assert [each["reason"].split(" (")[0] for each in found["failed"]] == reasons
    assert len(err.splitlines()) == 4


def test_what_is_no_bundle_is_one_line(tmp_path: Path, metasearch: Run) -> None:
    assert metasearch("predict", str(tmp_path), "x.png") == (
        3,
        "",
        f"metasearch: {tmp_path}: no bundle is there: it has no bundle.json\n",
    )


def test_neither_predict_py_nor_the_program_is_ever_run_and_no_torch_is_loaded(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "armed"))
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n".encode()
    forge(folder, {SCRIPT: trap, PROGRAM: b"\x80\x04cposix\nsystem\n(Vtouch sprung\ntR."})
    program = """
import sys
from metasearch.cli import main
try:
    main()
finally:
    print("loaded", *sorted({"torch", "ray", "predict"} & set(sys.modules)), file=sys.stderr)
"""
    command = [sys.executable, "-c", program, "predict", str(folder), str(photos / "a.png")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    assert run.returncode == 0
    assert run.stdout.splitlines() == expected_lines(bundle, [photos / "a.png"])
    assert run.stderr.splitlines()[-1] == "loaded"
    assert not (tmp_path / "sprung").exists()
    assert not (folder / "sprung").exists()
