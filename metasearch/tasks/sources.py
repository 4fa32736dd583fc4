"""What a TASK text may say: a registered name, or a prefix and its argument.

Every source has two functions: `locate` names the files (and downloads them where that was asked for), `read` turns
them into `RawData`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metasearch.errors import InputError, NotFoundError
from metasearch.functions import import_function
from metasearch.tasks.idx import read_idx
from metasearch.tasks.image_files import read_images
from metasearch.tasks.image_folder import list_images
from metasearch.tasks.npz import read_npz
from metasearch.tasks.raw import RawData, Request, Source, raw_from_arrays
from metasearch.tasks.registered import REGISTERED
from metasearch.tasks.table import read_tables

if TYPE_CHECKING:
    from metasearch.tasks.task import Task

PYTHON_PREFIX = "python:"


def find_source(text: str) -> tuple[Source, str]:
    """Return the source that a TASK text names, and its argument.

    Raises InputError, with the spellings there are and the nearest, for a text that names none.
    """
    if text in REGISTERED:
        return REGISTERED[text], text
    prefix, colon, argument = text.partition(":")
    if colon and argument and prefix in PREFIXES:
        return PREFIXES[prefix], argument
    known = [*REGISTERED, *(f"{name}:" for name in PREFIXES), PYTHON_PREFIX]
    near = difflib.get_close_matches(text.lower().replace("-", "_"), known, n=1)
    near = near or difflib.get_close_matches(prefix.lower() + ":", known, n=1)
    hint = f"folder:{text}" if Path(text).expanduser().is_dir() else near[0] if near else None
    meant = f"; did you mean {hint}?" if hint else ""
    raise InputError("task", f"must be one of {', '.join(known)}{meant}", text)


def absolute_argument(text: str, data_root: Path) -> str:
    """Return a TASK text with the paths in it made absolute, for a process in another working directory."""
    if not (paths := paths_of_argument(text)):
        return text
    prefix, _, argument = text.partition(":")
    _, hash_mark, column = _split_column(prefix, argument)
    return f"{prefix}:{','.join(str(existing(path, data_root)) for path in paths)}{hash_mark}{column}"


def paths_of_argument(text: str) -> list[str]:
    """Return the files, or the folder, that a TASK text names, as it spells them."""
    prefix, _, argument = text.partition(":")
    if text in REGISTERED or prefix not in PREFIXES:
        return []
    files, _, _ = _split_column(prefix, argument)
    return [files] if prefix == "folder" else files.split(",")


def call_task_function(argument: str) -> Task:
    """Return the task that `package.module:function` returns.

    Raises InputError for another spelling or result, NotFoundError where there is no such module or function.
    """
    from metasearch.tasks.task import Task

    place = f"{PYTHON_PREFIX}{argument}"
    module_name, colon, function_name = argument.partition(":")
    if not (colon and module_name and function_name):
        raise InputError("task", "must be spelled python:package.module:function", place)
    task = import_function(argument, place=place)()
    if not isinstance(task, Task):
        raise InputError(place, "must return a metasearch.tasks.Task", type(task).__name__)
    return task


def existing(text: str, data_root: Path) -> Path:
    """Return the absolute path of a file or folder, relative to the working directory or else to the data root."""
    path = Path(text).expanduser()
    candidates = [Path.cwd() / path, data_root / path]
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    looked = " and ".join(str(candidate) for candidate in dict.fromkeys(candidates))
    raise NotFoundError(f"{text}: there is no such file or folder; looked at {looked}")


def _locate_folder(request: Request) -> tuple[Path, ...]:
    return list_images(existing(request.argument, request.data_root)).files


def _read_folder(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    listing = list_images(existing(request.argument, request.data_root))
    return read_images(listing, image_size=request.image_size, skip_corrupt=request.skip_corrupt, scratch=scratch)


def _split_column(prefix: str, argument: str) -> tuple[str, str, str]:
    """Return the files of an argument, and for a table # and the label column, or two empty texts."""
    return argument.partition("#") if prefix == "table" else (argument, "", "")


def _locate_files(request: Request, *, prefix: str, counts: tuple[int, ...]) -> tuple[Path, ...]:
    texts = _split_column(prefix, request.argument)[0].split(",")
    if len(texts) not in counts:
        rule = f"takes {' or '.join(map(str, counts))} files with commas between them"
        raise InputError(f"{prefix}:{request.argument}", rule, len(texts))
    return tuple(existing(text, request.data_root) for text in texts)


def _read_npz(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    return raw_from_arrays([(str(path), *read_npz(path)) for path in files])


def _read_idx_pairs(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    pairs = zip(files[::2], files[1::2], strict=True)
    return raw_from_arrays([(str(images), read_idx(images), read_idx(labels)) for images, labels in pairs])


def _read_table_files(request: Request, files: tuple[Path, ...], scratch: Path) -> RawData:
    _, _, column = _split_column("table", request.argument)
    return read_tables(files, column or None)


PREFIXES: Mapping[str, Source] = {
    "folder": Source("DIR: class folders of images, or train/ val/ test/ above them", _locate_folder, _read_folder),
    "npz": Source(
        "TRAIN.npz[,TEST.npz] with images or x, and labels or y",
        partial(_locate_files, prefix="npz", counts=(1, 2)),
        _read_npz,
    ),
    "idx": Source(
        "IMAGES,LABELS[,IMAGES,LABELS], gzipped or not",
        partial(_locate_files, prefix="idx", counts=(2, 4)),
        _read_idx_pairs,
    ),
    "table": Source(
        "TRAIN[,TEST][#COLUMN]: CSV or Parquet tables of numbers; the label is the column label, class, target or y",
        partial(_locate_files, prefix="table", counts=(1, 2)),
        _read_table_files,
    ),
}
"""What a TASK may begin with, before a colon. Beside them: `python:package.module:function`."""
