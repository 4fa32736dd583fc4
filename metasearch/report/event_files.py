"""A study as event files for TensorBoard: a folder a trial, its scalars by epoch, its parameters and metrics.

Written by tensorboardX, which Ray Tune brings, so that no torch is loaded; `tensorboard --logdir DIR` shows them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from metasearch.errors import InputError
from metasearch.report.database import Database
from metasearch.report.trial_logs import EPOCH_METRICS, TrialLog, trial_logs

PREFIX = "trial-"


def write_event_files(database: Database, names: Sequence[str], folder: Path) -> dict[str, int]:
    """Write the ended trials of studies that are not there yet; return how many are new by study.

    A trial's folder is STUDY/trial-NUMBER, there whole or not at all. Raises InputError where it cannot be written.
    """
    return {name: _write_study(database, name, folder / folder_name(name)) for name in names}


def folder_name(study: str) -> str:
    """Return a study's name as that of one folder: what a path could not hold, or would mean, is %-escaped."""
    name = quote(study, safe=" ")
    return name.replace(".", "%2E") if name.startswith(".") else name


def _write_study(database: Database, name: str, folder: Path) -> int:
    numbers = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    there = {int(number) for number in numbers if number.isdigit()}
    count = 0
    try:
        for log in trial_logs(database, name, without=there):
            count += 1
            # under a name that TensorBoard does not know, until it is whole
            scratch = folder / f".{PREFIX}{log.number:04}.{os.getpid()}"
            scratch.mkdir(parents=True, exist_ok=True)
            try:
                write_trial(log, scratch)
                os.replace(scratch, folder / f"{PREFIX}{log.number:04}")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        place = "must be a folder that can be written"
        raise InputError("--tensorboard", f"{place} ({error.strerror})", str(folder)) from error
    return count


def write_trial(log: TrialLog, folder: Path) -> None:
    """Write one trial's event file: scalars by epoch, then its parameters beside its metrics, as `result/METRIC`."""
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    results = {f"result/{name}": value for name, value in log.metrics.items()}
    with SummaryWriter(logdir=str(folder), write_to_disk=True) as writer:
        for report, when in log.epochs():
            for name in EPOCH_METRICS:
                writer.add_scalar(name, getattr(report, name), report.epoch, walltime=when)
        for summary in hparams(dict(log.parameters), results):
            writer.file_writer.add_summary(summary, walltime=log.ended)
        for name, value in results.items():
            writer.add_scalar(name, value, len(log.curve), walltime=log.ended)
