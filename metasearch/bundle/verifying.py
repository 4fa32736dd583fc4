"""Whether a bundle is whole, safe, one network in all its forms, and as good on its task's data as it says.

Nothing of the bundle is run but its two graphs, and those only after they passed the checks of their readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from metasearch.bundle import predict as script
from metasearch.bundle.contents import MODEL, PORTABLE, PROGRAM, REFERENCES, SCRIPT, WEIGHTS, Bundle, read_bundle
from metasearch.bundle.graph import fitting_batch
from metasearch.bundle.parity import (
    INT8_AGREEMENT,
    Parity,
    compare,
    float_network,
    foreign_logits,
    measured_parity,
    onnx_network,
)
from metasearch.bundle.program import open_program
from metasearch.bundle.runtime import open_model
from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.functions import first_line
from metasearch.models import FAMILIES, NetworkSpec
from metasearch.models.weights import describe_weights, load_weights
from metasearch.parameters import PARAMETERS, POLICIES
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.tasks.sources import PYTHON_PREFIX

RANDOM_INPUTS = 256
"""At most; of a large network fewer at once, so that all that it computes fits a machine, too."""
FEW = 16
"""How many are run at once of what only model.onnx's size is known of."""
MOST_CHARACTERS = 800
"""Of a message."""


@dataclass(frozen=True)
class Finding:
    """What one check found. holds: None for a check that could not be made here."""

    check: str
    holds: bool | None
    message: str


def verify_bundle(folder: Path, *, data_root: str | None = None) -> tuple[Bundle | None, list[Finding]]:
    """Return the bundle in a folder, None if it cannot be read, and what each check of it found.

    data_root: where the data of its task lie, on which the network is then run again; without it that is done where
    they are prepared on this machine.
    """
    try:
        bundle = read_bundle(folder)
    except MetasearchError as error:
        return None, [Finding("contents", False, str(error))]
    findings = [Finding("contents", True, f"{len(bundle.files)} files of the stated SHA-256, and no others")]
    sample: Sample | None = None
    try:
        sample = _sampled(bundle)
    except MetasearchError as error:
        findings.append(_failed("model", error))
    else:
        findings.append(_finding("model", lambda: _check_references(bundle)))
    findings.append(_finding("weights", lambda: _check_weights(bundle, sample)))
    if sample is None:
        findings.append(Finding("program", None, f"not compared: {MODEL} was refused"))
    else:
        findings.append(_finding("program", partial(_check_program, bundle, sample)))
    findings.append(_finding("script", lambda: _check_script(bundle)))
    if sample is not None and all(finding.holds for finding in findings):  # else it is not run on anyone's data
        findings.append(_data_finding(bundle, data_root, at_once=sample.at_once))
    if PORTABLE in bundle.files:
        findings.append(Finding("portable", None, f"{PORTABLE} has the stated SHA-256, but is not run here"))
    return bundle, findings


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except MetasearchError as error:
        return _failed(name, error)


def _failed(name: str, error: MetasearchError) -> Finding:
    """Return what a check found that failed: one line, of which a stranger may have written any part."""
    message = "".join(character if character.isprintable() else "?" for character in str(error))
    return Finding(name, False, message[:MOST_CHARACTERS])


@dataclass(frozen=True)
class Sample:
    """What a bundle's model.onnx computes from random inputs, and how many may be run at once."""

    inputs: torch.Tensor
    logits: torch.Tensor
    at_once: int


def _sampled(bundle: Bundle) -> Sample:
    """Return what model.onnx computes. Raises InputError where it is not safe to run or cannot be.

    The last batch is a smaller one: a form of the network that takes batches of one size only is noticed.
    """
    session, values = open_model(bundle)
    at_once = max(2, fitting_batch(RANDOM_INPUTS - 1, values, bundle.input_shape))
    fitting = fitting_batch(RANDOM_INPUTS, 0, bundle.input_shape)  # as inputs alone
    inputs = _random_inputs(bundle, max(at_once + 1, fitting - (fitting % at_once == 0)))
    logits = foreign_logits(onnx_network(session), inputs, place=bundle.path(MODEL), at_once=at_once)
    return Sample(inputs, logits, at_once)


