"""Numpy archives that hold inputs under `images` or `x`, and labels under `labels` or `y`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from metasearch.errors import InputError
from metasearch.tasks.raw import Array

INPUT_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "y")


def read_npz(path: Path) -> tuple[Array, Array]:
    """Return (inputs, labels) as they lie in the archive; pickled objects are refused, never loaded.

    Raises InputError for a file that is no .npz archive, is damaged, lacks a key or has both spellings of one.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(str(path), "is a single array, not an .npz archive with images and labels")
        with archive:
            names = [_one_of(path, archive.files, keys) for keys in (INPUT_KEYS, LABEL_KEYS)]
            inputs, labels = (np.asarray(archive[name]) for name in names)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(str(path), f"cannot be read as an .npz archive without pickled objects ({error})") from error
    return inputs, labels


def _one_of(path: Path, present: list[str], keys: tuple[str, ...]) -> str:
    found = [key for key in keys if key in present]
    if len(found) != 1:
        raise InputError(str(path), f"must have exactly one of the keys {' and '.join(keys)}", present)
    return found[0]
