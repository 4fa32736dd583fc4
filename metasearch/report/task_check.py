"""What `tasks check` prints: counts by class and split, statistics, and the advice."""

from __future__ import annotations

import sys

import pandas as pd
from rich.console import Console
from rich.text import Text

from metasearch.report.output import PIPE_WIDTH
from metasearch.report.tables import plain_table
from metasearch.tasks.findings import TaskCheck

MAX_CLASSES = 50
"""More classes than these are summed up, a row for the smallest and one for the largest."""


def print_task_check(found: TaskCheck) -> None:
    """Print what a check of a task found on stdout."""
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    shape = "x".join(map(str, found.input_shape))
    kind = "images (channels x height x width)" if len(found.input_shape) == 3 else "vectors"
    classes = len(found.counts["train"])
    out.print(Text.assemble((found.task, "bold"), f": {shape} {kind}, {classes} classes"))
    out.print(plain_table(counts_frame(found)))
    out.print(f"imbalance: the largest class has {found.imbalance:.2f} times the train examples of the smallest")
    if found.unlabelled:
        out.print(f"unlabelled: {found.unlabelled:,}")
    for name, values in (("mean", found.channel_mean), ("std", found.channel_std)):
        if values:
            out.print(f"channel {name} (train, in [0, 1]): {', '.join(f'{value:.4f}' for value in values)}")
    for sentence in found.advice:
        out.print(Text(f"- {sentence}"), soft_wrap=True)
    if not found.advice:
        out.print("nothing wrong found: no unreadable, constant or repeated examples, no class missing or rare")


def counts_frame(found: TaskCheck) -> pd.DataFrame:
    """Return a row for each class, or for the smallest and largest where there are many, and one for all of them."""
    frame = pd.DataFrame(found.counts)
    total = frame.sum().rename("all")
    if len(frame) > MAX_CLASSES:
        frame = pd.DataFrame({"smallest class": frame.min(), "largest class": frame.max()}).T
    return pd.concat([frame, total.to_frame().T]).rename_axis("class").reset_index()
