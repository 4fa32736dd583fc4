"""Where metasearch keeps what it makes on this machine: its home folder and, in it, a cache that may be deleted."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """Return the folder named by METASEARCH_HOME, else ~/.metasearch; it need not exist yet."""
    return Path(os.environ.get("METASEARCH_HOME") or Path.home() / ".metasearch").expanduser()


def cache_folder() -> Path:
    """Return home_folder()/cache: whatever lies in it can be made again from its sources."""
    return home_folder() / "cache"


def artefact_folder() -> Path:
    """Return home_folder()/artefacts, where searches keep the weights of their students unless told otherwise."""
    return home_folder() / "artefacts"
