"""A report of `bench`, written by hand: four networks on a device that nobody has."""

from __future__ import annotations

from hashlib import sha256

from metasearch.bundle.bench import FORMAT, Report
from tests.latency.devices import networks

ROLES = ("bundle", "teacher", "student", "float")


def bench_report() -> Report:
    """Return the report, which a test may change."""
    one = {"spread_ms": 0.001, "p95_ms": 1.5, "p99_ms": 2.0, "images_per_s": 1234.5, "batch": 64, "runs": 500}
    return {
        "format": FORMAT,
        "device": {
            "name": "board",
            "processor": "a processor",
            "cores": 2,
            "system": "Linux aarch64",
            "python": "3.11.0",
            "onnxruntime": "1.31.0",
            "load_before": 0.1,
            "load_after": None,
        },
        "seconds": 2.0,
        "rounds": 10,
        "networks": [
            {
                "name": f"stand-in: {role}",
                "role": role,
                "digest": sha256(role.encode()).hexdigest(),
                "study": "stand-in",
                "trial": 7 if role == "bundle" else None,
                "int8": role == "bundle",
                "accuracy": {"val": 0.9 + index / 100, "test": 0.8 + index / 100},
                "macs": measured.macs,
                "model_bytes": 10 ** (index + 3),
                "file_bytes": 10 ** (index + 3) + 2000,
                "memory_bytes": 10**7,
                "threads": {
                    "1": {"ms": measured.ms, "cpu_ms": measured.ms, "cpu_spread_ms": 0.001, **one},
                    "2": {"ms": measured.ms, **one},
                },
                "layers": [layer.plain() for layer in measured.layers],
            }
            for index, (role, measured) in enumerate(zip(ROLES, networks(4), strict=True))
        ],
    }
