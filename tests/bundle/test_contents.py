from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.bundle.contents import CARD, DOCUMENT, MODEL, REQUIRED, read_bundle, write_document
from metasearch.bundle.schema import FIELDS
from metasearch.errors import InputError, MetasearchError, NotFoundError
from tests.bundle.forged import document_of, fields_of_an_empty_bundle, forge, write_empty_bundle

Document = dict[str, Any]


def refusal(folder: Path) -> str:
    """Return why a bundle is refused: one line, without anything that a terminal would obey."""
    with pytest.raises(MetasearchError) as refused:
        read_bundle(folder)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_empty_bundle(tmp_path / "bundle")


texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)
numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53))


@given(
    class_names=st.lists(texts, min_size=2, max_size=5),
    config=st.dictionaries(texts, st.one_of(texts, numbers, st.booleans())),
    metrics=st.dictionaries(texts, numbers),
    stages=st.lists(st.fixed_dictionaries({"stage": texts, "metrics": st.dictionaries(texts, numbers)}), max_size=2),
)
def test_what_is_written_is_what_is_read(**fields: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = write_empty_bundle(Path(folder) / "bundle")
        bundle = write_document(written, **(fields_of_an_empty_bundle() | fields))
        assert bundle == read_bundle(written)
        assert list(bundle.class_names) == fields["class_names"]
        assert (bundle.config, bundle.metrics) == (fields["config"], fields["metrics"])
        assert bundle.digest == document_of(written)["digest"]


def test_the_digest_changes_with_every_file_and_field(bundle: Path) -> None:
    digests = {read_bundle(bundle).digest}
    for name in REQUIRED:
        (bundle / name).write_bytes(b"another")
        digests.add(write_document(bundle, **fields_of_an_empty_bundle()).digest)
    digests.add(write_document(bundle, **(fields_of_an_empty_bundle() | {"seed": 4})).digest)
    assert len(digests) == len(REQUIRED) + 2


@pytest.mark.parametrize("name", [*REQUIRED, DOCUMENT])
def test_a_changed_byte_is_noticed_in_every_file(name: str, bundle: Path) -> None:
    content = (bundle / name).read_bytes()
    for position in {0, len(content) // 2, len(content) - 1}:
        for mask in (1, 0x20, 0x80):
            changed = bytearray(content)
            changed[position] ^= mask
            (bundle / name).write_bytes(bytes(changed))
            assert name in refusal(bundle)


@given(data=st.data())
def test_no_change_of_bundle_json_goes_unnoticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_empty_bundle(Path(folder) / "bundle")
        content = (bundle / DOCUMENT).read_bytes()
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        changed = content[:start] + data.draw(st.binary(max_size=20)) + content[end:]
        (bundle / DOCUMENT).write_bytes(changed)
        if changed == content:
            read_bundle(bundle)
        else:
            assert DOCUMENT in refusal(bundle)


@pytest.mark.parametrize("name", [*REQUIRED, DOCUMENT])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_noticed(name: str, left: float, bundle: Path) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(left * len(content))])
    assert name in refusal(bundle)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    assert f"lacks a file that its {DOCUMENT} names, got '{name}'" in refusal(bundle)


@pytest.mark.parametrize("name", ["extra.py", ".hidden", "references/teacher.onnx", "sitecustomize.py", "a\n\x1b[31mb"])
def test_a_file_that_is_not_named_is_refused(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"")
    assert "must hold only the files" in refusal(bundle)


def with_folder(bundle: Path) -> None:
    (bundle / "sub").mkdir()


def with_link(bundle: Path) -> None:
    shutil.copy(bundle / MODEL, bundle.parent / "elsewhere")
    (bundle / MODEL).unlink()
    (bundle / MODEL).symlink_to(bundle.parent / "elsewhere")


def with_dead_link(bundle: Path) -> None:
    (bundle / "link").symlink_to("/nonexistent")


def with_linked_document(bundle: Path) -> None:
    (bundle / DOCUMENT).rename(bundle.parent / DOCUMENT)
    (bundle / DOCUMENT).symlink_to(bundle.parent / DOCUMENT)


