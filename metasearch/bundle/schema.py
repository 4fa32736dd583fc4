"""What bundle.json must hold, and the checks of a stranger's JSON of which that is made.

A check raises ValueError, with the place in the document, the rule and the value: shortened, for a stranger chose it.
Imports neither torch, ray nor onnx.
"""

from __future__ import annotations

import json
import math
import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

MOST_INPUT_VALUES = 2**24
MOST_INTEGER = 2**53
MOST_CHARACTERS = 4096
TEXT_RULE = f"a text of at most {MOST_CHARACTERS} characters, none of them a control"

Check = Callable[[Any, str], None]
"""Raises ValueError for a value that breaks the rule. The second argument is its place in the document."""


def parse_json(content: bytes) -> Any:
    """Return what a JSON text says; raises ValueError for a key given twice or a number that is not finite, too."""
    return json.loads(content, object_pairs_hook=_without_repeats, parse_float=_finite, parse_constant=_finite)


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


def one(holds: Callable[[Any], bool], rule: str) -> Check:
    """Return the check of a single value."""

    def check(value: Any, place: str) -> None:
        if not holds(value):
            raise ValueError(f"{place}: must be {rule}, got {reprlib.repr(value)}")

    return check


def many(item: Check, *, least: int = 0) -> Check:
    """Return the check of a list."""

    def check(value: Any, place: str) -> None:
        _LIST(value, place)
        if len(value) < least:
            raise ValueError(f"{place}: must have at least {least} items, got {len(value)}")
        for position, part in enumerate(value):
            item(part, f"{place}[{position}]")

    return check


def by_name(item: Check) -> Check:
    """Return the check of a mapping with any names."""

    def check(value: Any, place: str) -> None:
        _MAPPING(value, place)
        for name, part in value.items():
            TEXT(name, f"{place}: a name")
            item(part, f"{place}.{name}")

    return check


def record(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
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


def is_text(value: Any) -> bool:
    """Return whether a value is a text as TEXT_RULE says."""
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


_LIST = one(lambda v: isinstance(v, list), "a list")
_MAPPING = one(lambda v: isinstance(v, dict), "a mapping")
TEXT = one(is_text, TEXT_RULE)
TEXT_OR_NULL = one(lambda v: v is None or is_text(v), f"null or {TEXT_RULE}")
NUMBER = one(_is_number, "a finite number")
NUMBER_OR_NULL = one(lambda v: v is None or _is_number(v), "null or a finite number")
COUNT = one(lambda v: _is_integer(v) and v >= 0, "a whole number, at least 0")
POSITIVE = one(lambda v: _is_integer(v) and v > 0, "a whole number, at least 1")
SHARE = one(lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]")
FLAG = one(lambda v: isinstance(v, bool), "true or false")
SCALAR = one(lambda v: v is None or isinstance(v, bool) or _is_number(v) or is_text(v), "a number, text, flag or null")
SHA256 = one(_is_sha256, "a SHA-256, 64 hexadecimal digits")

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
    "task_options": record({}, TASK_OPTIONS),
    "fingerprint": TEXT,
    "space_digest": TEXT,
    "teacher": TEXT_OR_NULL,
    "commit": TEXT_OR_NULL,
    "versions": by_name(TEXT),
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
    "class_names": many(TEXT, least=2),
    "input_shape": many(POSITIVE, least=1),
    "int8": FLAG,
    "opset": POSITIVE,
    "normalisation": record({"scale": many(NUMBER), "shift": many(NUMBER)}),
    "preprocessing": by_name(one(lambda v: is_text(v) or isinstance(v, list), "a text or a list")),
    "config": by_name(SCALAR),
    "seed": COUNT,
    "metrics": by_name(NUMBER),
    "final": by_name(NUMBER_OR_NULL),
    "references": by_name(by_name(NUMBER)),
    "stages": many(record({"stage": TEXT, "metrics": by_name(NUMBER)}, {"seconds": NUMBER})),
    "provenance": record(PROVENANCE),
    "parity": record(PARITY, {"float_agreement": SHARE}),
    "files": by_name(SHA256),
    "digest": SHA256,
}


def preprocessing_of(input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what makes a file an input of a shape: the constants of `predict.read_image`; {} for vectors."""
    if len(input_shape) == 1:
        return {}
    channels, height, width = input_shape
    mode = "L" if channels == 1 else "RGB"
    return {"mode": mode, "size": [width, height], "resample": "bilinear", "transparent": "white"}


def check_together(document: Mapping[str, Any]) -> None:
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
