"""`metasearch delete` and `gc`: what a storage no longer needs. They load neither torch nor ray."""

from __future__ import annotations

from typing import Annotated

import typer

from metasearch.flags import StorageUrl, StudyName
from metasearch.messages import tell


def delete(
    study: StudyName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Delete a study, its controls and its artefacts."""
    import optuna

    from metasearch.search.artefacts import joined, remove
    from metasearch.search.lease import Lease
    from metasearch.search.store import (
        CONTROLS,
        DESCRIPTION,
        load_study,
        open_storage,
        storage_url,
        study_exists,
    )

    store = open_storage(storage_url(storage))
    loaded = load_study(store, study)
    lease = Lease(loaded, on_stop=lambda reason: None, tell=tell)
    lease.acquire()  # as a driver: so that none runs, nor starts
    try:
        if not yes:
            typer.confirm(
                f"Delete study {study} with {len(loaded.get_trials(deepcopy=False))} trials?", abort=True, err=True
            )
        described = loaded.user_attrs.get(DESCRIPTION)  # none if its driver was killed while it made the study
        for name in (study, study + CONTROLS):
            if study_exists(store, name):
                optuna.delete_study(study_name=name, storage=store)
    finally:
        lease.release()
    if described is not None:
        for name in (study, study + CONTROLS):
            remove(joined(described["artefacts"], name))
    tell(f"deleted {study}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and keep it.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Remove artefacts of studies and trials that are gone, and the cache of prepared tasks and teachers."""
    from metasearch.search.garbage import collect
    from metasearch.search.store import open_storage, storage_url

    for path, size in collect(open_storage(storage_url(storage)), remove=not dry_run):
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path} ({size / 1e6:.1f} MB)")
