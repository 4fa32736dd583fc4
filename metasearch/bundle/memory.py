"""The most memory that a process needs to run a network: `python memory.py MODEL SHAPE DTYPE` prints its peak in bytes.

A process of its own, because a peak never falls again. Run without arguments it loads no network, and its peak is what
onnxruntime takes by itself. Stands alone: onnxruntime, numpy and the standard library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

RUNS = 20
PROCESSES = 3
"""Of which the median counts: a peak is not the same from one to the next."""


def runtime_memory() -> int:
    """Return the peak of a process that has loaded onnxruntime and no network, in bytes."""
    return _peak_of()


def network_memory(model: Path, example: np.ndarray) -> int:
    """Return the peak of a process that runs the network on the example, in bytes.

    Raises subprocess.CalledProcessError where the process fails.
    """
    return _peak_of(str(model), json.dumps(example.shape), example.dtype.name)


def _peak_of(*arguments: str) -> int:
    command = [sys.executable, __file__, *arguments]
    peaks = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(PROCESSES)]
    return sorted(map(int, peaks))[PROCESSES // 2]


def peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process was forked from
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Run the network of the command line some times, if there is one; print the peak."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if len(sys.argv) > 1:
        model, shape, dtype = sys.argv[1:]
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(["logits"], {"input": np.zeros(json.loads(shape), dtype)})
    sys.stdout.write(f"{peak_bytes()}\n")


if __name__ == "__main__":
    main()
