"""Artefact folders on any file system that fsspec knows: a local folder, NFS, S3 and its like.

A folder is named by its path or URL (`s3://bucket/prefix`). Files appear whole or not at all, and their SHA-256 is kept
with the trial that made them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from metasearch.errors import InputError, NotFoundError, StorageError
from metasearch.folders import cache_folder

PUBLISH_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Between attempts to write what a trial made: a shared folder that is full or away for some seconds costs no trial."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class KeptFile:
    """A file that a study reads again, on any of its nodes: its path or URL, and the SHA-256 that it has."""

    place: str
    digest: str

    @classmethod
    def at(cls, place: str) -> KeptFile:
        """Return the file that lies at a path or URL now. Raises NotFoundError, and StorageError as `fetch` does."""
        with _told_of(place) as (files, path):
            digest = _digest_if_there(Path(path)) if _is_local(files) else _download(files, path)
        if digest is None:
            raise NotFoundError(f"{place}: no such file")
        return cls(place, digest)

    def fetch(self) -> Path:
        """Return a local copy, or the file itself. Raises NotFoundError if it is gone, StorageError as `fetch` does."""
        path = fetch(self.place, self.digest)
        if path is None:
            raise NotFoundError(f"{self.place}: no such file")
        return path


def location(text: str, *, flag: str = "--artefacts") -> str:
    """Return a folder or file as it is kept with a study: an absolute path, or a URL. flag: for the errors.

    Raises InputError for what is no path, a protocol that is unknown or needs another package or more than a URL, and
    for a secret in the URL; StorageError for a server that does not answer.
    """
    if "\0" in text:
        raise InputError(flag, "must be a path or a URL", text)
    if "://" not in text:
        try:
            return str(Path(text).expanduser().absolute())
        except RuntimeError as error:
            raise InputError(flag, "must be a path of a user that there is", text) from error
    try:
        secret = urlsplit(text).password
    except ValueError as error:  # not shown: it may hold a secret all the same
        raise InputError(flag, f"must be a path or a URL: {error}") from error
    if secret:
        raise InputError(flag, "must hold no secret: give it in the environment or a mounted file")
    try:
        url_to_fs(text)
    except OSError as error:
        raise StorageError(f"{text}: {error.strerror or error}") from error
    except Exception as error:  # of any type: that of a missing argument, a missing package, a library's own
        rule = f"must be a path or a URL that fsspec opens: {' '.join(str(error).split())}"
        raise InputError(flag, rule, text) from error
    return text.rstrip("/")


def joined(folder: str, *parts: str) -> str:
    """Return the path or URL of what lies in a folder."""
    return "/".join((folder.rstrip("/"), *parts))


def trial_folder(study_folder: str, number: int) -> str:
    """Return the folder of a trial in its study's."""
    return joined(study_folder, f"trial-{number:05d}")


def check_writable(folder: str) -> None:
    """Raise StorageError unless the folder can be made and written to."""
    with probed(folder):
        pass


@contextmanager
def probed(folder: str) -> Iterator[str]:
    """Put a small file into the folder, made if it is not there, for as long as the block lasts; give its name.

    Raises StorageError where that does not work.
    """
    name = f".probe-{uuid.uuid4().hex}"
    place = f"artefact folder {folder}: must be writable"
    with _told_of(joined(folder, name), place) as (files, path):
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            files.pipe_file(path, b"0" * 4096)
        except (ValueError, NotImplementedError) as error:  # a file system that is only read
            raise OSError(errno.EROFS, str(error)) from error
    try:
        yield name
    finally:
        with _told_of(joined(folder, name), place) as (files, path):
            files.rm_file(path)


def is_there(file: str) -> bool:
    """Whether there is a file of this path or URL."""
    with _opened(file) as (files, path):
        return bool(files.exists(path))


