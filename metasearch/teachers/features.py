"""The features of a teacher: found where a module's layers show them, or where the user names the values that they are.

Symbols: B batch, C channels, h x w pixels, D dimensions. A name is that of a layer of a module (`layer2.1`), of a node
of an exported program (`relu_3`) or of a value of an ONNX graph (`/layer2/Relu_output_0`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.spelling import hint
from metasearch.taps import Features, Tap, reading_outputs

FLAG = "--teacher-features"
Show = Callable[[Tensor], Features]
"""From what a network takes, (B, ...), to what it shows of it."""


def found_features(model: nn.Module, input_shape: tuple[int, ...]) -> Show:
    """Return what shows the ends of the stages and the embedding of a module; they are looked for at the first call."""
    tap = cache(lambda: Tap.of(model, input_shape))
    return lambda inputs: tap().read(model, inputs)


def layer_features(model: nn.Module, names: Sequence[str], *, place: str, input_shape: tuple[int, ...]) -> Show:
    """Return what shows the outputs of the named layers, and the embedding that is found where none is named.

    Raises InputError for a name that is no layer.
    """
    check_names(names, [name for name, _ in model.named_modules() if name], what=f"a layer of {place}")
    head = cache(lambda: Tap((), Tap.of(model, input_shape).embedding))

    def show(inputs: Tensor) -> Features:
        with reading_outputs(model, names) as outputs:
            found = head().read(model, inputs)
        features = sort_values(outputs, names, batch=len(inputs))
        features.embedding = found.embedding if features.embedding is None else features.embedding
        return features

    return show


def value_features(read: Callable[[Tensor], Mapping[str, object]], names: Sequence[str]) -> Show:
    """Return what shows the named values. read: from what the network takes to (at least) these values."""
    return lambda inputs: sort_values(read(inputs), names, batch=len(inputs))


def check_names(names: Sequence[str], known: Collection[str], *, what: str) -> None:
    """Raise InputError with the nearest names (all, where none is near) unless each is known."""
    for name in names:
        if name not in known:
            raise InputError(FLAG, f"must name {what} {hint(name, known, most=3)}", name)


def sort_values(values: Mapping[str, object], names: Sequence[str], *, batch: int) -> Features:
    """Return the named values as features, float32: maps (B, C, h, w) in the order of the names, the embedding (B, D).

    Raises InputError for a value that is missing, of another shape, or a second embedding.
    """
    features, embedding = Features(), ""
    for name in names:
        value = values.get(name)
        if not isinstance(value, Tensor):
            raise InputError(f"{FLAG}: {name}", "must be a tensor that every pass makes", type(value).__name__)
        is_map = value.ndim == 4 and max(value.shape[2:]) > 1
        if not (is_map or value.ndim == 2) or len(value) != batch:
            rule = f"must be (B, C, h, w) of more than one pixel, or (B, D), where B={batch}"
            raise InputError(f"{FLAG}: {name}", rule, f"shape={tuple(value.shape)}")
        if is_map:
            features.maps[name] = value.float()
        elif embedding:
            raise InputError(FLAG, "may name one value of shape (B, D)", f"{embedding}, {name}")
        else:
            features.embedding, embedding = value.float(), name
    return features
