"""A bundle made of a trial: its files, proven to be the network that was trained, written whole or not at all."""

from __future__ import annotations

import datetime
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from metasearch.bundle import predict as script
from metasearch.bundle.card import model_card
from metasearch.bundle.choosing import REBUILD, Chosen
from metasearch.bundle.contents import (
    CARD,
    MODEL,
    PORTABLE,
    PROGRAM,
    SCRIPT,
    WEIGHTS,
    Bundle,
    read_bundle,
    write_document,
)
from metasearch.bundle.parity import Parity, accuracy_on_test, measured_parity, require_parity
from metasearch.bundle.portable import portable_logits, write_portable
from metasearch.bundle.program import open_program, write_program
from metasearch.bundle.references import write_references
from metasearch.bundle.runtime import open_bundle
from metasearch.bundle.schema import TASK_OPTIONS, preprocessing_of
from metasearch.configuration import Configuration
from metasearch.errors import InputError, MetasearchError, StorageError
from metasearch.measure import accuracy, predict
from metasearch.models.lowered import LoweredNetwork
from metasearch.models.module_network import ModuleNetwork, deployable, require_int8
from metasearch.models.weights import load_weights, read_tensors
from metasearch.pipeline import ONNX_FILE, TUNED_FILE, WEIGHTS_FILE
from metasearch.quantize import QuantizedNetwork, quantize
from metasearch.run import Deployed
from metasearch.stages import calibration_inputs
from metasearch.tasks import Task
from metasearch.teachers import TeacherSource