def _random_inputs(bundle: Bundle, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (number, *bundle.input_shape)
    if bundle.is_image:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _check_references(bundle: Bundle) -> str:
    """Raise InputError unless the references are as safe to run as model.onnx is."""
    names = [name for name in REFERENCES.values() if name in bundle.files]
    for name in names:
        open_model(bundle, name)
    shapes = f"{bundle.input_shape} to {len(bundle.class_names)}"
    return f"{', '.join((MODEL, *names))}: safe to run, opset {bundle.opset}, {shapes}"


def _check_weights(bundle: Bundle, sample: Sample | None) -> str:
    """Raise InputError unless the weights are of a network with the bundle's input and classes: in float, model.onnx.

    That of a user's own family is not built: it is code. Whether int8 came of the weights, only the data can tell.
    """
    path, place = bundle.path(WEIGHTS), str(bundle.path(WEIGHTS))
    described = describe_weights(path)
    expected = {
        "input_shape": list(bundle.input_shape),
        "classes": len(bundle.class_names),
        "class_names": list(bundle.class_names),
    }
    for name, value in expected.items():
        if described.get(name) != value:
            raise InputError(place, f"{name}: must be that of bundle.json")
    spec = NetworkSpec.parse(str(described["spec"]), place=place)
    if spec.family not in FAMILIES:
        return f"of a network of {spec}, a family of the user's own, which is not built here"
    POLICIES["student.width"].check(spec.width, f"{place}: width")  # before it takes memory
    PARAMETERS["student.depth"].check(spec.depth, f"{place}: depth")
    try:
        network = load_weights(path)
    except MetasearchError:
        raise
    except Exception as error:  # whatever a stranger's sizes make torch raise
        raise InputError(place, f"cannot be loaded ({first_line(error)})") from error
    if sample is None:
        return f"of a network of {spec}, not compared: {MODEL} was refused"
    if bundle.int8:
        return f"of a network of {spec}; whether int8 came of it, only the data can tell"
    few = min(FEW, sample.at_once)
    logits = foreign_logits(float_network(bundle, network), sample.inputs, place=path, at_once=few)
    return f"of a network of {spec}, {_require_same(bundle, WEIGHTS, logits, sample)}"


def _check_program(bundle: Bundle, sample: Sample) -> str:
    """Raise InputError unless model.pt2 opens with the safe reader, and gives the logits of model.onnx."""
    path = bundle.path(PROGRAM)
    logits = foreign_logits(open_program(path), sample.inputs, place=path, at_once=sample.at_once)
    if logits.shape != sample.logits.shape:
        raise InputError(str(path), f"must give logits of {tuple(sample.logits.shape)}, as {MODEL} does", logits.shape)
    return f"{PROGRAM} {_require_same(bundle, PROGRAM, logits, sample)}"


def _require_same(bundle: Bundle, name: str, logits: torch.Tensor, sample: Sample) -> str:
    """Return how near another form of the network is to model.onnx. name: of its file.

    Raises InputError where they are two networks. What bundle.json calls its tolerance is not asked.
    """
    no_labels = torch.zeros(len(logits), dtype=torch.int64)
    parity = measured_parity(sample.logits, logits, no_labels, int8=bundle.int8, other_form=True)
    _refuse_another(bundle, name, parity)
    return f"agrees with {MODEL} on {parity.images} inputs, logits {parity.largest_difference:.2g} apart"


def _refuse_another(bundle: Bundle, name: str, parity: Parity) -> None:
    if breach := parity.breach(int8=bundle.int8):
        raise InputError(str(bundle.path(name)), f"is not the network of {MODEL}: {breach}")


def _check_script(bundle: Bundle) -> str:
    """Raise InputError unless predict.py is the package's own: it is code, which is compared and never run."""
    if bundle.path(SCRIPT).read_bytes() != Path(str(script.__file__)).read_bytes():
        raise InputError(
            str(bundle.path(SCRIPT)),
            "must be that of this metasearch: it is code, read it before you run it (another version has another)",
        )
    return f"{SCRIPT} is that of this metasearch"


def _data_finding(bundle: Bundle, data_root: str | None, *, at_once: int) -> Finding:
    """Return whether accuracy and agreement on the validation data are what bundle.json says.

    Where the data are others, or not here, that cannot be said; it fails where --data-root pointed to them.
    """
    try:
        task = _load_data(bundle, data_root)
    except MetasearchError as error:
        hint = "; --data-root says where its data are" if data_root is None else ""
        return Finding("data", None if data_root is None else False, f"not run on validation data: {error}{hint}")
    return _finding("data", lambda: _check_data(bundle, task, at_once=at_once))


def _load_data(bundle: Bundle, data_root: str | None) -> Task:
    """Return the bundle's task. Raises MetasearchError where it is not here, is another, or would run code."""
    text, options = bundle.provenance["task"], bundle.provenance["task_options"]
    if any(PYTHON_PREFIX in part for part in (text, str(options.get("unlabelled")))):
        raise NotFoundError("its task is made by a function, which is not run for a bundle")
    task = load_task(TaskSource(text, data_root=data_root, **options), prepare=data_root is not None)
    if task.fingerprint != bundle.provenance["fingerprint"]:
        raise NotFoundError(f"{text} has other data than those that the bundle was made from")
    return task


def _check_data(bundle: Bundle, task: Task, *, at_once: int) -> str:
    """Raise InputError unless the network is as good on the validation data as it was when it was written.

    An int8 network must agree with the float weights as it did, too: else they are another network's.
    """
    inputs, labels = task.validation.inputs, task.validation.labels
    found, stated = compare(bundle, inputs, labels, at_once=at_once), bundle.parity
    _refuse_another(bundle, PROGRAM, found)
    one = 1.001 / len(labels)  # another CPU may tip one input
    if abs(found.val_accuracy - stated["val_accuracy"]) > one:
        rule = f"must have the validation accuracy that bundle.json says, {stated['val_accuracy']:.4f}"
        raise InputError(str(bundle.path(MODEL)), rule, f"accuracy={found.val_accuracy:.4f}")
    ties = max(one, 1 - INT8_AGREEMENT)
    if found.float_agreement is not None and abs(found.float_agreement - stated["float_agreement"]) > ties:
        rule = f"must give the class of {MODEL} as often as bundle.json says, {stated['float_agreement']:.4f}"
        raise InputError(str(bundle.path(WEIGHTS)), rule, f"share={found.float_agreement:.4f}")
    return f"accuracy {found.val_accuracy:.4f} on {len(labels):,} validation inputs, as bundle.json says"
