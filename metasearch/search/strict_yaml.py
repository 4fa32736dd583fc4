"""YAML read strictly: a key given twice is refused, and 1e-3 is a number (YAML 1.1, and so PyYAML, calls it a text)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from metasearch.errors import InputError, NotFoundError

FLOAT_OF_YAML_1_2 = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+", re.ASCII)
TEXT_TAG, FLOAT_TAG, MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("str", "float", "merge"))


def read_text(path: str) -> str:
    """Return what a file holds. Raises NotFoundError, and InputError for one that is no text in UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, "must be text in UTF-8") from error


def load_yaml(text: str, *, place: str) -> Any:
    """Return what one YAML document says, with safe types only (dict, list, str, int, float, bool, None, date).

    place: the file's path as the user gave it. Raises InputError for a syntax error and for a repeated key, with the
    line, and for an empty text.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise InputError(place, "is empty")
        _check_node(node, place, "", seen=set())
        return _constructed(loader, node, place)
    except RecursionError as error:
        raise InputError(place, "is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "YAML"
        raise InputError(f"{place}: {where}", f"is not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{place}: line {line}", f"is not valid YAML: {error.reason}") from error


def _constructed(loader: yaml.SafeLoader, node: yaml.Node, place: str) -> Any:
    try:
        return loader.construct_document(node)
    except ValueError as error:  # such as the date 2020-13-45
        raise InputError(place, f"is not valid YAML: {error}") from error


def _check_node(node: yaml.Node, place: str, path: str, *, seen: set[int]) -> None:
    """Refuse repeated keys, and mark as numbers the plain scalars that only YAML 1.2 calls numbers."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.tag == TEXT_TAG and FLOAT_OF_YAML_1_2.fullmatch(node.value):
            node.tag = FLOAT_TAG
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _check_node(item, place, f"{path}[{position}]", seen=seen)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG:
                if key.value in first_lines:
                    raise InputError(
                        f"{place}: {here}", f"is given twice, on lines {first_lines[key.value]} and {line}"
                    )
                first_lines[key.value] = line
            _check_node(value, place, here, seen=seen)
