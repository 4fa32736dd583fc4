"""The parts of a multipart/form-data body (RFC 7578), which lies in memory whole."""

from __future__ import annotations

import re
from email.message import Message
from email.parser import HeaderParser

MOST_PARTS = 100
MOST_HEADER_BYTES = 4096


class MultipartError(ValueError):
    """Why a body is no multipart/form-data, in one line."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type header names. Raises MultipartError where there is none."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not re.fullmatch(r"[ -~]{0,69}[!-~]", boundary):
        raise MultipartError("the content type must name a boundary of 1 to 70 characters")
    return boundary.encode("ascii")


def read_parts(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """Return the file name ("" where it has none) and the content of every part, at most MOST_PARTS.

    Raises MultipartError, one line, where the body is cut off, empty or otherwise none.
    """
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_PARTS + 2)
    if not parts or first.strip():
        raise MultipartError("the body must begin with the boundary")
    if len(parts) > MOST_PARTS + 1:  # the last one is the end
        raise MultipartError(f"the body must have at most {MOST_PARTS} parts")
    *parts, end = parts
    if not end.startswith(b"--"):
        raise MultipartError("the body must end with the boundary and two hyphens")
    if not parts:
        raise MultipartError("the body must have a part")
    return [_part(part) for part in parts]


def _part(part: bytes) -> tuple[str, bytes]:
    header, separator, content = part.partition(b"\r\n\r\n")
    if not separator or len(header) > MOST_HEADER_BYTES:
        raise MultipartError("each part must have a header, an empty line and a content")
    headers = HeaderParser().parsestr(header.decode("utf-8", "replace").lstrip())
    return headers.get_filename(""), content
