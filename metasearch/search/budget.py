"""What a search may use: finished trials, time and GPU-hours; and what a resumed one is given beyond that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from metasearch.errors import InputError

LONGEST_S = 1e8
"""Of a limit: three years. Longer ones serve nobody, and make the timers of threads overflow."""


@dataclass(frozen=True)
class Budget:
    """What a search may use; None: as much as it needs. Raises InputError, at the flag's name, where that is nothing.

    trials: finished ones, exactly. timeout_s: of each driver's search. trial_timeout_s: of each trial's own steps.
    gpu_hours: of all trials of the study (see `gpu_time.py`).
    """

    trials: int
    timeout_s: float | None = None
    trial_timeout_s: float | None = None
    gpu_hours: float | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError("--trials", "must be at least 1", self.trials)
        seconds = {"--timeout": self.timeout_s, "--trial-timeout": self.trial_timeout_s}
        for place, limit in (seconds | {"--gpu-hours": self.gpu_hours}).items():
            if limit is not None and not limit > 0:
                raise InputError(place, "must be above 0", limit)
        for place, limit in seconds.items():
            if limit is not None and limit > LONGEST_S:
                raise InputError(place, f"must be at most {LONGEST_S:.0f} s", limit)

    def enlarged(self, more: More) -> Budget:
        """Return it with what a resumed search is given. Raises InputError for fewer trials or GPU-hours than before.

        Those add up over the drivers of a study; the seconds start anew with each, which may have fewer.
        """
        for place, before, now in (
            ("--trials", self.trials, more.trials),
            ("--gpu-hours", self.gpu_hours, more.gpu_hours),
        ):
            if before is not None and now is not None and now < before:
                raise InputError(place, f"must be at least the study's {before:g}", now)
        given: dict[str, Any] = {name: value for name, value in asdict(more).items() if value is not None}
        return replace(self, **given)


@dataclass(frozen=True)
class More:
    """What a resumed search is to have instead of what its study says; None: just that. Fields as those of Budget."""

    trials: int | None = None
    timeout_s: float | None = None
    gpu_hours: float | None = None


NO_MORE = More()
