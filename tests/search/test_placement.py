from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import InputError
from metasearch.search.placement import check_fits_here, check_share, memory_line, memory_share, slots
from metasearch.search.runner import Resources


def node(cpus: int = 0, gpus: int = 0, *, alive: bool = True) -> dict[str, Any]:
    given = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return {"Alive": alive, "Resources": {name: float(amount) for name, amount in given.items() if amount}}


def placed_one_by_one(cpus: int, gpus: int, *, threads: int, tenths: int) -> int:
    """Return how many trials a node takes, each put where room is left; tenths: of a GPU, for each."""
    devices, count = [10] * gpus, 0
    while cpus >= threads:
        if tenths >= 10:
            free = [index for index, room in enumerate(devices) if room == 10][: tenths // 10]
            if len(free) < tenths // 10:
                break
            for index in free:
                devices[index] = 0
        elif tenths:
            with_room = [index for index, room in enumerate(devices) if room >= tenths]
            if not with_room:
                break
            devices[with_room[0]] -= tenths
        cpus, count = cpus - threads, count + 1
    return count


@given(
    nodes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=4),
    threads=st.integers(1, 4),
    tenths=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 20]),
)
def test_slots_are_as_many_as_can_be_placed_one_by_one(nodes: list[tuple[int, int]], threads: int, tenths: int) -> None:
    wanted = sum(placed_one_by_one(cpus, gpus, threads=threads, tenths=tenths) for cpus, gpus in nodes)
    assert slots([node(*each) for each in nodes], cpus=threads, gpus=tenths / 10) == wanted


def test_no_trial_spans_two_nodes() -> None:
    assert slots([node(3), node(3)], cpus=2) == 2  # the sum of CPUs would hold three


def test_nodes_that_have_gone_and_heads_without_cpus_take_nothing() -> None:
    assert slots([node(0), node(4, alive=False), node(2), {"Alive": False}], cpus=1) == 2


def test_with_gpus_asked_for_only_nodes_that_have_both_count() -> None:
    assert slots([node(8), node(2, 1), node(16, 2)], cpus=1, gpus=0.25) == 2 + 8


@pytest.mark.parametrize("gpus", [-1.0, 1e-5, 1.5, math.inf, math.nan])
def test_gpus_that_ray_cannot_give_are_refused(gpus: float) -> None:
    with pytest.raises(InputError, match=r"must be 0, a share from 0\.0001 to 1, or a whole number"):
        Resources(gpus=gpus)


def test_more_gpus_than_this_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for gpus in (0.0, 1e-4, 0.25, 1.0, 2.0):
        check_share(gpus)
        check_fits_here(gpus)
    with pytest.raises(InputError, match="no trial fits this machine's GPUs: there are 2, got 3"):
        check_fits_here(3.0)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    check_fits_here(3.0)  # on the caller's own cluster


@pytest.mark.parametrize(("gpus", "share"), [(0.0, None), (0.25, 0.25), (1.0, None), (2.0, None)])
def test_only_a_trial_that_shares_a_device_has_a_memory_bound(gpus: float, share: float | None) -> None:
    assert memory_share(gpus) == share
    assert bool(memory_line([("A10", 24_000_000_000)], gpus)) == (share is not None)


def test_the_memory_bound_is_said_for_each_kind_of_device() -> None:
    line = memory_line([("A10", 24_000_000_000)] * 2 + [("H100", 80_000_000_000)], 0.25)
    assert "6.0 of 24 GB on A10" in line
    assert "20.0 of 80 GB on H100" in line
    assert line.count("A10") == 1
