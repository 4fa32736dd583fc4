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
import math
import os
import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from metasearch.errors import InputError, NotFoundError

FORMAT = 1
DOCUMENT = "bundle.json"
MODEL, PROGRAM, WEIGHTS, CARD, SCRIPT = "model.onnx", "model.pt2", "weights.safetensors", "MODEL_CARD.md", "predict.py"
REQUIRED = (MODEL, PROGRAM, WEIGHTS, CARD, SCRIPT)
REFERENCES = {"teacher": "references/teacher.onnx", "student": "references/student.onnx"}
PORTABLE = "model.pte"
"""The network for ExecuTorch, where it was asked for."""
OPTIONAL = (*REFERENCES.values(), PORTABLE)
FOLDERS = {"references"}

MOST_DOCUMENT_BYTES = 4 * 2**20
MOST_FILE_BYTES = 2 * 2**30
"""The most that a file of Protocol Buffers, and so model.onnx, can have."""
MOST_INPUT_VALUES = 2**24
MOST_INTEGER = 2**53
MOST_CHARACTERS = 4096

Check = Callable[[Any, str], None]
"""Raises ValueError, with the field's place in bundle.json and the rule, for a value that breaks it."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked, JSON-ready but for its folder.

    name: STUDY-trial-N. input_shape: (C, H, W) or (F,). normalisation: scale and shift, C or F numbers each, which
    are inside the graph already. preprocessing: what makes an image file an input (mode, size as [W, H], resample,
    transparent), {} for vectors. final: the means of the final runs (test_accuracy, test_std, test_seeds, ...) where
    there were any. stages: stage and metrics of each. provenance, parity: see PROVENANCE and PARITY. files: the SHA-256
    of every file but bundle.json, by its name in the folder.
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
    if folder.is_file():
        raise InputError(str(folder), "must be the folder of a bundle, not a file")
    if not os.path.lexists(folder / DOCUMENT):
        raise NotFoundError(f"{folder}: no bundle is there: it has no {DOCUMENT}")
    found = _found_files(folder)  # before anything is opened: a link or a pipe is no file of ours
    place = str(folder / DOCUMENT)
    try:
        document = _read_document(folder / DOCUMENT)
        _record(FIELDS)(document, "")
        _check_together(document)
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
    document = json.loads(content, object_pairs_hook=_without_repeats, parse_float=_finite, parse_constant=_finite)
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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"numbers must be finite, got {reprlib.repr(text)}")
    return number


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


def _one(holds: Callable[[Any], bool], rule: str) -> Check:
    """Return the check of a single value."""

    def check(value: Any, place: str) -> None:
        if not holds(value):
            raise ValueError(f"{place}: must be {rule}, got {reprlib.repr(value)}")

    return check


def _many(item: Check, *, least: int = 0) -> Check:
    """Return the check of a list."""

    def check(value: Any, place: str) -> None:
        _LIST(value, place)
        if len(value) < least:
            raise ValueError(f"{place}: must have at least {least} items, got {len(value)}")
        for position, part in enumerate(value):
            item(part, f"{place}[{position}]")

    return check


def _by_name(item: Check) -> Check:
    """Return the check of a mapping with any names."""

    def check(value: Any, place: str) -> None:
        _MAPPING(value, place)
        for name, part in value.items():
            TEXT(name, f"{place}: a name")
            item(part, f"{place}.{name}")

    return check


def _record(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return the check of a mapping with these names."""
    checks = {**needed, **(optional or {})}

    def check(value: Any, place: str) -> None:
        _MAPPING(value, place)
        before = f"{place}." if place else ""
        if missing := sorted(needed.keys() - value.keys()):
            raise ValueError(f"{before}{missing[0]}: must be given")
        if unknown := sorted(value.keys() - checks.keys()):
            raise ValueError(f"{place or 'it'} must hold {', '.join(checks)} only, got {reprlib.repr(unknown[0])}")
        for name, part in value.items():
            checks[name](part, f"{before}{name}")

    return check


def _is_text(value: Any) -> bool:
    # controls (Cc) move a terminal's cursor, halves of surrogate pairs (Cs) cannot be printed at all
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        return False
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