def with_linked_folder(bundle: Path) -> None:
    (bundle.parent / "elsewhere").mkdir()
    (bundle / "references").symlink_to(bundle.parent / "elsewhere")


def with_pipe(bundle: Path) -> None:
    (bundle / CARD).unlink()
    os.mkfifo(bundle / CARD)


def with_document_folder(bundle: Path) -> None:
    (bundle / DOCUMENT).unlink()
    (bundle / DOCUMENT).mkdir()


def with_folder_in_references(bundle: Path) -> None:
    (bundle / "references" / "references").mkdir(parents=True)


@pytest.mark.parametrize(
    "change",
    [
        with_folder,
        with_link,
        with_dead_link,
        with_linked_document,
        with_linked_folder,
        with_pipe,
        with_document_folder,
        with_folder_in_references,
    ],
)
def test_links_pipes_and_other_folders_are_refused(change: Callable[[Path], None], bundle: Path) -> None:
    change(bundle)
    assert "must hold a bundle's regular files only: no link and no other folder" in refusal(bundle)


def test_a_link_to_a_whole_bundle_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert read_bundle(tmp_path / "current").digest == read_bundle(bundle).digest


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "references/../../outside", "", ".", "model.onnx/", "C:\\x", "model.onnx\n"]
)
def test_a_name_outside_the_folder_is_refused(name: str, bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(b"")
    document = document_of(bundle)
    document["files"][name] = "0" * 64
    forge(bundle, document=document)
    assert re.search(r"files: (must name|a name: must be a text)", refusal(bundle))


def test_another_file_than_a_bundle_s_is_refused_even_where_it_is_named(bundle: Path) -> None:
    document = document_of(bundle)
    document["files"]["hook.py"] = "0" * 64
    forge(bundle, {"hook.py": b""}, document=document)
    assert "files: must name model.onnx, " in refusal(bundle)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_bundle_without_one_of_its_files_is_refused_even_where_it_is_not_named(name: str, bundle: Path) -> None:
    document = document_of(bundle)
    del document["files"][name]
    (bundle / name).unlink()
    forge(bundle, document=document)
    assert f"files: lacks {name}" in refusal(bundle)


def test_what_is_no_bundle_is_not_found_or_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / ("a" * 300)):
        with pytest.raises(NotFoundError, match=r"no bundle is there: it has no bundle\.json"):
            read_bundle(folder)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr(DOCUMENT, "{}")
    assert refusal(tmp_path / "bundle.zip").endswith("must be the folder of a bundle, not a file")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is not JSON|Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "must be a mapping"),
        ("7", "must be a mapping"),
        ('"bundle"', "must be a mapping"),
        ("null", "must be a mapping"),
        ('{"format": 1, "format": 1}', "a key is given twice"),
        ('{"format": NaN}', "numbers must be finite"),
        ('{"format": -Infinity}', "numbers must be finite"),
        ('{"format": 1e999}', "numbers must be finite"),
        ('{"format": 1}', "format: must be 2, the one that this metasearch reads, got 1"),
        ('{"format": true}', "was changed|format: must be"),
        ('{"format": "2"}', "format: must be 2"),
        ("{}", "format: must be 2, .* got None"),
        ('{"format": 2}', "was changed after it was written"),
        ('{"format": 2, "digest": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"format": 2, "a": ' + "[" * 700 + "]" * 700 + "}", "nested too deeply|was changed"),
        ('{"format": 2, "name": "' + "x" * 5_000_000 + '"}', "must have at most"),
        ('{"format": "\ud800"}', "codec|format: must be"),
        ("\ufeff{}", "BOM|Expecting value|format"),
    ],
)
def test_a_bundle_json_that_is_none_is_refused(text: str, rule: str, bundle: Path) -> None:
    (bundle / DOCUMENT).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert re.search(rule, refusal(bundle))


def test_another_spelling_of_the_same_content_is_refused(bundle: Path) -> None:
    document = document_of(bundle)
    (bundle / DOCUMENT).write_text(json.dumps(document), encoding="utf-8")
    assert "must be spelled as metasearch writes it" in refusal(bundle)


