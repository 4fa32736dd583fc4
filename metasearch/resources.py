"""Where the files lie that ship with the package but are no code: search spaces, cluster manifests."""

from __future__ import annotations

from pathlib import Path

from metasearch.errors import NotFoundError


def preset_names() -> list[str]:
    """Return the names of the search spaces that ship with the package, sorted."""
    return sorted(path.stem for path in resource_folder("search_spaces").glob("*.yaml"))


def resource_folder(name: str) -> Path:
    """Return the folder `name` ("search_spaces" or "cluster").

    An installed wheel carries it inside the package; a checkout has it beside the package, at the top level.
    Raises NotFoundError if it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"{name}: the folder is missing from this installation")
