"""The deployed network for ExecuTorch (.pte): phones and other small devices, without Python (extra `executorch`).

What XNNPACK has kernels for goes to it; the rest runs in ExecuTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metasearch.bundle.program import exported_program
from metasearch.errors import InputError
from metasearch.run import Deployed

MISSING = "needs the extra `executorch`: pip install metasearch[executorch]"


def write_portable(network: Deployed, path: Path) -> None:
    """Write the network as a .pte file that takes one input at a time. Raises InputError without ExecuTorch."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise InputError("--executorch", MISSING, error.name) from error
    program = exported_program(network, batch=1)  # ExecuTorch plans its memory ahead
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def portable_logits(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the network in a .pte file, run by ExecuTorch's runtime. Raises InputError without it."""
    try:
        from executorch.runtime import Runtime
    except ImportError as error:
        raise InputError("--executorch", MISSING, error.name) from error
    method = Runtime.get().load_program(path).load_method("forward")

    def run(inputs: Tensor) -> Tensor:
        # copies: ExecuTorch writes its next answer over the last one
        return torch.cat([method.execute([one.contiguous()])[0].clone() for one in torch.split(inputs, 1)])

    return run
