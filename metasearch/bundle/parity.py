"""Whether a deployed file computes what the trained network does: its logits on validation data, and where they part.

Symbols: N images (or vectors), K classes; logits (N, K).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.bundle.contents import MODEL, PROGRAM, WEIGHTS, Bundle
from metasearch.bundle.predict import logits_of, open_session
from metasearch.bundle.program import exported_program, open_program
from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.measure import accuracy, agreement, predict
from metasearch.models import FAMILIES, NetworkSpec
from metasearch.models.lowered import LOGITS, NORMALISED, LoweredNetwork, Operation, apply, run
from metasearch.models.module_network import ModuleNetwork
from metasearch.models.weights import describe_weights, load_weights
from metasearch.quantize import QuantizedNetwork
from metasearch.run import Deployed
from metasearch.tasks import Task
from metasearch.tasks.task import Normalisation
from metasearch.teachers.exported import node_names, node_values
from metasearch.teachers.onnx_file import open_onnx

FLOAT_TOLERANCE = 1e-4
"""The largest difference of a value in float32, of its size: two programs add the same products in another order."""
INT8_AGREEMENT = 0.995
"""The least share of inputs to which an int8 network gives the same class: ties round otherwise on another CPU."""
COMPARED = 64
"""Inputs, those that differ most, on which the layer is looked for where two networks part."""


@dataclass(frozen=True)
class Parity:
    """How near a deployed file is to the trained network.

    images: N. val_accuracy: of the deployed file on them. top1_agreement: the share with the same class. tolerance: in
    float the most that largest_difference, of a logit, may be here; in int8 the least that top1_agreement may be.
    float_agreement: of an int8 file with the float network.
    """

    images: int
    val_accuracy: float
    top1_agreement: float
    largest_difference: float
    tolerance: float
    float_agreement: float | None = None

    def record(self) -> dict[str, Any]:
        """Return it as bundle.json holds it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def breach(self, *, int8: bool) -> str | None:
        """Return the rule that is broken, with what was found, in a few words; None where the networks are the same."""
        if int8 and not self.top1_agreement >= self.tolerance:
            return f"must give its class to {self.tolerance:.1%} of {self.images} inputs, got {self.top1_agreement:.2%}"
        if not int8 and not self.largest_difference <= self.tolerance:  # NaN is no agreement either
            return (
                f"must give its logits of {self.images} inputs to {self.tolerance:g}, got {self.largest_difference:.3g}"
            )
        return None


def float_tolerance(ours: Tensor, other: Tensor) -> float:
    """Return the most that float32 values of two programs may differ: FLOAT_TOLERANCE of their size, at least of 1.

    Their size is that of the smaller, so that neither widens it alone.
    """
    return FLOAT_TOLERANCE * max(1.0, min(float(values.abs().max()) for values in (ours, other)))


def measured_parity(
    deployed: Tensor,
    reference: Tensor,
    labels: Tensor,
    *,
    int8: bool,
    in_float: Tensor | None = None,
    other_form: bool = False,
) -> Parity:
    """Return how near the deployed logits (N, K) are to the reference's.

    in_float: the float network's, for int8. other_form: whether the reference is not the network that was exported but
    another form of it, too: each may be a tolerance apart from it.
    """
    return Parity(
        images=len(labels),
        val_accuracy=accuracy(deployed, labels),
        top1_agreement=agreement(deployed, reference),
        largest_difference=float((deployed - reference).abs().max()),
        tolerance=INT8_AGREEMENT if int8 else (1 + other_form) * float_tolerance(deployed, reference),
        float_agreement=agreement(deployed, in_float) if int8 and in_float is not None else None,
    )


def compare(bundle: Bundle, inputs: Tensor, labels: Tensor, *, at_once: int = 256) -> Parity:
    """Return how near a bundle's ONNX file is to its own program of torch, and to its float weights where int8.

    inputs: at rest, (N, ...), of which `at_once` are run together. The weights are read for our own families only:
    those of a user's run code. Raises InputError for a file that is damaged, cannot be run or breaks a rule.
    """
    in_float = None
    spec = describe_weights(bundle.path(WEIGHTS))["spec"]
    if bundle.int8 and NetworkSpec.parse(spec).family in FAMILIES:
        network = float_network(bundle, load_weights(bundle.path(WEIGHTS)))
        in_float = foreign_logits(network, inputs, place=bundle.path(WEIGHTS), at_once=at_once)
    model, program = onnx_network(open_session(bundle.path(MODEL))), open_program(bundle.path(PROGRAM))
    deployed = foreign_logits(model, inputs, place=bundle.path(MODEL), at_once=at_once)
    reference = foreign_logits(program, inputs, place=bundle.path(PROGRAM), at_once=at_once)
    return measured_parity(deployed, reference, labels, int8=bundle.int8, in_float=in_float, other_form=True)


