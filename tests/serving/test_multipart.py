from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.serving.multipart import MOST_PARTS, MultipartError, boundary_of, read_parts
from tests.bench.malformed import FILE_NAMES, STRANGE_TYPES

NAMES = st.text(st.characters(blacklist_categories=["C", "Z"], blacklist_characters='"\\'), min_size=1, max_size=20)

EXTENDED = [content_type for content_type in STRANGE_TYPES if "boundary*" in content_type]


def written(parts: list[tuple[str, bytes]], boundary: bytes) -> bytes:
    heads = [f'Content-Disposition: form-data; name="f"; filename="{name}"'.encode() for name, _ in parts]
    framed = [
        b"--" + boundary + b"\r\n" + head + b"\r\nContent-Type: image/png\r\n\r\n" + content + b"\r\n"
        for head, (_, content) in zip(heads, parts, strict=True)
    ]
    return b"".join(framed) + b"--" + boundary + b"--\r\n"


@given(st.lists(st.tuples(NAMES, st.binary(max_size=200)), min_size=1, max_size=5))
def test_parts_are_read_as_they_were_written(parts: list[tuple[str, bytes]]) -> None:
    boundary = b"----a-boundary-that-is-in-no-content"
    assert read_parts(written(parts, boundary), boundary) == parts


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_other_bytes_are_refused_or_read_but_never_fail_otherwise(noise: bytes, cut: int) -> None:
    whole = written([("a.png", b"12"), ("b.png", noise)], b"xyz")
    for body in (noise, whole[:cut] + noise + whole[cut:], whole[:cut]):
        found: list[tuple[str, bytes]] = []
        with suppress(MultipartError):
            found = read_parts(body, b"xyz")
        assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in found)


@pytest.mark.parametrize("length", range(len(written([("a.png", b"content")], b"xyz")) - len("\r\n--xyz--\r\n")))
def test_a_body_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(MultipartError):
        read_parts(written([("a.png", b"content")], b"xyz")[:length], b"xyz")


def test_too_many_parts_are_refused() -> None:
    assert len(read_parts(written([("a", b"1")] * MOST_PARTS, b"xyz"), b"xyz")) == MOST_PARTS
    with pytest.raises(MultipartError, match=f"at most {MOST_PARTS} parts"):
        read_parts(written([("a", b"1")] * (MOST_PARTS + 1), b"xyz"), b"xyz")


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('multipart/form-data; charset=utf-8; BOUNDARY="a b:c"', b"a b:c"),
        ("multipart/form-data;boundary====3== ; x=y", b"===3=="),
    ],
)
def test_the_boundary_stands_in_the_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/x; boundary={'a' * 71}", "é;;=", *EXTENDED],
)
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(MultipartError, match="must name a boundary"):
        boundary_of(content_type)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        *((f'Content-Disposition: form-data; name="f"; {given.decode()}', "") for given in FILE_NAMES[1:]),
        ('content-disposition: form-data; FileName = "a"', ""),
        ("content-disposition:form-data;FileName=a.png;x=y", "a.png"),
        ('X-Y: z; filename="b"\r\nContent-Disposition: form-data; filename="a;b \\"c\\".png"', 'a;b "c".png'),
        ("Content-Type: image/png; name=a.png", ""),
        ('Content-Disposition: form-data; name="x; filename=evil"; filename="b.png"', "b.png"),
    ],
)
def test_a_part_has_the_plain_file_name_of_its_disposition_or_none(header: str, name: str) -> None:
    body = f"--xyz\r\n{header}\r\n\r\n1\r\n--xyz--".encode()
    assert read_parts(body, b"xyz") == [(name, b"1")]
