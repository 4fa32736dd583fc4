"""Teachers: networks of ours or the user's own, and what they know of a task.

`teacher_for` is what a trial needs: logits on every split. `open_teacher` gives the network itself.
"""

from metasearch.teachers.knowledge import Teacher, check_teacher, ensemble_logits, teacher_for
from metasearch.teachers.logits_file import LABEL_MARGIN, label_logits
from metasearch.teachers.network_member import VIEWS
from metasearch.teachers.opening import TeacherNetwork, open_teacher
from metasearch.teachers.recipe import RECIPE, default_teacher, train_teacher
from metasearch.teachers.source import TeacherMember, TeacherSource, teacher_from_flags

__all__ = [
    "LABEL_MARGIN",
    "RECIPE",
    "VIEWS",
    "Teacher",
    "TeacherMember",
    "TeacherNetwork",
    "TeacherSource",
    "check_teacher",
    "default_teacher",
    "ensemble_logits",
    "label_logits",
    "open_teacher",
    "teacher_for",
    "teacher_from_flags",
    "train_teacher",
]
