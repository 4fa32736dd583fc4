"""Feature maps and embeddings of any network, read while it runs.

Symbols: B batch, C channels, h x w pixels, D dimensions. What is tapped is found by one probing pass: the last
layer that makes a map of each size, from the largest to the smallest above 1 x 1 (the ends of the network's stages),
and what the last linear layer reads (the embedding). A layer that is called more than once, such as one pooling for all
stages, shows another value in every call, so that a tap is a layer's name and the index of the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.measure import eval_mode

RULES = 2
"""Raised whenever other values are tapped than before, so that features cached by the old rules are not taken."""

Call = tuple[str, int]
"""A layer by its name, and which of its calls in one pass, from 0."""


@dataclass
class Features:
    """What one pass showed.

    maps: (B, C, h, w) each, in the order of the network, by the layer's name (`pool`; `pool[1]` for its second call).
    embedding: (B, D), or None.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


@dataclass(frozen=True)
class Tap:
    """The tapped calls. maps: the ends of the stages; embedding: of the last linear layer, None if there is none."""

    maps: tuple[Call, ...]
    embedding: Call | None

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...]) -> Tap:
        """Find the calls in one pass over a zero input of `input_shape`, (C, H, W) or (F,)."""
        ends: dict[tuple[int, ...], Call] = {}
        linear: list[Call] = []
        calls: Counter[str] = Counter()

        def note(name: str, layer: nn.Module, output: object) -> None:
            call = (name, calls[name])
            calls[name] += 1
            if isinstance(output, Tensor) and output.ndim == 4 and max(output.shape[2:]) > 1:
                ends.pop(tuple(output.shape[2:]), None)  # the order is that of the last call of each size
                ends[tuple(output.shape[2:])] = call
            if isinstance(layer, nn.Linear) and isinstance(output, Tensor) and output.ndim == 2:
                linear.append(call)

        handles = [
            layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
            for name, layer in model.named_modules()
            if name
        ]
        parameter = next(model.parameters(), torch.empty(0))
        try:
            with eval_mode(model), torch.no_grad():
                model(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
        finally:
            for handle in handles:
                handle.remove()
        return cls(tuple(ends.values()), linear[-1] if linear else None)

    def read(self, model: nn.Module, inputs: Tensor) -> Features:
        """Return the features of one pass in eval mode. inputs: (B, ...), as the network takes them."""
        with eval_mode(model), self.reading(model) as features:
            model(inputs)
        return features

    @contextmanager
    def reading(self, model: nn.Module) -> Iterator[Features]:
        """Read the features of the passes that `model` makes inside the block; the last pass stays.

        The hooks go with the block: a copy of a hooked network would report into this one's features.
        """
        features = Features()
        calls: Counter[str] = Counter()
        found: dict[Call, Tensor] = {}

        def start(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.clear()
            found.clear()

        def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            call = (name, calls[name])
            calls[name] += 1
            if call in self.maps:
                found[call] = output
            if call == self.embedding:
                features.embedding = inputs[0]

        def end(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            features.maps = {_spelled(call): found[call] for call in self.maps if call in found}

        tapped = dict.fromkeys(name for name, _ in (*self.maps, *([self.embedding] if self.embedding else [])))
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: keep(name, inputs, output)
            )
            for name in tapped
        ]
        handles += [model.register_forward_pre_hook(start), model.register_forward_hook(end)]
        try:
            yield features
        finally:
            for handle in handles:
                handle.remove()


def _spelled(call: Call) -> str:
    name, index = call
    return f"{name}[{index}]" if index else name


@contextmanager
def reading_outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, object]]:
    """Read what the named layers return in the passes that `model` makes inside the block; the last call of each stays.

    A tensor is copied: a layer that works in place, such as ReLU(inplace=True), would write over it.
    """
    outputs: dict[str, object] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs, output: outputs.__setitem__(
            name, output.clone() if isinstance(output, Tensor) else output
        )

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