def write_bundle(
    chosen: Chosen,
    files: Mapping[str, Path],
    task: Task,
    target: Path,
    *,
    licence: str | None = None,
    force: bool = False,
    references: bool = False,
    portable: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Write a trial as a bundle and return it as it reads; `target` holds the whole of it or what it held before.

    files: of the trial, by the names that the pipeline gives them. licence: of the data. force: whether a bundle that
    is there is replaced. references: whether to add the teacher, the uncompressed student and the network before int8;
    portable: the network for ExecuTorch. tell: hears what takes long, in a line.
    Raises InputError for a target that is there or cannot be written, a file that is not the network that was trained,
    or a task with other data; StorageError for a file on the way that cannot be read or written.
    """
    if task.fingerprint != chosen.description.fingerprint:
        place = f"task {chosen.description.task['text']}"
        raise InputError(place, "has changed since the study was made", f"digest={task.fingerprint[:12]}")
    check_target(target, force=force)
    network, in_float = trained_network(chosen, files, task)
    with _placed_at(target) as folder:
        shutil.copyfile(files[ONNX_FILE], folder / MODEL)
        shutil.copyfile(files[WEIGHTS_FILE], folder / WEIGHTS)
        float_logits = predict(in_float, task.validation.inputs)
        parity = _model_parity(chosen, network, folder / MODEL, task, in_float=float_logits)
        write_program(network, folder / PROGRAM)
        _require_same(open_program(folder / PROGRAM), network, task, place=f"{PROGRAM} of {chosen.place}")
        if portable:
            tell("ExecuTorch's program")
            write_portable(network, folder / PORTABLE)
            _require_same(portable_logits(folder / PORTABLE), network, task, place=f"{PORTABLE} of {chosen.place}")
        described = _described(chosen, folder, network, task, parity, licence)
        if references:
            before_int8 = in_float if isinstance(network, QuantizedNetwork) else None
            found = write_references(folder, chosen, task, before_int8=before_int8, tell=tell)
            described["references"] = {role: _finite(metrics) for role, metrics in found.items()}
        float_accuracy = accuracy(float_logits, task.validation.labels)
        card = model_card(chosen, described, float_accuracy=float_accuracy)
        (folder / CARD).write_text(card, encoding="utf-8")
        shutil.copyfile(str(script.__file__), folder / SCRIPT)
        write_document(folder, **described)
        open_bundle(folder)  # whoever gets it can open it
    return read_bundle(target)


def check_target(target: Path, *, force: bool) -> None:
    """Raise InputError unless nothing is there, or a bundle that may be replaced."""
    if not os.path.lexists(target):
        return
    if not force:
        raise InputError("--to", "must not be there yet; --force replaces a bundle", str(target))
    try:
        read_bundle(target)
    except MetasearchError as error:
        raise InputError("--to", f"--force replaces a bundle only ({error})", str(target)) from error


def trained_network(
    chosen: Chosen, files: Mapping[str, Path], task: Task
) -> tuple[Deployed, LoweredNetwork | ModuleNetwork]:
    """Return the network that the trial deployed, made again from its float weights, and the float network of these.

    int8 is made as the pipeline makes it, from the same calibration inputs; after quantization-aware fine-tuning from
    the tuned weights, which the float network has not.
    """
    c = Configuration.of(chosen.result.config)
    model = load_weights(files[WEIGHTS_FILE], family=c.family)
    network = deployable(model, normalisation=task.normalisation, input_shape=task.input_shape)
    if c.quantize == "none":
        return network, network
    lowered = require_int8(network)
    if chosen.result.details.get("quantization_aware"):
        try:
            lowered = lowered.with_float_tensors(read_tensors(files[TUNED_FILE])[1])
        except ValueError as error:
            raise InputError(f"{TUNED_FILE} of {chosen.place}", str(error)) from error
    return quantize(lowered, calibration_inputs(task)), network


def _model_parity(chosen: Chosen, network: Deployed, model: Path, task: Task, *, in_float: Tensor) -> Parity:
    """Return the parity of the ONNX file. Raises InputError if it is another network, or not as good as recorded."""
    place, validation = f"{MODEL} of {chosen.place}", task.validation
    parity = require_parity(network, model, validation.inputs, validation.labels, place=place, in_float=in_float)
    recorded = chosen.result.metrics["val_accuracy"]
    if abs(parity.val_accuracy - recorded) > 1.001 / parity.images:  # another CPU or a GPU may tip one image
        rule = f"must have the validation accuracy {recorded:.4f} that the trial recorded: {REBUILD}"
        raise InputError(place, rule, f"accuracy={parity.val_accuracy:.4f}")
    return parity


def _require_same(run: Callable[[Tensor], Tensor], network: Deployed, task: Task, *, place: str) -> None:
    """Raise InputError unless another form of the network gives its logits on the validation data."""
    inputs, labels = task.validation.inputs, task.validation.labels
    int8 = isinstance(network, QuantizedNetwork)
    found = measured_parity(predict(run, inputs), predict(network, inputs), labels, int8=int8)
    if breach := found.breach(int8=int8):
        raise InputError(place, f"is not the network that was trained: {breach}")


def _described(
    chosen: Chosen, folder: Path, network: Deployed, task: Task, parity: Parity, licence: str | None
) -> dict[str, Any]:
    """Return the fields of the bundle's document, but its files."""
    d, result = chosen.description, chosen.result
    n = task.normalisation
    test = {"test_accuracy": accuracy_on_test(folder / MODEL, task)} if chosen.has_read_test else {}
    return {
        "name": chosen.name,
        "class_names": list(task.class_names),
        "input_shape": list(task.input_shape),
        "int8": isinstance(network, QuantizedNetwork),
        "opset": opset_of(folder / MODEL),
        "normalisation": {"scale": list(n.scale), "shift": list(n.shift)},
        "preprocessing": preprocessing_of(task.input_shape),
        "config": dict(result.config),
        "seed": result.seed,
        "metrics": _finite(result.metrics) | test,
        "final": _finite(chosen.final),
        "references": {},
        "stages": [{"stage": s.stage, "seconds": s.seconds, "metrics": _finite(s.metrics)} for s in result.stages],
        "provenance": {
            "study": chosen.study,
            "trial": chosen.number,
            "task": d.task["text"],
            "task_options": {name: d.task[name] for name in TASK_OPTIONS if d.task.get(name) is not None},
            "fingerprint": d.fingerprint,
            "space_digest": d.space_digest,
            "teacher": str(TeacherSource.of(d.teacher)),
            "commit": d.commit or None,
            "versions": dict(d.versions),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "licence": licence,
        },
        "parity": parity.record(),
    }


def opset_of(model: Path) -> int:
    """Return the version of ONNX's own operators that a file asks for."""
    import onnx

    opsets = onnx.load(model, load_external_data=False).opset_import
    return next(int(entry.version) for entry in opsets if entry.domain in ("", "ai.onnx"))


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


@contextmanager
def _placed_at(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside the target to fill, rename it to the target, and remove what else is left of it.

    Raises InputError where the target cannot be written; StorageError where a file on the way cannot be read or
    written, which may be one that lies elsewhere.
    """
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
    try:
        with _named(target):
            folder.mkdir(parents=True)
        yield folder
        with _named(target):
            _move(folder, target)
    except OSError as error:
        raise StorageError(f"{target}: no bundle was made: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names --to."""
    try:
        yield
    except OSError as error:
        raise InputError("--to", f"cannot be written: {error}", str(target)) from error


def _move(folder: Path, target: Path) -> None:
    """Rename a finished folder to the target; a bundle that is there makes way, and comes back where that fails.

    Of a link to a bundle only the link makes way.
    """
    aside = folder.with_name(f"{folder.name}.old")
    try:
        if os.path.lexists(target):
            os.rename(target, aside)
        os.rename(folder, target)
    except BaseException:  # Ctrl-C, too
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.rename(aside, target)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)
