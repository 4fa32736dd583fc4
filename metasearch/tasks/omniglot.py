"""Omniglot: 20 drawings of each of many characters, 105x105; each character of each alphabet is a class.

    omniglot-py/images_background/ALPHABET/CHARACTER/*.png      and images_evaluation, where they are there;
    omniglot-py/images_background_small1/...                    and small2, else.

A folder may also lie there as the zip file it is published as.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import partial
from pathlib import Path

from metasearch.errors import InputError
from metasearch.tasks.image_files import read_images
from metasearch.tasks.image_folder import Listing, image_files_below
from metasearch.tasks.located import download, fetch_parts, not_found
from metasearch.tasks.raw import RawData, Request, Source

FOLDER = "omniglot-py"
WHOLE = ("images_background", "images_evaluation")
SMALL = ("images_background_small1", "images_background_small2")


def _places(request: Request) -> list[Path]:
    """Return the folders, or zip files of folders, that make up the data; download the whole set if asked for."""
    place = request.data_root / FOLDER
    if request.download and len(_present(place, WHOLE)) < len(WHOLE):
        parts = ({"background": True}, {"background": False})
        download(request, place, partial(fetch_parts, dataset="Omniglot", parts=parts))
    found = _present(place, WHOLE) or _present(place, SMALL)
    if not found:
        raise not_found(request, place, [f"{WHOLE[0]} (or {SMALL[0]})"])
    return found


def _present(place: Path, names: tuple[str, ...]) -> list[Path]:
    spelt = [(place / name, place / f"{name}.zip") for name in names]
    return [folder if folder.is_dir() else archive for folder, archive in spelt if folder.is_dir() or archive.is_file()]


def _locate(request: Request) -> tuple[Path, ...]:
    return tuple(
        path for place in _places(request) for path in ([place] if place.is_file() else image_files_below(place)[0])
    )


def _read(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    folders = [_unpacked(place, scratch) if place.is_file() else place for place in _places(request)]
    drawings: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in image_files_below(folder)[0]:
            # the two small sets share alphabets: a drawing that lies in both is one
            drawings.setdefault(path.parent.relative_to(folder).as_posix(), {})[path.name] = path
    if len(drawings) < 2:
        raise InputError(str(folders[0]), "needs ALPHABET/CHARACTER folders of images", sorted(drawings))
    names = sorted(drawings)
    pairs = tuple((path, label) for label, name in enumerate(names) for _, path in sorted(drawings[name].items()))
    listing = Listing(Path(os.path.commonpath(folders)), {"train": pairs}, tuple(names), 0, prefix="omniglot")
    return read_images(listing, image_size=request.image_size, skip_corrupt=request.skip_corrupt, scratch=scratch)


def _unpacked(archive: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(scratch)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(str(archive), f"cannot be unpacked ({error})") from error
    if not (scratch / archive.stem).is_dir():
        raise InputError(str(archive), f"must hold a folder {archive.stem}")
    return scratch / archive.stem


OMNIGLOT = Source("grey 105x105 drawings, 20 a character, 1,623 characters or fewer", _locate, _read)
