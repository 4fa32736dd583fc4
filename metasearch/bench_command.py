"""The command `bench`: what bundles cost on this device, and measurements that are brought back to a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_study
from metasearch.errors import InputError
from metasearch.flags import AsJson, StorageUrl
from metasearch.messages import tell

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("network", "threads", "ms", "p95, p99", "CPU ms", "images/s", "memory", "bytes", "file")


def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Folders; or FILE.json, what --json printed on another device."),
    ],
    threads: Annotated[str | None, typer.Option(help="1, all or a number. Default: 1, and all.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For each network and number of threads.")] = 2.0,
    images: Annotated[int, typer.Option(min=1, help="The most in a batch, for images a second.")] = 64,
    as_json: AsJson = False,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Keep what was measured, for a search with --latency-from STUDY.",
            autocompletion=complete_study,
        ),
    ] = None,
    device_name: Annotated[str | None, typer.Option(help="Default: what its processor calls itself.")] = None,
    storage: StorageUrl = None,
) -> None:
    """Measure latency, throughput, memory and bytes of bundles, beside their teacher and uncompressed student.

    Runs from the bundles alone; `python -m metasearch.bundle.bench BUNDLE...` needs onnxruntime, numpy and pillow only.

    Example: metasearch bench small/ smaller/ --into STUDY
    """
    from metasearch.bundle import bench as benching

    files = [path for path in bundles if path.is_file() and path.suffix == ".json"]
    if files and len(files) < len(bundles):
        raise InputError("BUNDLE", "must be bundles, or files of what was measured, not both", str(files[0]))
    if files:
        reports = [_read(file) for file in files]
    else:
        asked = benching.threads_of(threads)
        if into is not None and 1 not in asked:
            raise InputError("--threads", "must be 1, or left out, with --into: latencies are modelled on one", threads)
        subjects = benching.subjects_of(bundles)
        tell(f"measuring {len(subjects)} networks: {seconds * len(asked) * len(subjects):.0f} s or more")
        reports = [benching.bench(subjects, threads=asked, seconds=seconds, images=images, device=device_name)]
    for report in reports:
        if as_json:
            typer.echo(json.dumps(report))
        else:
            _print(report)
        if into is not None:
            _bring_back(report, device_name or report["device"]["name"], into, storage)


def _read(file: Path) -> dict[str, Any]:
    """Return the report in a file. Raises InputError for another file, or one of no use."""
    from metasearch.bundle.bench import FORMAT
    from metasearch.latency.measured import measured_of

    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']!r}")
        str(report["device"]["name"])
        for network in report["networks"]:
            measured_of(network)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(str(file), f"is not what `metasearch bench --json` printed ({error!r:.80})") from error
    return report


def _bring_back(report: dict[str, Any], device: str, name: str, storage: str | None) -> None:
    from metasearch.latency.model import FEWEST, fit
    from metasearch.search.benchmarks import bring_back
    from metasearch.search.store import load_study, open_storage, storage_url

    study = load_study(open_storage(storage_url(storage)), name)
    known = bring_back(study, device, report["networks"])
    tell(f"{len(report['networks'])} networks of {device} are kept with {name}, {len(known)} in all")
    if len(known) < FEWEST:
        tell(f"{FEWEST} are needed to predict latencies: export more trials of its front, and bench them")
        return
    tell(f"latency_ms can be predicted {fit(known)}")
    tell(f"next: metasearch launch TASK --objective val_accuracy --objective latency_ms --latency-from {name}")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    from metasearch.report.output import PIPE_WIDTH

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(_table(report))
    about = report["device"]
    console.print(
        f"{about['name']}: {about['processor']}, {about['cores']} cores, {about['system']}, onnxruntime "
        f"{about['onnxruntime']}, load {about['load_before']} before, {about['load_after']} after; "
        f"{report['rounds']} interleaved rounds, ± between the quartiles of their medians; images a second (best "
        "batch); memory above that of onnxruntime alone",
        highlight=False,
        soft_wrap=True,
    )


def _table(report: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    from metasearch.report.tables import metric_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        first = column == "network"
        table.add_column(
            column, justify="left" if first else "right", no_wrap=not first, overflow="fold", min_width=20 * first
        )
    for network in report["networks"]:
        sizes = [metric_text("model_bytes", network[key]) for key in ("memory_bytes", "model_bytes", "file_bytes")]
        for index, (threads, cost) in enumerate(network["threads"].items()):
            table.add_row(
                network["name"] if index == 0 else "",
                threads,
                f"{cost['ms']:.3f} ±{cost['spread_ms']:.3f}",
                f"{cost['p95_ms']:.3f}, {cost['p99_ms']:.3f}",
                f"{cost['cpu_ms']:.3f} ±{cost['cpu_spread_ms']:.3f}" if "cpu_ms" in cost else "",
                f"{cost['images_per_s']:,.0f} ({cost['batch']})",
                *(sizes if index == 0 else ("", "", "")),
            )
    return table
