"""The versions that a process has: what a study keeps, and what must be alike where its trials run."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from metasearch.errors import MetasearchError

PACKAGES = ("metasearch", "torch", "optuna", "ray")
COMPUTING = ("metasearch", "torch", "python")
"""Those that change what a trial computes. Optuna's and Ray's change what is proposed next, and where it runs."""
FILES = "package"
LABELS = {FILES: "metasearch's files"}


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that a search needs, those that are there, and of Python."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"python": platform.python_version()}


def versions_here() -> dict[str, str]:
    """Return what must be alike on all nodes, as it is in this process: versions, and a hash of the package's files."""
    return installed_versions() | {FILES: package_digest()}


@cache
def package_digest() -> str:
    """Return a hash of the files of this package, 12 hexadecimal digits."""
    spec = importlib.util.find_spec("metasearch")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def unlike(
    there: Mapping[str, str],
    here: Mapping[str, str],
    *,
    whose: str = "the driver's",
    names: Collection[str] | None = None,
) -> list[str]:
    """Return a text for each version that differs: "torch 2.11.0, the driver's 2.15.0".

    Builds of one version, such as +cpu, are alike, and so are all of a Python's last numbers: Ray asks for no more.
    whose: what `here` is called in the texts. names: look at these alone, None for all of `here`.
    """
    asked = here if names is None else names
    wrong = [name for name in asked if _short(name, there.get(name, "")) != _short(name, here[name])]
    if "metasearch" in wrong and FILES in wrong:
        wrong.remove(FILES)  # of another version anyway
    return [f"{LABELS.get(name, name)} {there.get(name, 'not there')}, {whose} {here[name]}" for name in wrong]


def version_differences(made_by: Mapping[str, str]) -> list[str]:
    """Return a text for each version with which a trial may compute something else than it did in a study.

    made_by: the versions that the study was made by, as far as it says them.
    """
    names = [name for name in COMPUTING if name in made_by]
    return unlike(made_by, installed_versions(), whose="here", names=names)


def check_versions(expected: Mapping[str, str]) -> None:
    """Raise MetasearchError unless this process has what the driver has: a node that joined later is told here.

    expected: empty where there is nothing to compare, on the driver's own machine.
    """
    if expected and (wrong := unlike(versions_here(), expected)):
        raise MetasearchError(f"node {socket.gethostname()}: {'; '.join(wrong)}; install the driver's versions there")


def _short(name: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]
