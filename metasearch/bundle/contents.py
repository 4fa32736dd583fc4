"""What a bundle holds: the folder's files, and bundle.json, which describes and hashes them.

A bundle comes from anywhere, so everything that can be checked without running anything is checked when it is read.
The hashes prove that its files are those of its bundle.json, and the digest that bundle.json is as it was written: a
damaged or half-copied bundle is noticed. They do not prove who wrote it. Whoever changes a file can make hashes and
digest anew; against that stand the network's own checks (`runtime.py`), and a digest that was learnt another way.

Symbols: K classes; inputs (C, H, W) or (F,). Imports neither torch, ray nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from metasearch.bundle.schema import FIELDS, check_together, parse_json, record
from metasearch.errors import InputError, NotFoundError

FORMAT = 2
DOCUMENT = "bundle.json"
MODEL, PROGRAM, WEIGHTS, CARD, SCRIPT = "model.onnx", "model.pt2", "weights.safetensors", "MODEL_CARD.md", "predict.py"
REQUIRED = (MODEL, PROGRAM, WEIGHTS, CARD, SCRIPT)
REFERENCES = {role: f"references/{role}.onnx" for role in ("teacher", "student", "float")}
"""By role: the teacher, the same student without compression, and an int8 network as it was before int8."""
PORTABLE = "model.pte"
"""The network for ExecuTorch, where it was asked for."""
OPTIONAL = (*REFERENCES.values(), PORTABLE)
FOLDERS = {"references"}

MOST_DOCUMENT_BYTES = 4 * 2**20
MOST_FILE_BYTES = 2 * 2**30
"""The most that a file of Protocol Buffers, and so model.onnx, can have."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked, JSON-ready but for its folder.

    name: STUDY-trial-N. input_shape: (C, H, W) or (F,). normalisation: scale and shift, C or F numbers each, which
    are inside the graph already. preprocessing: what makes an image file an input (mode, size as [W, H], resample,
    transparent), {} for vectors. final: the means of the final runs (test_accuracy, test_std, test_seeds, ...) where
    there were any. references: by role, what is measured of a network that lies beside. Where there were final runs,
    metrics and references have a test_accuracy, too: of the very network that is here. stages: stage and metrics of
    each. provenance, parity: see PROVENANCE and PARITY of `schema.py`. files: the SHA-256 of every file but
    bundle.json, by its name in the folder.
    """

    folder: Path
    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    int8: bool
    opset: int
    normalisation: Mapping[str, list[float]]
    preprocessing: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float]
    final: Mapping[str, float | None]
    references: Mapping[str, Mapping[str, float]]
    stages: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images rather than vectors."""
        return len(self.input_shape) == 3

    @property
    def digest(self) -> str:
        """The SHA-256 of bundle.json without its own digest, and so of everything that the bundle holds."""
        return document_digest(self._document())

    def path(self, name: str) -> Path:
        """Return where a file of the bundle is."""
        return self.folder / name

    def _document(self) -> dict[str, Any]:
        return {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder, checked as far as that goes without running anything of it.

    Checked: its format; the type and range of every field; the digest of bundle.json, to the byte; that the folder
    holds the files that bundle.json names, no others and no links; the SHA-256 of each.
    Raises InputError, one line, for the first that fails; NotFoundError where there is no bundle.
    """
    if os.path.isfile(folder):  # where Path.is_file() raises, as for a name too long, this says no
        raise InputError(str(folder), "must be the folder of a bundle, not a file")
    if not os.path.lexists(folder / DOCUMENT):
        raise NotFoundError(f"{folder}: no bundle is there: it has no {DOCUMENT}")
    found = _found_files(folder)  # before anything is opened: a link or a pipe is no file of ours
    place = str(folder / DOCUMENT)
    try:
        document = _read_document(folder / DOCUMENT)
        record(FIELDS)(document, "")
        check_together(document)
        _check_names(document["files"], roles=document["references"])
    except OSError as error:
        raise InputError(place, f"cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise InputError(place, "is nested too deeply") from error
    except ValueError as error:
        raise InputError(place, str(error)) from error
    _check_files(folder, found - {DOCUMENT}, document["files"])
    described = {f.name: document[f.name] for f in fields(Bundle) if f.name != "folder"}
    for name in ("class_names", "input_shape", "stages"):
        described[name] = tuple(described[name])
    return Bundle(folder=folder, **described)


def write_document(folder: Path, **described: Any) -> Bundle:
    """Write the bundle.json of a folder that holds all other files already, and return the bundle as it reads.

    described: the fields of Bundle but folder and files. Raises as `read_bundle` does.
    """
    found = _found_files(folder) - {DOCUMENT}
    hashes = {name: _sha256(folder / name) for name in sorted(found)}
    document = {"format": FORMAT, **described, "files": hashes}
    try:
        (folder / DOCUMENT).write_bytes(_document_bytes(document | {"digest": document_digest(document)}))
    except ValueError as error:  # NaN, which JSON has no word for
        raise InputError(str(folder / DOCUMENT), f"cannot be written as JSON: {error}") from error
    return read_bundle(folder)


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document without its digest, as bundle.json states it."""
    return hashlib.sha256(_document_bytes({k: v for k, v in document.items() if k != "digest"})).hexdigest()


def _document_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the only spelling that bundle.json may have."""
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _read_document(place: Path) -> dict[str, Any]:
    """Return bundle.json as it was written: a mapping of our format, of which not a byte was changed."""
    with place.open("rb") as file:
        content = file.read(MOST_DOCUMENT_BYTES + 1)
    if len(content) > MOST_DOCUMENT_BYTES:
        raise ValueError(f"must have at most {MOST_DOCUMENT_BYTES} bytes")
    document = parse_json(content)
    if not isinstance(document, dict):
        raise ValueError(f"must be a mapping, got {reprlib.repr(document)}")
    if document.get("format") != FORMAT:
        found = reprlib.repr(document.get("format"))
        raise ValueError(f"format: must be {FORMAT}, the one that this metasearch reads, got {found}")
    if document.get("digest") != document_digest(document):
        found = reprlib.repr(document.get("digest"))
        raise ValueError(f"was changed after it was written: digest must be that of its content, got {found}")
    if content != _document_bytes(document):
        raise ValueError("was changed after it was written: it must be spelled as metasearch writes it")
    return document


def _found_files(folder: Path) -> set[str]:
    """Return the names of the files in the folder, as bundle.json spells them. Raises InputError for anything else."""
    found: set[str] = set()
    waiting = [""]
    while waiting:
        within = waiting.pop()
        try:
            entries = list(os.scandir(folder / within))
        except OSError as error:
            raise InputError(str(folder / within), f"cannot be read ({error.strerror})") from error
        for entry in entries:
            name = f"{within}{entry.name}"
            if entry.is_file(follow_symlinks=False):
                found.add(name)
            elif entry.is_dir(follow_symlinks=False) and name in FOLDERS:
                waiting.append(f"{name}/")
            else:
                _refuse(str(folder), "must hold a bundle's regular files only: no link and no other folder", name)
    return found


def _check_names(names: Collection[str], *, roles: Collection[str]) -> None:
    """Raise ValueError unless the files that bundle.json names are a bundle's. roles: of the references among them."""
    if missing := sorted(set(REQUIRED) - set(names)):
        raise ValueError(f"files: lacks {missing[0]}")
    if unknown := sorted(set(names) - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"files: must name {', '.join((*REQUIRED, *OPTIONAL))} only, got {reprlib.repr(unknown[0])}")
    if unknown := sorted(set(roles) - {role for role, file in REFERENCES.items() if file in names}):
        raise ValueError(f"references: must be of references among its files, got {reprlib.repr(unknown[0])}")


def _check_files(folder: Path, found: set[str], hashes: Mapping[str, str]) -> None:
    if missing := sorted(hashes.keys() - found):
        _refuse(str(folder), f"lacks a file that its {DOCUMENT} names", missing[0])
    if extra := sorted(found - hashes.keys()):
        _refuse(str(folder), f"must hold only the files that its {DOCUMENT} names", extra[0])
    for name, expected in hashes.items():
        try:
            actual = _sha256(folder / name)
        except OSError as error:
            raise InputError(str(folder / name), f"cannot be read ({error.strerror})") from error
        if actual != expected:
            raise InputError(str(folder / name), f"must have the SHA-256 that {DOCUMENT} states, {expected}", actual)


def _sha256(path: Path) -> str:
    if path.stat().st_size > MOST_FILE_BYTES:
        raise InputError(str(path), f"must have at most {MOST_FILE_BYTES} bytes", path.stat().st_size)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse(place: str, rule: str, value: object) -> NoReturn:
    """Raise InputError with a value of a stranger's choosing: shortened, and without what a terminal would obey."""
    raise InputError(place, f"{rule}, got {reprlib.repr(value)}")
