"""The parts of a multipart/form-data body (RFC 7578), which lies in memory whole."""

from __future__ import annotations

import re

MOST_PARTS = 100
MOST_HEADER_BYTES = 4096
# `email` would read RFC 2231's forms, too, filename*=..., which RFC 7578 forbids (4.2) and which fail in many ways
BOUNDARY = re.compile(r';\s*boundary=(?:"([ !#-~]{0,69}[!#-~])"|([!#-:<-~]{1,70}))\s*(?:;|$)', re.IGNORECASE)
DISPOSITION = re.compile(r"^content-disposition:(.*)$", re.IGNORECASE | re.MULTILINE)
PARAMETER = re.compile(r';\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


class MultipartError(ValueError):
    """Why a body is no multipart/form-data, in one line."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type header names. Raises MultipartError where there is none."""
    found = BOUNDARY.search(content_type)
    if found is None:
        raise MultipartError("the content type must name a boundary of 1 to 70 characters")
    return (found[1] or found[2]).encode("ascii")


def read_parts(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """Return the file name ("" where it has none) and the content of every part, at most MOST_PARTS.

    Raises MultipartError, one line, where the body is cut off, empty or otherwise none.
    """
    delimiter = b"\r\n--" + boundary
    start = body.find(delimiter[2:])  # the first has no line before it
    if start < 0 or body[:start].strip():
        raise MultipartError("the body must begin with the boundary")
    parts: list[tuple[str, bytes]] = []
    at = start + len(delimiter) - 2
    while not body.startswith(b"--", at):
        if len(parts) == MOST_PARTS:
            raise MultipartError(f"the body must have at most {MOST_PARTS} parts")
        end = body.find(delimiter, at)
        if end < 0:
            raise MultipartError("the body must end with the boundary and two hyphens")
        parts.append(_part(body, at, end))
        at = end + len(delimiter)
    if not parts:
        raise MultipartError("the body must have a part")
    return parts


def _part(body: bytes, start: int, end: int) -> tuple[str, bytes]:
    middle = body.find(b"\r\n\r\n", start, end)
    if not 0 <= middle - start <= MOST_HEADER_BYTES:
        raise MultipartError("each part must have a header, an empty line and a content")
    header = body[start:middle].decode("utf-8", "replace").replace("\r\n", "\n")
    disposition = DISPOSITION.search(header)
    parameters = PARAMETER.finditer(disposition[1]) if disposition else ()
    name = next((each[2] or each[3] or "" for each in parameters if each[1].lower() == "filename"), "")
    return re.sub(r'\\(["\\])', r"\1", name), body[middle + 4 : end]
