"""The command `bench`: what bundles cost on this device, and measurements that are brought back to a study."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_study
from metasearch.errors import InputError, NotFoundError
from metasearch.flags import AsJson, StorageUrl, with_flags
from metasearch.messages import tell

if TYPE_CHECKING:
    from optuna.study import Study


@dataclass(frozen=True)
class EffortFlags:
    """How much is measured; None: as bundle/bench.py has it."""

    threads: Annotated[str | None, typer.Option(help="1, all or a number. Default: 1, and all.")] = None
    seconds: Annotated[float | None, typer.Option(help="For each network and number of threads. Default: 2.")] = None
    images: Annotated[int | None, typer.Option(help="The most in a batch, for images a second. Default: 64.")] = None


@with_flags
def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Folders; or FILE.json, what --json printed on another device."),
    ],
    effort: EffortFlags,
    as_json: AsJson = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw accuracy against CPU time, marks as large as bytes.")
    ] = None,
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
    """Measure latency, throughput and memory of bundles, beside their teacher, uncompressed student and float network.

    Runs from the bundles alone; `python -m metasearch.bundle.bench BUNDLE...` needs onnxruntime, numpy and pillow only.

    Example: metasearch bench small/ smaller/ --svg costs.svg --into STUDY
    """
    if svg is not None and not os.path.isdir(svg.absolute().parent):
        raise NotFoundError(f"--svg: {svg}: its folder is not there")
    study = None if into is None else _study(into, storage)  # before anything is measured
    files = [path for path in bundles if path.suffix == ".json" and os.path.isfile(path)]
    if not files:
        by_one = "--into" if study is not None else "--svg" if svg is not None else None
        reports = [_measured(bundles, effort, device_name, by_one=by_one)]
    elif len(files) < len(bundles):
        raise InputError("BUNDLE", "must be bundles, or files of what was measured, not both", str(files[0]))
    else:
        reports = _read(files, effort, device_name)
    if len(reports) > 1 and (as_json or svg is not None):
        raise InputError("--json" if as_json else "--svg", "takes one FILE.json", len(reports))
    for report in reports:
        if as_json:
            typer.echo(json.dumps(report, allow_nan=False))
        else:
            _print(report)
        if svg is not None:
            _draw(report, svg)
        if study is not None:
            _bring_back(report, study)


def _measured(bundles: list[Path], effort: EffortFlags, device: str | None, *, by_one: str | None) -> dict[str, Any]:
    """Return the report of bundles. by_one: the flag that asks for the CPU time of one thread."""
    from metasearch.bundle import bench as benching
    from metasearch.bundle.subjects import subjects_of

    threads = benching.threads_of(effort.threads)
    seconds = benching.SECONDS if effort.seconds is None else effort.seconds
    images = benching.IMAGES if effort.images is None else effort.images
    benching.check_asked(seconds=seconds, images=images, device=device)
    if by_one is not None and 1 not in threads:
        raise InputError(
            "--threads", f"must be 1, or left out, with {by_one}, which is about one thread", effort.threads
        )
    subjects = subjects_of(bundles)
    networks = len({subject.digest for subject in subjects})
    tell(f"measuring {networks} networks: {seconds * len(threads) * networks:.0f} s or more")
    return benching.bench(subjects, threads=threads, seconds=seconds, images=images, device=device)


def _read(files: list[Path], effort: EffortFlags, device: str | None) -> list[dict[str, Any]]:
    """Return the reports in files, of a device of this name, if one is given."""
    from metasearch.bundle.bench import check_device
    from metasearch.bundle.bench_file import read_report

    for name, value in vars(effort).items():
        if value is not None:
            raise InputError(f"--{name}", "is for bundles: FILE.json says what was measured", value)
    reports = [read_report(file) for file in files]
    if device is not None:
        check_device(device)
        for report in reports:
            report["device"]["name"] = device
    return reports


def _study(name: str, storage: str | None) -> Study:
    from metasearch.search.store import load_study, open_storage, storage_url

    return load_study(open_storage(storage_url(storage)), name)


def _bring_back(report: dict[str, Any], study: Study) -> None:
    from metasearch.latency.model import FEWEST
    from metasearch.search.benchmarks import bring_back

    name, device, networks = study.study_name, report["device"]["name"], report["networks"]
    known, fitted = bring_back(study, device, networks)
    count = len({network["digest"] for network in networks})
    tell(f"{count} networks of {device} are kept with {name}, {len(known)} in all")
    if fitted is None:
        tell(f"{FEWEST} are needed to predict latencies: export more trials of its front, and bench them")
        return
    tell(f"latency_ms can be predicted {fitted}")
    tell(f"next: metasearch launch TASK --objective val_accuracy --objective latency_ms --latency-from {name}")


def _draw(report: dict[str, Any], path: Path) -> None:
    from metasearch.bundle.bench_picture import bench_picture

    picture = bench_picture(report)
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise InputError("--svg", f"must be a file that can be written ({error.strerror})", str(path)) from error


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    from metasearch.bundle.bench_table import bench_table
    from metasearch.report.output import PIPE_WIDTH

    # names are a stranger's: no [red] and no :smile: in them means anything
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False, highlight=False)
    console.print(bench_table(report))
    about = report["device"]
    console.print(
        f"{about['name']}: {about['processor']}, {about['cores']} cores, {about['system']}, onnxruntime "
        f"{about['onnxruntime']}, load {about['load_before']} before, {about['load_after']} after; "
        f"{report['rounds']} interleaved rounds, ± between the quartiles of their medians; images a second (best "
        "batch); memory above that of onnxruntime alone",
        soft_wrap=True,
    )
