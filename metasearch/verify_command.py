"""`metasearch verify`: whether bundles are whole, safe and what they say. Nothing of them but their graphs is run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from metasearch.flags import AsJson, DataRoot


def verify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders that `export` wrote.")],
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Check bundles: files and hashes, graphs that are safe to run, one network in all forms, accuracy as stated.

    The accuracy is measured again where the task's data are prepared here, or --data-root has them; then they must be
    the same data. Hashes show damage, not who made a bundle: compare the digest with one that you know.

    Example: metasearch verify BUNDLE --data-root DIR
    """
    from metasearch.bundle.verifying import verify_bundle

    records, failed = [], []
    for folder in bundles:
        bundle, findings = verify_bundle(folder, data_root=data_root)
        failed += [finding.message for finding in findings if finding.holds is False]
        if as_json:
            named = {} if bundle is None else {"name": bundle.name, "digest": bundle.digest}
            holds = all(finding.holds is not False for finding in findings)
            records.append({"bundle": str(folder), "holds": holds, **named, "checks": [asdict(f) for f in findings]})
        elif bundle is not None:
            typer.echo(f"{folder}: {bundle.name}, digest {bundle.digest}")
            for finding in findings:
                if finding.holds is not False:
                    typer.echo(f"  {finding.check}: {'ok' if finding.holds else 'not done'}, {finding.message}")
    if as_json:
        typer.echo(json.dumps(records))
    for message in failed:
        typer.echo(f"metasearch: {message}", err=True)
    if failed:
        raise typer.Exit(1)
