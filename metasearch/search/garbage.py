"""Artefacts and cache entries that nothing refers to any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from metasearch.errors import StorageError
from metasearch.folders import artefact_folder, cache_folder
from metasearch.search.artefacts import check_writable
from metasearch.search.store import DESCRIPTION, shown_url

OWNER_FILE = "storage"
"""In a study's artefact folder: the storage that holds the study. Several storages may share one home folder."""


def claim(folder: str, storage: RDBStorage) -> None:
    """Write into a study's artefact folder which storage it belongs to; a folder at a URL is never collected.

    Raises StorageError unless the folder can be made and written to.
    """
    check_writable(folder)
    if "://" in folder:
        return
    file = Path(folder) / OWNER_FILE
    try:
        file.write_text(_identity(storage) + "\n", encoding="utf-8")
    except OSError as error:  # another user's, perhaps
        raise StorageError(f"{file}: {error.strerror or error}") from error


def collect(storage: RDBStorage, *, remove: bool) -> Iterator[tuple[Path, int]]:
    """Yield every path that may go, with its size in bytes, after removing it where `remove`.

    Study folders in the home folder's artefacts that this storage's studies have left behind, and the whole cache: all
    of it can be made again. Artefacts of another storage, or in a folder that was chosen for them, are left alone.
    """
    used = {
        (Path(study.user_attrs[DESCRIPTION]["artefacts"]) / study.study_name).resolve()
        for study in optuna.get_all_study_summaries(storage)
        if DESCRIPTION in study.user_attrs
    }
    owned = [
        file.parent
        for file in sorted(artefact_folder().rglob(OWNER_FILE))
        if file.read_text().strip() == _identity(storage)
    ]
    strays = [folder for folder in owned if not any(path.is_relative_to(folder.resolve()) for path in used)]
    strays = [folder for folder in strays if not any(other in folder.parents for other in strays)]
    for path in [*strays, *(entry for kind in _children(cache_folder()) for entry in _children(kind))]:
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        if remove:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield path, size


def _identity(storage: RDBStorage) -> str:
    url = make_url(str(storage.url))
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(Path(url.database).resolve()))
    return shown_url(url.render_as_string(hide_password=False))


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
