"""The page: templates, script, style and data in one file, which loads nothing and runs nothing but its own script.

Its policy allows the two scripts and the style by their digests and images from data URIs. What users and data sets
supply reaches it as text: escaped by the templates, or as JSON in an element that is never run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metasearch.errors import InputError
from metasearch.report.page.figure import COLORS, STYLES, figure_record, short
from metasearch.report.page.report import Report

HERE = Path(__file__).parent
ECHARTS_VERSION = "6.1.0"
ECHARTS_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"
"""Of dist/echarts.min.js in the npm package echarts of this version."""
PAGE = "index.html"


def write_page(report: Report, folder: Path, *, renew_s: float | None = None) -> Path:
    """Write the report's page into a folder, whole or not at all, and return its path.

    renew_s: after so many seconds an open page reloads itself. Raises InputError where it cannot be written.
    """
    page = render_page(report, renew_s=renew_s)
    path, temporary = folder / PAGE, folder / f".{PAGE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(page, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("--html", f"must be a folder that can be written ({error.strerror})", str(folder)) from error
    return path


def render_page(report: Report, *, renew_s: float | None = None) -> str:
    """Return the page's HTML. renew_s: see `write_page`."""
    scripts = [_static("echarts.min.js"), _static("page.js")]
    style = _static("page.css")
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        report=report,
        renew_s=renew_s,
        policy=content_security_policy(scripts, style),
        scripts=[Markup(script) for script in scripts],
        style=Markup(style),
        data=Markup(json_for_html(page_data(report))),
        data_uri=data_uri,
    )


def content_security_policy(scripts: list[str], style: str) -> str:
    """Return the policy that permits these texts alone: no request, no evaluation, no inline handler or style."""
    sources = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {sources}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def page_data(report: Report) -> dict[str, Any]:
    """Return what the script draws: figures by id, configurations by study, styles."""
    return {
        "figures": {figure.id: figure_record(figure) for figure in report.figures},
        "configurations": [
            part.configurations
            | {"columns": [[short(cell) for cell in column] for column in part.configurations["columns"]]}
            for part in report.parts
        ],
        "styles": {name: vars(style) for name, style in STYLES.items()},
        "colors": COLORS,
    }


def json_for_html(value: Any) -> str:
    """Return JSON that no HTML parser can see an end of element in: <, > and & are written as escapes."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def data_uri(text: str) -> str:
    """Return a text as a data URI, for a link that saves it."""
    return f"data:text/plain;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _static(name: str) -> str:
    return (HERE / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
