"""Programs written by torch.export.save (.pt2), opened without running what a stranger may have put in.

torch.export.load (2.15) runs code from the file: it unpickles weights, constants and custom objects that are marked so;
it unpickles the sample inputs, with weights_only=False where True fails; it evaluates the expressions of sizes through
sympy; and it loads compiled libraries. Any name below `torch` (`torch.os.system`) is looked up as an operator, too, and
left to a verifier that the file itself names. So the archive is read here first and written anew in memory with only
what passed: raw tensors, operators from a list, sizes that are arithmetic, plain names. Sample inputs, metadata and
guards are left out; the program runs without them.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from metasearch.errors import InputError
from metasearch.functions import first_line

PROGRAM = "models/model.json"
PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
PLAIN = {"archive_format", "archive_version", "byteorder", "version", ".format_version", ".storage_alignment"}
PLAIN |= {".data/serialization_id", ".data/version"}

OPERATORS = (
    r"torch\.ops\.(?:aten|prims|quantized_decomposed)\.(?!from_file)(?:[A-Za-z]\w*|_[A-Za-z]\w*|__(?:and|or|xor)__)\.\w+",
    r"torch\.ops\.higher_order\.(?:wrap_with_set_grad_enabled|wrap_with_autocast|cond)",
    r"_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)",
    r"torch\.sym_(?:int|float|not|max|min|ite|sqrt)",
    r"math\.(?:ceil|floor|trunc|sqrt)",
)
OPERATOR = re.compile("|".join(OPERATORS))
SYMBOL = r"[a-z]+\d+|Symbol\('[a-z]+\d+'(?:, [a-z]+=(?:True|False))*\)"
FUNCTION = r"(?:Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Eq|Ne|Lt|Le|Gt|Ge)\("
SIZE = re.compile(rf"(?:{SYMBOL}|{FUNCTION}|\d+(?!\w)|[ +*/(),<>=-])*")
"""A size as torch writes it, s77 // 2 or Mul(Integer(2), Symbol('s77', positive=True)): no other name is a function."""
NAME = re.compile(r"[\w.+:\-<>/ ]*")
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


@dataclass(frozen=True)
class Exported:
    """An opened program. batch: how many inputs it takes at once, None for any number. dtype: of its input."""

    module: fx.GraphModule
    batch: int | None
    dtype: torch.dtype


def open_exported(path: Path, *, place: str, device: torch.device) -> Exported:
    """Return the program in a .pt2 file, on `device`.

    Raises InputError if it is damaged, holds anything that could run code, takes another number of inputs than one, or
    was exported in training mode.
    """
    try:
        program = torch.export.load(_checked_archive(path, place))
    except InputError:
        raise
    except Exception as error:  # a damaged or foreign file fails anywhere in torch's reader, with any exception
        raise InputError(place, f"cannot be opened as a program of torch.export ({first_line(error)})") from error
    inputs = program.graph_signature.user_inputs
    found = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(inputs) != 1 or len(found) != 1 or not isinstance(found[0], Tensor):  # a text stands there as it is
        raise InputError(place, "must take one tensor", f"inputs={len(inputs)}")
    _refuse_training_mode(program, place)
    example = found[0]
    size = example.shape[0] if example.ndim else None
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Exported(program.module(), size if isinstance(size, int) else None, example.dtype)


def node_names(program: fx.GraphModule) -> list[str]:
    """Return the names of the nodes that compute, in their order."""
    return [node.name for node in program.graph.nodes if node.op == "call_function"]


def node_values(program: fx.GraphModule, names: Collection[str], inputs: Tensor) -> dict[str, object]:
    """Return what the named nodes make of `inputs`."""
    reader = _Reader(program, names)
    reader.run(inputs)
    return reader.values


class _Reader(fx.Interpreter):
    """Keeps a copy of the named values: an exported relu_ writes over what the node before it made."""

    def __init__(self, program: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(program)
        self.names = names
        self.values: dict[str, object] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


def _refuse_training_mode(program: torch.export.ExportedProgram, place: str) -> None:
    """Dropout and batch statistics are constants of an exported graph: eval() changes nothing any more."""
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            names = [argument.name for argument in node.target._schema.arguments]
            given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            if given.get("train") is True or given.get("training") is True:
                raise InputError(place, "must be exported in eval mode", f"{node.target} in training mode")


def _checked_archive(path: Path, place: str) -> io.BytesIO:
    """Return an archive of the same program, made of the parts that passed. Raises InputError if one did not."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:  # torch compresses nothing
            raise InputError(place, "must not be larger than its file once it is unpacked")
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if PROGRAM not in records:
        raise InputError(place, "must be written by torch.export.save of torch 2.8 or later", sorted(records)[:3])
    kept = {}
    for name, content in records.items():
        if name in PAYLOADS:
            config = json.loads(content)
            for weight, entry in config["config"].items():
                if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                    raise InputError(place, "holds pickled objects, which are never loaded: they can run code", weight)
            _check(config, place)
            kept[name] = content
        elif name == PROGRAM:
            program = json.loads(content)
            program["guards_code"] = []
            _drop_metadata(program)
            _check(program, place)
            kept[name] = json.dumps(program).encode()
        elif name == SAMPLE_INPUTS:
            kept[name] = b""
        elif name in PLAIN or TENSOR.fullmatch(name):
            kept[name] = content
        elif not name.startswith("extra/"):
            raise InputError(place, "holds a part that no exported network has, and that may run code", name)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in kept.items():
            archive.writestr(f"model/{name}", content)
    stream.seek(0)
    return stream


def _drop_metadata(value: Any) -> None:
    """Empty the metadata of every node, in place: stack traces and names of Python classes."""
    for part in _dicts(value):
        if isinstance(part.get("metadata"), dict):
            part["metadata"] = {}


def _check(value: Any, place: str) -> None:
    """Raise InputError for a string that torch would look up, evaluate or print into code, and that is not plain."""
    for part in _dicts(value):
        for key, field in part.items():
            if key in {"target", "as_operator"}:
                allowed = isinstance(field, str) and OPERATOR.fullmatch(field) is not None
            elif key == "expr_str":
                allowed = isinstance(field, str) and SIZE.fullmatch(field) is not None
            elif key in {"in_spec", "out_spec"}:
                allowed = field == "" or _is_plain_spec(json.loads(field)[1])
            elif key in {"as_string", "as_strings"}:  # arguments: always printed quoted
                allowed = True
            else:
                texts = field if isinstance(field, list) else [field]
                allowed = all(NAME.fullmatch(text) for text in (key, *texts) if isinstance(text, str))
            if not allowed:
                raise InputError(place, f"{key}: is not what an exported network needs, and may run code", str(field))


def _is_plain_spec(spec: Any) -> bool:
    """Whether a tree of arguments is of tuples, lists and dicts with plain keys only."""
    context = spec["context"]
    keys = json.loads(context) if isinstance(context, str) else context
    plain = keys is None or (isinstance(keys, list) and all(isinstance(k, str) and NAME.fullmatch(k) for k in keys))
    return spec["type"] in CONTAINERS and plain and all(map(_is_plain_spec, spec["children_spec"]))


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping inside a JSON value, at any depth."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(child)
