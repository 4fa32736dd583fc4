"""metasearch: find the small network to ship.

`launch` and `resume` drive a search; `best`, `trials`, `studies`, `compare` and `importance` answer with pandas frames;
`run_pipeline` and `run_configuration` run one configuration without a search. Names are imported when they are used, so
that importing the package loads neither torch nor ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasearch.lazy import lazy_attributes

if TYPE_CHECKING:
    from metasearch.api import best, compare, importance, launch, resume, run_configuration, studies, trials
    from metasearch.pipeline import run_pipeline
    from metasearch.policies import Policy
    from metasearch.records import TrialResult
    from metasearch.search.space import Space, load_space
    from metasearch.tasks import Task, TaskSource, load_task
    from metasearch.teachers import Teacher, TeacherSource, teacher_for
    from metasearch.transfer.sampler import TransferSampler

_HOMES = {
    "best": "metasearch.api",
    "compare": "metasearch.api",
    "importance": "metasearch.api",
    "launch": "metasearch.api",
    "resume": "metasearch.api",
    "run_configuration": "metasearch.api",
    "studies": "metasearch.api",
    "trials": "metasearch.api",
    "run_pipeline": "metasearch.pipeline",
    "Policy": "metasearch.policies",
    "TrialResult": "metasearch.records",
    "Space": "metasearch.search.space",
    "load_space": "metasearch.search.space",
    "Task": "metasearch.tasks",
    "TaskSource": "metasearch.tasks",
    "load_task": "metasearch.tasks",
    "Teacher": "metasearch.teachers",
    "TeacherSource": "metasearch.teachers",
    "teacher_for": "metasearch.teachers",
    "TransferSampler": "metasearch.transfer.sampler",
}

__all__ = [
    "Policy",
    "Space",
    "Task",
    "TaskSource",
    "Teacher",
    "TeacherSource",
    "TransferSampler",
    "TrialResult",
    "best",
    "compare",
    "importance",
    "launch",
    "load_space",
    "load_task",
    "resume",
    "run_configuration",
    "run_pipeline",
    "studies",
    "teacher_for",
    "trials",
]


__getattr__ = lazy_attributes(__name__, _HOMES)
