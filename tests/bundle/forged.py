"""What somebody who wants harm can do to a bundle: change it, and make its hashes and its digest anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from metasearch.bundle.contents import CARD, DOCUMENT, MODEL, PROGRAM, SCRIPT, WEIGHTS, document_digest, write_document
from tests.bundle.stand_ins import described
from tests.synthetic import synthetic_task


@cache
def fields_of_an_empty_bundle() -> dict[str, Any]:
    """Return the fields of bundle.json that `write_empty_bundle` writes."""
    return described(synthetic_task(), int8=False)


def write_empty_bundle(folder: Path, **changed: Any) -> Path:
    """Write a bundle that reads, of files in which there is nothing to run. changed: fields of bundle.json."""
    folder.mkdir(parents=True)
    for name in (MODEL, PROGRAM, WEIGHTS, CARD, SCRIPT):
        (folder / name).write_text(f"what stands for {name}\n", encoding="utf-8")
    write_document(folder, **(fields_of_an_empty_bundle() | changed))
    return folder


def document_of(folder: Path) -> dict[str, Any]:
    """Return a bundle's bundle.json as it is."""
    document: dict[str, Any] = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    return document


def forge(folder: Path, files: Mapping[str, bytes] | None = None, *, document: Mapping[str, Any] | None = None) -> None:
    """Write files of a bundle anew, and a bundle.json (by default its own) whose hashes and digest fit them."""
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    changed = dict(document_of(folder) if document is None else document)
    if isinstance(changed.get("files"), dict):
        known = [name for name in changed["files"] if (folder / name).is_file()]
        changed["files"] |= {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in known}
    text = json.dumps(changed | {"digest": document_digest(changed)}, indent=1, sort_keys=True)
    (folder / DOCUMENT).write_text(text + "\n", encoding="ascii")
