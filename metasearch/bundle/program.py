"""The deployed network as a program of torch.export (.pt2): inputs at rest to logits, for any batch.

An int8 program repeats the integer arithmetic of `metasearch.quantize` in torch, to the bit; its weights are stored as
int8. It is opened by the reader of teachers' files, which runs nothing that a stranger may have put in.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from metasearch.models.module_network import FromRest, ModuleNetwork
from metasearch.quantize import QuantizedNetwork
from metasearch.run import Deployed
from metasearch.teachers.exported import open_exported


class _Called(nn.Module):
    """A lowered or quantized network as a module, which torch.export asks for."""

    def __init__(self, network: Deployed) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> Tensor:
        return self.network(input)


def exported_program(network: Deployed, *, batch: int | None = None) -> torch.export.ExportedProgram:
    """Return the network as torch.export sees it, without source lines and paths. batch: None for any."""
    module = FromRest(network).eval() if isinstance(network, ModuleNetwork) else _Called(network)
    dtype = torch.uint8 if len(network.input_shape) == 3 else torch.float32
    example = torch.zeros(batch or 2, *network.input_shape, dtype=dtype)
    dynamic = {0: torch.export.Dim("batch")} if batch is None else {}
    if isinstance(network, QuantizedNetwork):
        network.product_dtypes  # noqa: B018 - found here: a traced tensor has no values to find them from
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,))
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program


def write_program(network: Deployed, path: Path) -> None:
    """Write the network as a .pt2 file. Raises OSError if it cannot be written."""
    content = io.BytesIO()  # a file's name would become that of the archive's folder
    torch.export.save(exported_program(network), content)
    path.write_bytes(content.getvalue())


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the program in a .pt2 file. Raises InputError for one that is damaged or could run code."""
    return open_exported(path, place=str(path), device=torch.device("cpu")).module
