"""The works of an ONNX file and the time that each takes here, by onnxruntime's own profile, from the file alone.

Shapes come from a session that fuses nothing and packs no weights (it would hide their shapes), times from one that
optimises as the deployed network's does. What the latter adds around an operation (a change of layout, a quantization)
counts to the operation that it stands before. Needs onnxruntime, numpy and the standard library.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metasearch.latency.measured import Timed
from metasearch.latency.work import (
    ADD,
    AVERAGE_POOL,
    LINEAR,
    MAX_POOL,
    OTHER,
    Work,
    convolution_work,
    input_work,
    linear_work,
    plain_work,
)

CONVOLUTION = "convolution"
OPERATIONS = {
    "Conv": CONVOLUTION,
    "FusedConv": CONVOLUTION,
    "NhwcFusedConv": CONVOLUTION,
    "QLinearConv": CONVOLUTION,
    "Gemm": LINEAR,
    "FusedGemm": LINEAR,
    "QGemm": LINEAR,
    "MatMul": LINEAR,
    "Add": ADD,
    "QLinearAdd": ADD,
    "MaxPool": MAX_POOL,
    "NhwcMaxPool": MAX_POOL,
    "GlobalAveragePool": AVERAGE_POOL,
    "QLinearGlobalAveragePool": AVERAGE_POOL,
}
"""What each operation of onnxruntime's is, fused or not; all others stand beside these or, in foreign files, alone."""
CHANNELS_LAST = ("Nhwc", "QLinear")
BESIDE = {"Cast", "Mul", "Relu", "Clip", "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Flatten"}
BESIDE |= {"Reshape", "Identity", "Squeeze", "Unsqueeze", "Constant", "Shape", "Gather", "Concat", "Slice"}
"""Operations of a file that are fused into their neighbours, computed on loading, or take no time."""
KEPT = 0.8
"""The share of an operation's times, the shortest ones, that count: the rest were interrupted."""
TICK_US = 0.5
"""A profile cuts its times off to whole microseconds: half of one is lost, in the mean."""


@dataclass(frozen=True)
class Event:
    """One operation that was run. inputs, output: shapes, batch included. us: its time in microseconds."""

    name: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    us: float

    @property
    def what(self) -> str | None:
        """What the operation is, of OPERATIONS; None for one that is none of these (a bias is no residual sum)."""
        found = OPERATIONS.get(self.name)
        shapes = [shape for shape in self.inputs if len(shape) > 1]
        return None if found == ADD and len(shapes) == len(set(shapes)) else found

    @property
    def weight(self) -> tuple[int, ...]:
        """The shape of its weights, after a first input of as many dimensions."""
        return next(shape for shape in self.inputs[1:] if len(shape) == len(self.inputs[0]))

    @property
    def place(self) -> tuple[object, ...]:
        """What an operation has in common with what optimisation makes of it: kind, kernel, pixels; channels differ."""
        if self.what == LINEAR:
            return (LINEAR, self.output[-1])
        pixels = self.output[1:-1] if self.name.startswith(CHANNELS_LAST) else self.output[2:]
        kernel = math.prod(self.weight[2:]) if self.what == CONVOLUTION else 0
        return (self.what, kernel, math.prod(pixels))


def profiled(model: str | Path, example: np.ndarray, *, runs: int) -> list[Timed]:
    """Return the works of a network and their times. example: the inputs at rest of one run, batch 1."""
    plain = _events(model, example, runs=1, optimised=False, packed=False)
    works, places = _works(plain, example)
    shaped = _events(model, example, runs=1, optimised=True, packed=False)
    timed = _events(model, example, runs=runs, optimised=True, packed=True)
    if [(e.name, e.output) for e in shaped] != [(e.name, e.output) for e in timed]:
        return [Timed(work) for work in works]
    spent: dict[int, tuple[float, int]] = {}
    us, nodes, last = 0.0, 0, 0
    for event, time in zip(shaped, timed, strict=True):
        place = event.place if event.what else None
        index = next((i for i, other in places.items() if other == place and i not in spent), None)
        us, nodes = us + time.us, nodes + 1
        if index is not None:
            # what comes before the first operation is the input's, which the call itself outweighs
            spent[index] = (us, nodes) if spent else (time.us, 1)
            us, nodes, last = 0.0, 0, index
    if spent:
        spent[last] = (spent[last][0] + us, spent[last][1] + nodes)
    return [
        Timed(work, spent[index][0] / 1000, spent[index][1]) if index in spent else Timed(work)
        for index, work in enumerate(works)
    ]


def _works(events: Sequence[Event], example: np.ndarray) -> tuple[list[Work], dict[int, tuple[object, ...]]]:
    """Return the works of a file's own operations, and by their index the places of those that are no other's."""
    int8 = any(event.name == "QuantizeLinear" for event in events)
    works = [input_work(example.shape[1:], image=example.dtype == np.uint8, int8=int8)]
    places: dict[int, tuple[object, ...]] = {}
    for event in events:
        inputs, output = [shape[1:] for shape in event.inputs], event.output[1:]
        if event.what == CONVOLUTION:
            work = convolution_work(inputs[0], event.weight, output, int8=int8)
        elif event.what == LINEAR:
            rows, wide = math.prod(output[:-1]), event.inputs[0][-1]
            work = linear_work((output[-1], wide), rows=rows, int8=int8)
        elif event.what is not None:
            work = plain_work(event.what, inputs[: 2 if event.what == ADD else 1], output, int8=int8)
        elif event.name in BESIDE or event.name == "Add":
            continue
        else:
            work = plain_work(OTHER, inputs[:1], output, int8=int8)
        if event.what is not None:
            places[len(works)] = event.place
        works.append(work)
    return works, places


def _events(model: str | Path, example: np.ndarray, *, runs: int, optimised: bool, packed: bool) -> list[Event]:
    """Return what a session on one thread runs, in its order; times are means over runs, the longest left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    level = onnxruntime.GraphOptimizationLevel
    # the basic level computes what is constant, packed weights above all
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_ENABLE_BASIC
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory(prefix="metasearch-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: example})
        records = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[dict[str, list[dict[str, list[int]]]], str, list[float]]] = {}
    for record in records:
        if record["cat"] == "Node" and record["name"].endswith("_kernel_time") and record["args"]["output_type_shape"]:
            arguments = record["args"]
            key = f"{arguments['node_index']} {record['name']}"
            found.setdefault(key, (arguments, arguments["op_name"], []))[2].append(record["dur"] + TICK_US)
    return [
        Event(name, _shapes(arguments["input_type_shape"]), _shapes(arguments["output_type_shape"])[0], _mean(times))
        for arguments, name, times in found.values()
    ]


def _shapes(described: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for typed in described for shape in typed.values())


def _mean(times: list[float]) -> float:
    return float(np.mean(sorted(times)[: max(1, int(KEPT * len(times)))]))
