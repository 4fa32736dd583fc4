"""What a bundle's network is measured beside: its teacher, and what it was before int8 or any compression, as ONNX."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from metasearch.bundle.again import run_again, uncompressed
from metasearch.bundle.choosing import Chosen
from metasearch.bundle.contents import REFERENCES
from metasearch.bundle.parity import accuracy_on_test, require_parity
from metasearch.errors import InputError
from metasearch.export import write_onnx
from metasearch.models.lowered import LoweredNetwork
from metasearch.models.module_network import ModuleNetwork, deployable
from metasearch.pipeline import ONNX_FILE
from metasearch.tasks import Task
from metasearch.teachers import TeacherSource
from metasearch.teachers.opening import normalisation_for, open_teacher


def write_references(
    folder: Path,
    chosen: Chosen,
    task: Task,
    *,
    before_int8: LoweredNetwork | ModuleNetwork | None,
    tell: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Write the references into a bundle's folder; return by role what is measured of each, as far as it is known.

    The student is trained again, as the trial was but neither pruned nor quantized; so is a teacher of ours that the
    cache has lost. tell: hears of either, and why a teacher that is no single network is left out. before_int8: the
    float network of an int8 one. The test split is read where final runs have read it. Raises InputError where a file
    is not the network that it was written from.
    """
    measured: dict[str, dict[str, float]] = {}
    (folder / "references").mkdir()
    source = TeacherSource.of(chosen.description.teacher)
    if len(source.members) > 1 or source.members[0].is_file:
        tell(f"teacher {source}: is no network that can be written; the bundle has no reference of it")
    else:
        tell(f"teacher {source}")
        measured["teacher"] = _write_teacher(folder / REFERENCES["teacher"], source, chosen, task)
    if before_int8 is not None:
        measured["float"] = _write_float(folder / REFERENCES["float"], before_int8, chosen, task)
    config = uncompressed(chosen.result.config)
    tell(f"the student without compression, width {config['student.width']}: is trained")
    with tempfile.TemporaryDirectory(prefix="metasearch-reference-") as made:
        result = run_again(chosen.description, task, config, seed=chosen.result.seed, save_to=Path(made))
        shutil.copyfile(Path(made) / ONNX_FILE, folder / REFERENCES["student"])
    measured["student"] = dict(result.metrics)
    if chosen.has_read_test:
        for role in measured.keys() - {"teacher"}:  # whose own is known
            measured[role]["test_accuracy"] = accuracy_on_test(folder / REFERENCES[role], task)
    return measured


def _write_float(path: Path, network: LoweredNetwork | ModuleNetwork, chosen: Chosen, task: Task) -> dict[str, float]:
    write_onnx(network, path, class_names=task.class_names)
    validation = task.validation
    place = f"{path.name} of {chosen.place}"
    parity = require_parity(network, path, validation.inputs, validation.labels, place=place)
    counts = {name: chosen.result.metrics[name] for name in ("parameters", "macs")}  # which int8 does not change
    return {"val_accuracy": parity.val_accuracy, **counts, "model_bytes": network.stored_bytes}


def _write_teacher(path: Path, source: TeacherSource, chosen: Chosen, task: Task) -> dict[str, float]:
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
    return {**chosen.teacher.get("metrics", {}), "model_bytes": network.stored_bytes}
