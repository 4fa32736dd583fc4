"""What the shell completes after Tab: names of studies, tasks and search spaces.

A completion answers within a moment or not at all: it loads neither torch, ray nor pandas, waits for no lock, and says
nothing where the storage is missing, locked, away or no storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from metasearch.errors import MetasearchError

PATIENCE_S = 1
"""For a storage that is locked or away."""


def complete_study(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yield the studies of the storage, that of --storage where it stands before, whose names begin so."""
    from metasearch.report.database import open_database
    from metasearch.search.names import CONTROLS, storage_url

    try:
        database = open_database(storage_url(context.params.get("storage")), patience_s=PATIENCE_S)
        with database.snapshot() as select:
            names = [name for (name,) in select("SELECT study_name FROM studies ORDER BY study_id DESC")]
    except MetasearchError:
        return
    yield from _beginning((name for name in names if not name.endswith(CONTROLS)), incomplete)


def complete_warm_start(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yield what may follow in a list of priors: auto, none or a study, after what stands before the last comma."""
    before, comma, last = incomplete.rpartition(",")
    if not comma:
        yield from _beginning(("auto", "none"), last)
    yield from (before + comma + name for name in complete_study(context, last))


def complete_task(incomplete: str) -> Iterator[str]:
    """Yield the registered tasks, and the prefixes of the others, that begin so."""
    from metasearch.tasks.registered import REGISTERED
    from metasearch.tasks.sources import PREFIXES, PYTHON_PREFIX

    yield from _beginning((*REGISTERED, *(f"{prefix}:" for prefix in PREFIXES), PYTHON_PREFIX), incomplete)


def complete_space(incomplete: str) -> Iterator[str]:
    """Yield the preset search spaces that begin so; a shell then offers files where there is none."""
    from metasearch.resources import preset_names

    yield from _beginning(preset_names(), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> Iterator[str]:
    return (name for name in names if name.startswith(incomplete))
