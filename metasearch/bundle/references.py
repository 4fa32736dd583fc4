"""What a bundle's network is measured beside: its teacher, and the same student without compression, as ONNX files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from metasearch.bundle.again import run_again, uncompressed
from metasearch.bundle.choosing import Chosen
from metasearch.bundle.contents import REFERENCES
from metasearch.bundle.parity import require_parity
from metasearch.errors import InputError
from metasearch.export import write_onnx
from metasearch.models.module_network import deployable
from metasearch.pipeline import ONNX_FILE
from metasearch.tasks import Task
from metasearch.teachers import TeacherSource
from metasearch.teachers.opening import normalisation_for, open_teacher


def write_references(
    folder: Path, chosen: Chosen, task: Task, *, tell: Callable[[str], None]
) -> dict[str, Mapping[str, float]]:
    """Write the teacher and the uncompressed student into a bundle's folder; return what is measured of each.

    The student is trained again, as the trial was but neither pruned nor quantized; so is a teacher of ours that the
    cache has lost. tell: hears of either, and why a teacher that is no single network is left out. Raises InputError
    where a file is not the network that it was written from.
    """
    measured: dict[str, Mapping[str, float]] = {}
    (folder / "references").mkdir()
    source = TeacherSource.of(chosen.description.teacher)
    if len(source.members) > 1 or source.members[0].is_file:
        tell(f"teacher {source}: is no network that can be written; the bundle has the student's reference only")
    else:
        tell(f"teacher {source}")
        _write_teacher(folder / REFERENCES["teacher"], source, chosen, task)
        measured["teacher"] = chosen.teacher.get("metrics", {})
    config = uncompressed(chosen.result.config)
    tell(f"the student without compression, width {config['student.width']}: is trained")
    with tempfile.TemporaryDirectory(prefix="metasearch-reference-") as made:
        result = run_again(chosen.description, task, config, seed=chosen.result.seed, save_to=Path(made))
        shutil.copyfile(Path(made) / ONNX_FILE, folder / REFERENCES["student"])
    return measured | {"student": result.metrics}


def _write_teacher(path: Path, source: TeacherSource, chosen: Chosen, task: Task) -> None:
    (member,) = source.members
    opened = open_teacher(member, task, normalisation=source.normalisation, seed=chosen.description.seed)
    assert opened.module is not None  # a member that is no file is a module
    normalisation = normalisation_for(source.normalisation, task)
    network = deployable(opened.module, normalisation=normalisation, input_shape=task.input_shape)
    try:
        write_onnx(network, path, class_names=task.class_names)
    except InputError as error:  # it names the student's family, whose networks are written so elsewhere
        raise InputError(member.place, error.rule, error.value) from error
    validation = task.validation
    require_parity(network, path, validation.inputs, validation.labels, place=f"{path.name} of {member.place}")
