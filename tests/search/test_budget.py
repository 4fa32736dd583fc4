"""What a search may use, and what it is given when it goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metasearch.errors import InputError
from metasearch.search.budget import NO_MORE, Budget, More

HALF = Budget(8, timeout_s=60.0, trial_timeout_s=5.0, gpu_hours=2.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"trials": 0}, "--trials: must be at least 1, got 0"),
        ({"timeout_s": -1.0}, "--timeout: must be above 0"),
        ({"timeout_s": math.nan}, "--timeout: must be above 0"),
        ({"timeout_s": 1e9}, "--timeout: must be at most 100000000 s"),
        ({"trial_timeout_s": 0.0}, "--trial-timeout: must be above 0"),
        ({"trial_timeout_s": math.inf}, "--trial-timeout: must be at most 100000000 s"),
        ({"gpu_hours": 0.0}, "--gpu-hours: must be above 0"),
    ],
)
def test_a_limit_that_leaves_nothing_or_overflows_is_refused_at_its_flag(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**({"trials": 4} | limits))


def test_trials_and_gpu_hours_only_grow_and_a_timeout_may_be_any() -> None:
    assert HALF.enlarged(NO_MORE) == HALF
    assert HALF.enlarged(More(trials=9, timeout_s=30.0, gpu_hours=2.5)) == Budget(9, 30.0, 5.0, 2.5)
    assert Budget(4).enlarged(More(gpu_hours=1.0)) == Budget(4, gpu_hours=1.0)
    with pytest.raises(InputError, match="--trials: must be at least the study's 8, got 7"):
        HALF.enlarged(More(trials=7))
    with pytest.raises(InputError, match=r"--gpu-hours: must be at least the study's 2, got 1\.5"):
        HALF.enlarged(More(gpu_hours=1.5))
    with pytest.raises(InputError, match="--timeout: must be above 0"):
        HALF.enlarged(More(timeout_s=0.0))
