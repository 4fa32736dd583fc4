"""The table of a bench: what each network is, and what it costs with each number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from metasearch.bundle.bench import Report
from metasearch.report.tables import HEADINGS, metric_text

COSTS = ("threads", "ms", "p95, p99", "CPU ms", "images/s")


def shown_split(networks: Sequence[dict[str, Any]]) -> str:
    """Return which accuracy networks are shown by: that on test data where it is known of all, else val."""
    return "test" if all(network["accuracy"]["test"] is not None for network in networks) else "val"


def bench_table(report: Report) -> Table:
    """Return the table of a report: a group of rows for each network, a row for each number of threads."""
    networks = report["networks"]
    split = shown_split(networks)
    facts = (f"{split}_accuracy", "macs", "model_bytes")
    headings = ("network", *(HEADINGS[name] for name in facts), *COSTS, "memory")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(headings[0], overflow="fold", min_width=12)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for network in networks:
        known = network | {f"{split}_accuracy": network["accuracy"][split]}
        about = [metric_text(name, known[name]) for name in facts]
        memory = metric_text("model_bytes", network["memory_bytes"])
        for index, (threads, cost) in enumerate(network["threads"].items()):
            times = _times(threads, cost)
            table.add_row(*((network["name"], *about, *times, memory) if index == 0 else ("", "", "", "", *times, "")))
    return table


def _times(threads: str, cost: dict[str, Any]) -> tuple[str, ...]:
    return (
        threads,
        f"{cost['ms']:.3f} ±{cost['spread_ms']:.3f}",
        f"{cost['p95_ms']:.3f}, {cost['p99_ms']:.3f}",
        f"{cost['cpu_ms']:.3f} ±{cost['cpu_spread_ms']:.3f}" if "cpu_ms" in cost else "",
        f"{cost['images_per_s']:,.0f} ({cost['batch']})",
    )