def foreign_logits(run: Callable[[Tensor], Tensor], inputs: Tensor, *, place: Path, at_once: int) -> Tensor:
    """Return the logits (N, K) float32 that a file's network gives.

    Raises InputError where it cannot be run, or gives something else.
    """
    try:
        logits = predict(run, inputs, batch_size=at_once)
    except Exception as error:  # whatever a stranger's graph makes torch or onnxruntime raise
        raise InputError(str(place), f"cannot be run on {len(inputs)} inputs ({first_line(error)})") from error
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise InputError(str(place), "must give logits, float32 of two dimensions", (logits.dtype, logits.shape))
    return logits


def float_network(bundle: Bundle, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network of a bundle's weights behind the bundle's normalisation: inputs at rest to logits."""
    scale, shift = (tuple(bundle.normalisation[name]) for name in ("scale", "shift"))
    normalisation = Normalisation(scale, shift)
    return lambda inputs: network(normalisation(inputs))


def onnx_network(session: Any) -> Callable[[Tensor], Tensor]:
    """Return a session of onnxruntime as what maps inputs to logits."""
    return lambda batch: torch.from_numpy(logits_of(session, batch.numpy()))


def onnx_logits(model: Path, inputs: Tensor) -> Tensor:
    """Return the logits (N, K) that onnxruntime computes from an ONNX file."""
    return predict(onnx_network(open_session(model)), inputs)


def accuracy_on_test(model: Path, task: Task) -> float:
    """Return the accuracy of an ONNX file on the task's test split."""
    return accuracy(onnx_logits(model, task.test.inputs), task.test.labels)


def require_parity(
    network: Deployed, model: Path, inputs: Tensor, labels: Tensor, *, place: str, in_float: Tensor | None = None
) -> Parity:
    """Return how near an ONNX file is to the network that it was written from.

    place: how an error names the file. in_float: logits of the float network, which an int8 one is compared with, too.
    Raises InputError, which names the first layer where they part, beyond the tolerance.
    """
    deployed, reference = onnx_logits(model, inputs), predict(network, inputs)
    int8 = isinstance(network, QuantizedNetwork)
    parity = measured_parity(deployed, reference, labels, int8=int8, in_float=in_float)
    if breach := parity.breach(int8=int8):
        worst = (deployed - reference).abs().amax(dim=1).nan_to_num(torch.inf).topk(min(COMPARED, len(inputs))).indices
        layer = parting_layer(network, model, inputs[worst], place=place)
        raise InputError(place, f"is not the network that was trained: {breach}; they part at {layer}")
    return parity


def parting_layer(network: Deployed, model: Path, inputs: Tensor, *, place: str) -> str:
    """Return the ONNX name of the first value that a file computes otherwise than the network; the logits if none.

    Values may differ as `float_tolerance` says, in int8 by one level. The file's names are those of the lowered
    operations; of a module that was exported they are those of torch.export's nodes, as far as both have them.
    Raises InputError for a file without these names.
    """
    import onnx

    with torch.inference_mode():
        if isinstance(network, ModuleNetwork):
            expected = _module_values(network, inputs)
            written = [name for node in onnx.load(model, load_external_data=False).graph.node for name in node.output]
            expected = {name: expected[name] for name in written if name in expected}
        else:
            expected = dict(_values(network, inputs))
    found = open_onnx(model, place=place, shown=list(expected)).values(inputs)
    for name, value in expected.items():
        other = found[name]
        if isinstance(other, Tensor) and other.shape == value.shape:
            most = 1.0 if name.endswith(LEVELS) else float_tolerance(other.float(), value)
            if not float((other.float() - value).abs().max()) <= most:
                return name.removesuffix(LEVELS)
    return LOGITS


LEVELS = "_uint8"
"""After the names of int8 values in the file, which holds each in floats, too."""


def _values(network: LoweredNetwork | QuantizedNetwork, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what the network computes, by its name in the file: floats, or levels from 0 to 255."""
    kept: list[tuple[str, Tensor]] = []
    normalised = network.normalisation(inputs)

    def keep(name: str, value: Tensor) -> Tensor:
        if isinstance(network, QuantizedNetwork) and name != LOGITS:
            kept.append((f"{name}{LEVELS}", value + network.activations[name].zero_point))
        else:
            kept.append((name, value))
        return value

    step: Callable[..., Tensor] = apply
    if isinstance(network, QuantizedNetwork):
        normalised, step = network.activations[NORMALISED].quantize(normalised), network.apply

    def observed(operation: Operation, *values: Tensor) -> Tensor:
        return keep(operation.output, step(operation, *values))

    run(network.operations, keep(NORMALISED, normalised), observed)
    yield from kept


def _module_values(network: ModuleNetwork, inputs: Tensor) -> Mapping[str, Tensor]:
    """Return what the nodes of the exported module compute, by name."""
    program = exported_program(network).module()
    values = node_values(program, node_names(program), inputs)
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()}
