"""A report of `bench`, read back from a file: what another device printed, and so anything at all.

Imports neither torch, ray nor onnx.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metasearch.bundle.bench import FORMAT, Report, names_device
from metasearch.bundle.schema import (
    COUNT,
    FLAG,
    NUMBER_OR_NULL,
    POSITIVE,
    SHA256,
    SHARE,
    TEXT,
    Check,
    by_name,
    many,
    one,
    parse_json,
    record,
)
from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.latency.measured import LEAST_MS
from metasearch.latency.work import CONVOLUTIONS, INPUT, KINDS

MOST_BYTES = 64 * 2**20
LEAST_LAYERS = 2
"""The input, and an operation: a latency model needs times of both."""


def read_report(file: Path) -> Report:
    """Return the report in a file, as `bench` made it. Raises InputError, one line, for the first rule it breaks."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"must have at most {MOST_BYTES} bytes")
        report: Report = parse_json(content)
        REPORT(report, "report")
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(str(file), f"is not what `metasearch bench --json` printed ({first_line(error)})") from error
    for network in report["networks"]:
        network.update({"accuracy": {"val": None, "test": None}, "macs": None} | network)
    return report


def _number(least: float, most: float) -> Check:
    """Return the check of a number; NaN is in no range."""
    rule = f"a number from {least:g} to {most:g}"
    return one(lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and least <= v <= most, rule)


def _or_null(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def _row(*items: Check) -> Check:
    """Return the check of a list of exactly these."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) != len(items):
            raise ValueError(f"{place}: must be a list of {len(items)}, got {reprlib.repr(value)}")
        for position, (item, part) in enumerate(zip(items, value, strict=True)):
            item(part, f"{place}[{position}]")

    return check


def _cost(value: Any, place: str) -> None:
    record(TIMES, CPU_TIMES)(value, place)
    if len(CPU_TIMES.keys() & value.keys()) == 1:
        raise ValueError(f"{place}: must have both of {', '.join(CPU_TIMES)}, or neither")


def _work(value: Any, place: str) -> None:
    WORK(value, place)
    if value[0] in CONVOLUTIONS and 0 in value[-2:]:
        raise ValueError(f"{place}: a convolution must have channels, got {value[-2:]}")


def _layers(value: Any, place: str) -> None:
    many(_row(_work, _or_null(MILLISECONDS), COUNT), least=LEAST_LAYERS)(value, place)
    if value[0][0][0] != INPUT:
        raise ValueError(f"{place}[0][0][0]: must be {INPUT}, with which a network starts, got {value[0][0][0]!r}")


MILLISECONDS = _number(0, 1e9)
TIMES: Mapping[str, Check] = {
    "ms": MILLISECONDS,
    "spread_ms": MILLISECONDS,
    "p95_ms": MILLISECONDS,
    "p99_ms": MILLISECONDS,
    "images_per_s": _number(0, 1e15),
    "batch": POSITIVE,
    "runs": POSITIVE,
}
CPU_TIMES: Mapping[str, Check] = {"cpu_ms": _number(LEAST_MS, 1e9), "cpu_spread_ms": MILLISECONDS}
"""Of one thread alone."""
WORK = _row(one(lambda v: isinstance(v, str) and v in KINDS, f"one of {', '.join(KINDS)}"), FLAG, *4 * [COUNT])
DEVICE: Mapping[str, Check] = {
    "name": one(lambda v: isinstance(v, str) and names_device(v), "the name of a device"),
    "processor": TEXT,
    "cores": POSITIVE,
    "system": TEXT,
    "python": TEXT,
    "onnxruntime": TEXT,
    "load_before": NUMBER_OR_NULL,
    "load_after": NUMBER_OR_NULL,
}
NETWORK: Mapping[str, Check] = {
    "name": TEXT,
    "role": TEXT,
    "digest": SHA256,
    "study": TEXT,
    "trial": _or_null(COUNT),
    "int8": FLAG,
    "model_bytes": _or_null(COUNT),
    "file_bytes": COUNT,
    "memory_bytes": _number(-1e15, 1e15),
    "threads": by_name(_cost),
    "layers": _layers,
}
SINCE: Mapping[str, Check] = {
    "macs": _or_null(COUNT),
    "accuracy": record({"val": _or_null(SHARE), "test": _or_null(SHARE)}),
}
"""What the files of earlier versions lack."""
REPORT = record(
    {
        "format": one(lambda v: v == FORMAT, f"{FORMAT}, the one that this metasearch reads"),
        "device": record(DEVICE),
        "seconds": _number(0, 1e9),
        "rounds": POSITIVE,
        "networks": many(record(NETWORK, SINCE), least=1),
    }
)
