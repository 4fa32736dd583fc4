"""Where the files of a registered data set lie below a data root, and their download where that was asked for.

The layout is torchvision's own. The data root is never written to, except by torchvision's download into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metasearch.errors import NotFoundError
from metasearch.tasks.raw import Request

TRAIN_AND_TEST: tuple[Mapping[str, Any], ...] = ({"train": True}, {"train": False})


def locate_files(
    request: Request, *, folders: tuple[str, ...], names: tuple[str, ...], fetch: Callable[[Path], None]
) -> tuple[Path, ...]:
    """Return the files `names` (or NAME.gz) of the first of data_root's `folders` that has all of them.

    Where none has, they are fetched first if that was asked for; that fills the first folder. Raises NotFoundError.
    """
    places = [request.data_root / folder for folder in folders]
    complete = [place for place in places if not _missing(place, names)]
    if not complete and request.download:
        download(request, places[0], fetch)
    place = complete[0] if complete else places[0]
    if missing := _missing(place, names):
        raise not_found(request, place, missing)
    return tuple(_plain_or_gzipped(place / name) for name in names)


def download(request: Request, place: Path, fetch: Callable[[Path], None]) -> None:
    """Have data fetched into the data root; raises NotFoundError, naming `place`, where that fails."""
    try:
        fetch(request.data_root)
    except (OSError, RuntimeError) as error:  # no network, a folder that cannot be written; a wrong checksum
        raise NotFoundError(f"{request.argument}: cannot be downloaded into {place} ({error})") from error


def not_found(request: Request, place: Path, missing: Sequence[str]) -> NotFoundError:
    """Return the error for files that are missing from a folder, with the two ways out."""
    return NotFoundError(
        f"{request.argument}: {', '.join(missing)} not found in {place}; say where the data lie with "
        "--data-root (or METASEARCH_DATA), or have them downloaded with --download"
    )


def fetch_parts(
    root: Path, *, dataset: str, parts: Sequence[Mapping[str, Any]] = TRAIN_AND_TEST, folder: str = ""
) -> None:
    """Have torchvision download each part of a data set into root/folder. parts: the options that name a part."""
    import torchvision.datasets

    (root / folder).mkdir(parents=True, exist_ok=True)
    for options in parts:
        getattr(torchvision.datasets, dataset)(str(root / folder), **options, download=True)


def _missing(place: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not _plain_or_gzipped(place / name).is_file()]


def _plain_or_gzipped(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")
