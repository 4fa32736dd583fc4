"""`metasearch doctor`: whether this machine has what a search needs, and what to do where it has not.

Each check is a function that returns findings; it starts no Ray and changes nothing but for a file that it writes into
the home folder and removes again. With an address the nodes of a cluster are asked, too (`doctor_cluster.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.findings import FAILURE, OK, WARNING, Finding
from metasearch.flags import Address, AsJson, DataRoot, StorageUrl
from metasearch.folders import home_folder

LEAST_FREE_BYTES = 2_000_000_000
"""What teachers, prepared data and artefacts of a few searches take."""


def doctor(
    data_root: DataRoot = None,
    artefacts: Annotated[str | None, typer.Option(metavar="DIR", help="With --address: of the searches.")] = None,
    address: Address = None,
    as_json: AsJson = False,
    storage: StorageUrl = None,
) -> None:
    """Check versions, devices, folders, data and storage, and a cluster's nodes; a remedy stands under each line that
    needs one.

    Exits with 1 where a search could not run.

    Example: metasearch doctor --data-root DIR --address auto
    """
    found = list(findings(data_root=data_root, storage=storage, address=address, artefacts=artefacts))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found]))
    else:
        for each in found:
            typer.echo(f"{each.level:8} {each.what}: {each.text}")
            if each.remedy:
                typer.echo(f"{'':8} -> {each.remedy}")
    if any(each.level == FAILURE for each in found):
        raise typer.Exit(1)


def findings(
    *, data_root: str | None, storage: str | None, address: str | None = None, artefacts: str | None = None
) -> Iterator[Finding]:
    """Yield what every check finds."""
    yield from _versions()
    yield from _devices()
    yield from _home(home_folder())
    yield _data(data_root)
    yield _storage(storage)
    if address is None:
        yield _ray()
        return
    from metasearch.doctor_cluster import cluster_findings

    yield from cluster_findings(address, data_root=data_root, storage=storage, artefacts=artefacts)


def _versions(requirements: Callable[[], list[str] | None] = lambda: metadata.requires("metasearch")) -> list[Finding]:
    """Return a finding for Python, one for all packages that are as required, and one for each that is not."""
    from packaging.requirements import Requirement

    found = [Finding("python", OK, sys.version.split()[0])]
    right, wrong = [], []
    for text in requirements() or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        if version and requirement.specifier.contains(version, prereleases=True):
            right.append(f"{requirement.name} {version}")
        else:
            asked = f"{requirement.name}{requirement.specifier}"
            remedy = f'pip install "{asked}"'
            wrong.append(Finding(requirement.name, FAILURE, f"{version or 'not installed'}, needs {asked}", remedy))
    return [*found, Finding("packages", OK, ", ".join(right)), *wrong]


def _devices() -> list[Finding]:
    """Return the cores that this process may use, and the GPUs that torch can."""
    import torch

    found = [Finding("cores", OK, str(len(os.sched_getaffinity(0))))]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(Finding(f"gpu {index}", OK, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"))
    else:
        found.append(Finding("gpu", OK, "none that torch can use; searches run on the cores"))
    return found


def _home(folder: Path) -> list[Finding]:
    """Return whether the home folder can be written, and the room that there is."""
    remedy = "METASEARCH_HOME names another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return [Finding("home folder", FAILURE, f"{folder}: cannot be written ({error.strerror})", remedy)]
    room = f"{free / 1e9:.1f} GB free"
    if free < LEAST_FREE_BYTES:
        return [Finding("home folder", WARNING, f"{folder}: {room}", f"metasearch gc frees some; {remedy}")]
    return [Finding("home folder", OK, f"{folder}: {room}")]


def _data(data_root: str | None) -> Finding:
    """Return whether there is a folder of data sets."""
    from metasearch.tasks.task_source import TaskSource

    root = TaskSource("digits", data_root=data_root).root()
    if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
        return Finding("data root", OK, f"{root}: {sum(1 for _ in root.iterdir())} entries")
    text = f"{root}: cannot be read" if root.exists() else f"{root}: not there; only digits, folder:, npz: ... will do"
    return Finding("data root", WARNING, text, "--data-root DIR or METASEARCH_DATA names it; --download fetches")


def _storage(flag: str | None) -> Finding:
    """Return whether studies can be read there; no password is shown."""
    from metasearch.report.database import open_database
    from metasearch.search.names import shown_url, storage_url

    try:
        url = storage_url(flag)
    except InputError as error:
        return Finding("storage", FAILURE, str(error), "--storage or METASEARCH_STORAGE names one")
    shown = shown_url(url)
    try:
        database = open_database(url)
        with database.snapshot() as select:
            ((count,),) = select("SELECT count(*) FROM studies")
    except NotFoundError:
        return Finding("storage", OK, f"{shown}: not there yet; the first launch makes it")
    except MetasearchError as error:
        return Finding("storage", FAILURE, str(error), "start the server, or name another storage by --storage")
    if not database.known:
        text = f"{shown}: {count} studies, in a schema that this version reads slowly"
        return Finding("storage", WARNING, text, "install the Optuna that this metasearch was made for")
    return Finding("storage", OK, f"{shown}: {count} studies")


def _ray() -> Finding:
    """Return which cluster a search would use; without RAY_ADDRESS it starts Ray on this machine."""
    address: Any = os.environ.get("RAY_ADDRESS")
    if address:
        return Finding("ray", OK, f"RAY_ADDRESS={address}: `launch --address auto` joins it")
    return Finding("ray", OK, "started on this machine by each search; --address joins a cluster")