_LIST = _one(lambda v: isinstance(v, list), "a list")
_MAPPING = _one(lambda v: isinstance(v, dict), "a mapping")
TEXT = _one(_is_text, f"a text of at most {MOST_CHARACTERS} characters, none of them a control")
TEXT_OR_NULL = _one(
    lambda v: v is None or _is_text(v),
    f"null or a text of at most {MOST_CHARACTERS} characters, none of them a control",
)
NUMBER = _one(_is_number, "a finite number")
NUMBER_OR_NULL = _one(lambda v: v is None or _is_number(v), "null or a finite number")
COUNT = _one(lambda v: _is_integer(v) and v >= 0, "a whole number, at least 0")
POSITIVE = _one(lambda v: _is_integer(v) and v > 0, "a whole number, at least 1")
SHARE = _one(lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]")
FLAG = _one(lambda v: isinstance(v, bool), "true or false")
SCALAR = _one(
    lambda v: v is None or isinstance(v, bool) or _is_number(v) or _is_text(v), "a number, text, flag or null"
)
SHA256 = _one(_is_sha256, "a SHA-256, 64 hexadecimal digits")

TASK_OPTIONS: Mapping[str, Check] = {
    "max_train": POSITIVE,
    "image_size": POSITIVE,
    "seed": COUNT,
    "skip_corrupt": FLAG,
    "augment": TEXT,
    "unlabelled": TEXT,
}
PROVENANCE: Mapping[str, Check] = {
    "study": TEXT,
    "trial": COUNT,
    "task": TEXT,  # the TaskSource's text, and those of its other fields that shape the data
    "task_options": _record({}, TASK_OPTIONS),
    "fingerprint": TEXT,
    "space_digest": TEXT,
    "teacher": TEXT_OR_NULL,
    "commit": TEXT_OR_NULL,
    "versions": _by_name(TEXT),
    "created": TEXT,
    "licence": TEXT_OR_NULL,
}
PARITY: Mapping[str, Check] = {
    "images": COUNT,
    "top1_agreement": SHARE,
    "largest_difference": NUMBER,
    "tolerance": NUMBER,
    "val_accuracy": SHARE,
}
FIELDS: Mapping[str, Check] = {
    "format": POSITIVE,
    "name": TEXT,
    "class_names": _many(TEXT, least=2),
    "input_shape": _many(POSITIVE, least=1),
    "int8": FLAG,
    "opset": POSITIVE,
    "normalisation": _record({"scale": _many(NUMBER), "shift": _many(NUMBER)}),
    "preprocessing": _by_name(_one(lambda v: _is_text(v) or isinstance(v, list), "a text or a list")),
    "config": _by_name(SCALAR),
    "seed": COUNT,
    "metrics": _by_name(NUMBER),
    "final": _by_name(NUMBER_OR_NULL),
    "stages": _many(_record({"stage": TEXT, "metrics": _by_name(NUMBER)}, {"seconds": NUMBER})),
    "provenance": _record(PROVENANCE),
    "parity": _record(PARITY, {"float_agreement": SHARE}),
    "files": _by_name(SHA256),
    "digest": SHA256,
}


def preprocessing_of(input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what makes a file an input of a shape: the constants of `predict.read_image`; {} for vectors."""
    if len(input_shape) == 1:
        return {}
    channels, height, width = input_shape
    mode = "L" if channels == 1 else "RGB"
    return {"mode": mode, "size": [width, height], "resample": "bilinear", "transparent": "white"}


def _check_together(document: Mapping[str, Any]) -> None:
    """Raise ValueError for fields that do not fit each other."""
    shape = tuple(document["input_shape"])
    image = len(shape) == 3 and shape[0] in (1, 3)
    if not (image or len(shape) == 1) or math.prod(shape) > MOST_INPUT_VALUES:
        rule = f"must be (1 or 3, H, W) or (F,), with at most {MOST_INPUT_VALUES} values"
        raise ValueError(f"input_shape: {rule}, got {reprlib.repr(shape)}")
    for name, numbers in document["normalisation"].items():
        if len(numbers) != shape[0]:
            raise ValueError(f"normalisation.{name}: must have {shape[0]} numbers, got {len(numbers)}")
    if document["preprocessing"] != preprocessing_of(shape):
        expected = preprocessing_of(shape)
        raise ValueError(f"preprocessing: must be {expected}, got {reprlib.repr(document['preprocessing'])}")
    if document["int8"] and "float_agreement" not in document["parity"]:
        raise ValueError("parity: lacks float_agreement, which an int8 network has")
    names = document["files"].keys()
    if missing := sorted(set(REQUIRED) - names):
        raise ValueError(f"files: lacks {missing[0]}")
    if unknown := sorted(names - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"files: must name {', '.join((*REQUIRED, *OPTIONAL))} only, got {reprlib.repr(unknown[0])}")
