"""Tasks: where labelled data come from, and how they become three splits at rest.

Names are imported when they are used: listing tasks needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasearch.lazy import lazy_attributes

if TYPE_CHECKING:
    from metasearch.tasks.check import check_task
    from metasearch.tasks.findings import TaskCheck
    from metasearch.tasks.prepare import load_task
    from metasearch.tasks.registered import REGISTERED
    from metasearch.tasks.task import Augmentation, Normalisation, Split, Task
    from metasearch.tasks.task_source import TaskSource

_HOMES = {
    "REGISTERED": "registered",
    "Augmentation": "task",
    "Normalisation": "task",
    "Split": "task",
    "Task": "task",
    "TaskCheck": "findings",
    "TaskSource": "task_source",
    "check_task": "check",
    "load_task": "prepare",
}

__all__ = [
    "REGISTERED",
    "Augmentation",
    "Normalisation",
    "Split",
    "Task",
    "TaskCheck",
    "TaskSource",
    "check_task",
    "load_task",
]


__getattr__ = lazy_attributes(__name__, {name: f"metasearch.tasks.{home}" for name, home in _HOMES.items()})
