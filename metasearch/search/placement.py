"""How many trials fit on the nodes of a cluster, and what share of a GPU's memory each may take. Knows no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metasearch.errors import InputError

GRAIN = 10_000
"""Ray counts resources in ten-thousandths; as whole numbers 1 holds 0.1 ten times."""


def check_share(gpus: float) -> None:
    """Raise InputError for GPUs that Ray gives no trial: it divides one device, and several come whole."""
    if not (gpus == 0 or 1 / GRAIN <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer())):
        rule = f"must be 0, a share from {1 / GRAIN:g} to 1, or a whole number"
        raise InputError("--gpus-per-trial", rule, gpus)


def check_fits_here(gpus: float) -> None:
    """Raise InputError where no trial of so many GPUs would ever run on this machine.

    Where the caller runs Ray already, trials run on its nodes, whatever this one has.
    """
    if gpus:
        import ray
        import torch

        if not ray.is_initialized() and gpus > (devices := torch.cuda.device_count()):
            raise InputError("--gpus-per-trial", f"no trial fits this machine's GPUs: there are {devices}", gpus)


def slots(nodes: Iterable[Mapping[str, Any]], *, cpus: float, gpus: float = 0.0) -> int:
    """Return how many trials of so many CPUs and GPUs fit at once, summed over the nodes: none spans two of them.

    nodes: as `ray.nodes()` gives them. gpus: below 1 a share of one device, which no trial takes from two; else whole
    devices.
    """
    return sum(_on_node(node.get("Resources", {}), cpus, gpus) for node in nodes if node.get("Alive"))


def _on_node(there: Mapping[str, float], cpus: float, gpus: float) -> int:
    fitting = _grains(there.get("CPU", 0.0)) // _grains(cpus)
    if gpus > 0:
        devices = _grains(there.get("GPU", 0.0))
        on_gpus = devices // GRAIN * (GRAIN // _grains(gpus)) if gpus < 1 else devices // _grains(gpus)
        fitting = min(fitting, on_gpus)
    return fitting


def _grains(amount: float) -> int:
    return round(amount * GRAIN)


def memory_share(gpus: float) -> float | None:
    """Return the share of its device's memory that a trial may take, None for all of it."""
    return gpus if 0 < gpus < 1 else None


def memory_line(devices: Iterable[tuple[str, int]], gpus: float) -> str:
    """Return what each trial gets of a device, in a line; "" where it gets whole ones. devices: names and bytes."""
    share = memory_share(gpus)
    if share is None:
        return ""
    each = [f"{size * share / 1e9:.1f} of {size / 1e9:.0f} GB on {name}" for name, size in sorted(set(devices))]
    bound = ", ".join(each) or "which node has one is not known yet"
    return f"each trial gets {share:g} of a GPU's memory and fails beyond it: {bound}"
