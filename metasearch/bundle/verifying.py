"""Whether a bundle is whole, safe, one network in all its forms, and as good on its task's data as it says.

Nothing of the bundle is run but its two graphs, and those only after they passed the checks of their readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from metasearch.bundle import predict as script
from metasearch.bundle.contents import MODEL, PROGRAM, REFERENCES, SCRIPT, WEIGHTS, Bundle, read_bundle
from metasearch.bundle.parity import FLOAT_TOLERANCE, Parity, compare, measured_parity
from metasearch.bundle.predict import logits_of
from metasearch.bundle.program import open_program
from metasearch.bundle.runtime import open_model
from metasearch.errors import InputError, MetasearchError, NotFoundError
from metasearch.functions import first_line
from metasearch.measure import predict
from metasearch.models import FAMILIES, NetworkSpec
from metasearch.models.weights import describe_weights, load_weights
from metasearch.parameters import PARAMETERS, POLICIES
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.tasks.sources import PYTHON_PREFIX

RANDOM_INPUTS = 256


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
    findings += [_finding(name, partial(check, bundle)) for name, check in CHECKS.items()]
    if all(finding.holds for finding in findings):  # else its graphs are not run on anyone's data
        findings.append(_data_finding(bundle, data_root))
    return bundle, findings


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except MetasearchError as error:
        return Finding(name, False, str(error))


def _check_model(bundle: Bundle) -> str:
    names = [name for name in (MODEL, *REFERENCES.values()) if name in bundle.files]
    for name in names:
        open_model(bundle, name)
    return f"{', '.join(names)}: safe to run, opset {bundle.opset}, {bundle.input_shape} to {len(bundle.class_names)}"


def _check_weights(bundle: Bundle) -> str:
    """Raise InputError unless the weights are of a network with the bundle's input and classes.

    That of a user's own family is not built: it is code.
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
    load_weights(path)
    return f"of a network of {spec}"


def _check_program(bundle: Bundle) -> str:
    """Raise InputError unless model.pt2 opens with the safe reader, and gives the logits of model.onnx."""
    session, program = open_model(bundle), open_program(bundle.path(PROGRAM))
    inputs = _random_inputs(bundle)
    try:
        reference = predict(program, inputs)
    except Exception as error:  # whatever a stranger's graph makes torch raise
        raise InputError(str(bundle.path(PROGRAM)), f"cannot be run by torch ({first_line(error)})") from error
    deployed = torch.from_numpy(logits_of(session, inputs.numpy()))
    if deployed.shape != reference.shape:
        rule = f"must give logits of {tuple(deployed.shape)}, as {MODEL} does"
        raise InputError(str(bundle.path(PROGRAM)), rule, tuple(reference.shape))
    no_labels = torch.zeros(len(inputs), dtype=torch.int64)
    parity = measured_parity(deployed, reference, no_labels, int8=bundle.int8)
    return _require_same(bundle, parity, size=float(reference.abs().max()))


def _require_same(bundle: Bundle, parity: Parity, *, size: float) -> str:
    """Return how near the two graphs are. size: of the logits, by which float32 rounds.

    Raises InputError where they are two networks. What bundle.json calls its tolerance is not asked.
    """
    if not bundle.int8:
        parity = replace(parity, tolerance=FLOAT_TOLERANCE * max(1.0, size))
    if breach := parity.breach(int8=bundle.int8):
        raise InputError(str(bundle.path(PROGRAM)), f"is not the network of {MODEL}: {breach}")
    return f"{PROGRAM} agrees with {MODEL} on {parity.images} inputs, logits {parity.largest_difference:.2g} apart"


def _random_inputs(bundle: Bundle) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (RANDOM_INPUTS, *bundle.input_shape)
    if bundle.is_image:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _check_script(bundle: Bundle) -> str:
    """Raise InputError unless predict.py is the package's own: it is code, which is compared and never run."""
    if bundle.path(SCRIPT).read_bytes() != Path(str(script.__file__)).read_bytes():
        raise InputError(
            str(bundle.path(SCRIPT)), "must be that of this metasearch: it is code, read it before you run it"
        )
    return f"{SCRIPT} is that of this metasearch"


CHECKS: dict[str, Callable[[Bundle], str]] = {
    "model": _check_model,
    "weights": _check_weights,
    "program": _check_program,
    "script": _check_script,
}
"""By name, what returns what it found or raises InputError."""


def _data_finding(bundle: Bundle, data_root: str | None) -> Finding:
    """Return whether accuracy and agreement on the validation data are what bundle.json says.

    Where the data are others, or not here, that cannot be said; it fails where --data-root pointed to them.
    """
    try:
        task = _load_data(bundle, data_root)
    except MetasearchError as error:
        return Finding("data", None if data_root is None else False, f"not run on validation data: {error}")
    return _finding("data", lambda: _check_data(bundle, task))


def _load_data(bundle: Bundle, data_root: str | None) -> Task:
    """Return the bundle's task. Raises MetasearchError where it is not here, is another, or would run code."""
    text, options = bundle.provenance["task"], bundle.provenance["task_options"]
    if any(PYTHON_PREFIX in part for part in (text, str(options.get("unlabelled")))):
        raise NotFoundError("its task is made by a function, which is not run for a bundle")
    task = load_task(TaskSource(text, data_root=data_root, **options), prepare=data_root is not None)
    if task.fingerprint != bundle.provenance["fingerprint"]:
        raise NotFoundError(f"{text} has other data than those that the bundle was made from")
    return task


def _check_data(bundle: Bundle, task: Task) -> str:
    """Raise InputError unless the network is as good on the validation data as it was when it was written."""
    inputs, labels = task.validation.inputs, task.validation.labels
    found, stated = compare(bundle, inputs, labels), bundle.parity["val_accuracy"]
    _require_same(bundle, found, size=1.0)
    if abs(found.val_accuracy - stated) > 1.001 / len(labels):  # another CPU may tip one input
        rule = f"must have the validation accuracy that bundle.json says, {stated:.4f}"
        raise InputError(str(bundle.path(MODEL)), rule, f"accuracy={found.val_accuracy:.4f}")
    return f"accuracy {found.val_accuracy:.4f} on {len(labels):,} validation inputs, as bundle.json says"