def publish(made: Path, folder: str, *, waits_s: tuple[float, ...] = PUBLISH_WAITS_S) -> dict[str, str]:
    """Copy the files in the local folder `made` to `folder`; return the SHA-256 of each, by its name.

    waits_s: before each further attempt, where one fails. Raises OSError when the last one has failed.
    """
    for wait_s in (*waits_s, None):
        try:
            return {file.name: _publish_file(file, folder) for file in sorted(made.iterdir())}
        except OSError:
            if wait_s is None:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _publish_file(file: Path, folder: str) -> str:
    with _opened(joined(folder, file.name)) as (files, path):
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        if _is_local(files):
            part = f"{path}.{os.getpid()}.part"
            try:
                shutil.copyfile(file, part)
                os.replace(part, path)
            except OSError:
                Path(part).unlink(missing_ok=True)
                raise
        else:
            files.put_file(str(file), path)  # an object appears when it is whole
    return digest_of(file)


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(file: str, digest: str) -> Path | None:
    """Return a local file that holds the artefact, a copy in the cache where it lies elsewhere; None if it is gone.

    digest: its SHA-256, kept with the trial. Raises StorageError if the file has another, or is not to be had now.
    """
    with _told_of(file) as (files, path):
        local = Path(path) if _is_local(files) else _place_in_cache(path, digest)
        found = _digest_if_there(local)
        if found != digest and not _is_local(files):
            found = _download(files, path, wanted=digest)
    if found not in (digest, None):
        raise StorageError(f"{file}: is not what was kept: its SHA-256 differs from the one in the study")
    return None if found is None else local


def kept_files(described: Mapping[str, str | Mapping[str, str]]) -> dict[str, KeptFile]:
    """Return the files of a study's description; an older one has paths alone, and means the files as they are now."""
    return {name: KeptFile.at(file) if isinstance(file, str) else KeptFile(**file) for name, file in described.items()}


def fetch_all(files: Mapping[str, KeptFile]) -> dict[str, Path]:
    """Return each file's local copy under its own name. Raises as `KeptFile.fetch` does."""
    return {name: file.fetch() for name, file in files.items()}


def _digest_if_there(file: Path) -> str | None:
    return digest_of(file) if file.is_file() else None


def _place_in_cache(path: str, digest: str) -> Path:
    return cache_folder() / "artefacts" / digest[:32] / path.rpartition("/")[2]


def _download(files: AbstractFileSystem, path: str, wanted: str | None = None) -> str | None:
    """Bring a file into the cache and return its SHA-256, None if it is gone. wanted: any other gets no place there."""
    part = cache_folder() / "artefacts" / f"{uuid.uuid4().hex}.part"  # no pid: nodes may share the cache
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(path, str(part))
        found = digest_of(part)
        if wanted in (None, found):
            local = _place_in_cache(path, found)
            local.parent.mkdir(exist_ok=True)
            os.replace(part, local)
    except FileNotFoundError:
        return None
    finally:
        part.unlink(missing_ok=True)
    return found


def trial_numbers(study_folder: str) -> list[int]:
    """Return the numbers of the trials that have a folder in their study's. Raises StorageError where it is away."""
    with _told_of(study_folder) as (files, path):
        try:
            found = [str(entry).rstrip("/").rpartition("/")[2] for entry in files.ls(path, detail=False)]
        except FileNotFoundError:
            return []
    matches = (re.fullmatch(r"trial-([0-9]{5,})", name) for name in found)
    return sorted(int(match[1]) for match in matches if match is not None)


def remove(folder: str) -> None:
    """Remove a folder with all that is in it. What cannot be removed now stays, for the next one who tries."""
    with suppress(OSError), _opened(folder) as (files, path):  # not there, or away now: no reason to end a search
        if _is_local(files):
            shutil.rmtree(path, ignore_errors=True)
        else:
            files.rm(path, recursive=True)


@contextmanager
def _told_of(url: str, place: str | None = None) -> Iterator[tuple[AbstractFileSystem, str]]:
    """Do as `_opened`; what the file system refuses is a StorageError. place: for its message, if not the URL."""
    try:
        with _opened(url) as opened:
            yield opened
    except OSError as error:
        raise StorageError(f"{place or url}: {error.strerror or error}") from error


@contextmanager
def _opened(url: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """Give the file system of a path or URL, and the path there; whatever the file system raises is an OSError.

    The classes of botocore, aiohttp, gcsfs, azure and others have no base in common but Exception. So a class of a
    library's own is that library's failure, and a builtin one that is no OSError stays what it is, a fault of the code.
    """
    try:
        files, path = url_to_fs(url)
        files.invalidate_cache()
        yield files, path
    except OSError:
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and not isinstance(error, ImportError):  # s3fs is not on this node
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {' '.join(str(error).split())}", url) from error


def _is_local(files: AbstractFileSystem) -> bool:
    return "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol)
