"""`metasearch predict`: the classes of images, or of rows, by a bundle's network. Loads neither torch nor ray.

Symbols: n inputs of a file (1 for an image), K classes.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.flags import AsJson

if TYPE_CHECKING:
    import numpy as np

    from metasearch.bundle.contents import Bundle
    from metasearch.bundle.runtime import Classifier

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"))
ROW_SUFFIXES = frozenset((".npy", ".csv"))
"""Of the files that are taken from folders; a file that is named itself may be called anything."""


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `export` wrote.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Files, and folders with all below; of vectors .npy, .csv.")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Name the N likeliest classes.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=65_536, metavar="N", help="Inputs that run at once.")] = 64,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="That decode, and that the network runs on.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Print a line for each image: file, class, probability. A file that cannot be read is named; the others go on.

    Example: metasearch predict BUNDLE photos --top 3
    """
    from metasearch.bundle.predict import shown
    from metasearch.bundle.runtime import open_bundle

    warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged file has its one line
    opened = open_bundle(bundle, threads=threads, batch=batch)
    found: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    count, start = 0, time.perf_counter()
    for file, result in _predictions(opened, _files(images, opened.bundle), batch=batch, threads=threads):
        if isinstance(result, str):
            failed.append({"file": str(file), "reason": result})
            typer.echo(f"metasearch: {shown(file)}: {result}", err=True)
            continue
        count += len(result)
        for record in _records(file, result, opened.bundle, top):
            if as_json:
                found.append(record)
            else:
                typer.echo(_line(record))
    seconds = time.perf_counter() - start
    if as_json:
        described = {"model": opened.bundle.name, "digest": opened.bundle.digest}
        typer.echo(json.dumps(described | {"predictions": found, "failed": failed}, allow_nan=False))
    kind = "images" if opened.bundle.is_image else "rows"
    typer.echo(f"{count:,} {kind} in {seconds:.2f} s: {count / seconds:,.0f} a second", err=True)
    if failed:
        raise typer.Exit(1)


def _files(paths: Iterable[Path], bundle: Bundle) -> Iterator[Path]:
    """Yield the files, and those below folders that may be inputs: hidden ones are left alone."""
    suffixes = IMAGE_SUFFIXES if bundle.is_image else ROW_SUFFIXES
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
            yield path
            continue
        within = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        shown = [file for file in within if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        yield from shown or [path]  # which is no image, and so named as one that cannot be read


def _predictions(
    opened: Classifier, files: Iterable[Path], *, batch: int, threads: int
) -> Iterator[tuple[Path, np.ndarray | str]]:
    """Yield each file with the probabilities (n, K) of its inputs, or why it has none; `batch` files in memory."""
    import numpy as np

    from metasearch.bundle.predict import NOT_FINITE, softmax

    remaining = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        while block := list(islice(remaining, batch)):
            read = list(pool.map(lambda file: _inputs(file, opened.bundle), block))
            inputs = [each for each in read if not isinstance(each, str)]
            ends = np.cumsum([len(each) for each in inputs])[:-1]
            split = iter(np.split(softmax(opened.logits(np.concatenate(inputs))), ends) if inputs else [])
            for file, each in zip(block, read, strict=True):
                found = each if isinstance(each, str) else next(split)
                yield file, found if isinstance(found, str) or np.isfinite(found).all() else NOT_FINITE


def _inputs(file: Path, bundle: Bundle) -> np.ndarray | str:
    """Return the inputs (n, ...) in a file, or why it has none."""
    from metasearch.bundle.predict import ImageError, read_image, read_rows

    try:
        return read_image(file, bundle.input_shape)[None] if bundle.is_image else read_rows(file, bundle.input_shape)
    except ImageError as error:
        return str(error)


def _records(file: Path, probabilities: np.ndarray, bundle: Bundle, top: int) -> Iterator[dict[str, Any]]:
    """Yield what is found for each input of a file, likeliest class first."""
    from metasearch.bundle.runtime import described, likeliest

    for row, values in enumerate(probabilities):
        prediction = described(likeliest(values, bundle.class_names, top=top))
        yield {"file": str(file)} | ({} if bundle.is_image else {"row": row}) | prediction


def _line(record: dict[str, Any]) -> str:
    """Return a record as predict.py prints it: file, then class and probability of each, between tabs."""
    from metasearch.bundle.predict import shown

    place = shown(record["file"]) + (f":{record['row']}" if "row" in record else "")
    return "\t".join([place, *(f"{each['class']}\t{each['probability']:.4f}" for each in record["top"])])