def test_a_changed_field_is_noticed_by_the_digest(bundle: Path) -> None:
    document = document_of(bundle) | {"seed": 99}
    (bundle / DOCUMENT).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert "digest must be that of its content" in refusal(bundle)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"digest"}))
def test_every_field_must_be_there_and_of_its_type(name: str, bundle: Path) -> None:
    document = document_of(bundle)
    forge(bundle, document={key: value for key, value in document.items() if key != name})
    assert f"{name}: must be" in refusal(bundle)
    wrongs: tuple[object, ...] = (None, -1, "\x1b[31m", [[]], {"": []}, 1.5, [None, None], {"\x00": 1})
    for wrong in wrongs:
        forge(bundle, document=document | {name: wrong})
        assert re.search(rf"{name}\S*: (must|a name: must|lacks)|{name} must", refusal(bundle))


def set_at(document: Document, path: str, value: object) -> Document:
    changed = copy.deepcopy(document)
    *outer, last = path.split(".")
    within = changed
    for key in outer:
        within = within[key]
    within[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("class_names", ["one"], "must have at least 2 items, got 1"),
        ("class_names", ["a", "b\n"], r"class_names\[1\]: must be a text"),
        ("class_names", ["a", "\ud800"], r"class_names\[1\]: must be a text"),
        ("class_names", ["a", "x" * 100_000], r"class_names\[1\]: must be a text of at most 4096 characters"),
        ("input_shape", [1, 8], r"must be \(1 or 3, H, W\) or \(F,\)"),
        ("input_shape", [2, 8, 8], r"must be \(1 or 3, H, W\) or \(F,\)"),
        ("input_shape", [3, 100_000, 100_000], "with at most 16777216 values"),
        ("input_shape", [1, 8, 0], r"input_shape\[2\]: must be a whole number, at least 1"),
        ("input_shape", [1, 8, True], r"input_shape\[2\]: must be a whole number"),
        ("input_shape", [1, 8, 2**70], r"input_shape\[2\]: must be a whole number"),
        ("normalisation.scale", [0.1, 0.1], "normalisation.scale: must have 1 numbers, got 2"),
        ("normalisation.more", [0.1], "normalisation must hold scale, shift only"),
        ("preprocessing.size", [8, 9], "preprocessing: must be"),
        ("preprocessing.mode", "RGB", "preprocessing: must be"),
        ("preprocessing", {}, "preprocessing: must be"),
        ("int8", True, "parity: lacks float_agreement"),
        ("parity.top1_agreement", 1.5, r"parity.top1_agreement: must be a number in \[0, 1\]"),
        ("metrics.macs", 10**400, "metrics.macs: must be a finite number"),
        ("metrics.macs", True, "metrics.macs: must be a finite number"),
        ("provenance.versions", {"torch": 2.15}, "provenance.versions.torch: must be a text"),
        ("provenance.task_options", {"data_root": "/"}, "provenance.task_options must hold max_train"),
        ("provenance.task_options", {"max_train": "9"}, "task_options.max_train: must be a whole number"),
        ("references.student", {"macs": 9}, "references: must be of references among its files, got 'student'"),
        ("references.student", {"macs": "9"}, "references.student.macs: must be a finite number"),
        ("files.MODEL_CARD", "0" * 64, "files: must name"),
        ("extra", 1, "it must hold format, name,"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(path: str, value: object, rule: str, bundle: Path) -> None:
    forge(bundle, document=set_at(document_of(bundle), path, value))
    assert re.search(rule, refusal(bundle))


def test_a_document_with_a_number_that_is_none_is_not_written(bundle: Path) -> None:
    before = (bundle / DOCUMENT).read_bytes()
    wrong = fields_of_an_empty_bundle() | {"metrics": {"val_accuracy": math.nan}}
    with pytest.raises(InputError, match="cannot be written as JSON"):
        write_document(bundle, **wrong)
    assert (bundle / DOCUMENT).read_bytes() == before


def test_hashes_made_anew_read_well_for_they_do_not_prove_who_made_them(bundle: Path) -> None:
    known = read_bundle(bundle).digest
    forge(bundle, {MODEL: b"another network"})
    assert read_bundle(bundle).digest != known
