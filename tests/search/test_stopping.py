from __future__ import annotations

import os
import signal

import pytest

from metasearch.search.stopping import StopFlag, stopping_on_signals


@pytest.mark.parametrize("limit_first", [True, False])
def test_a_request_to_end_everything_outlives_the_limit_that_ended_the_trials(limit_first: bool) -> None:
    stop = StopFlag()
    if limit_first:
        stop.end_trials("time")
    stop.set("stop requested")
    stop.end_trials("time")
    assert stop.reason == "stop requested"
    stop.trials_are_over()
    assert stop.reason == "stop requested"
    stop.set("another driver took the study")
    assert stop.reason == "stop requested"


def test_a_limit_ends_the_trials_and_nothing_that_follows_them() -> None:
    stop = StopFlag()
    stop.end_trials("time")
    stop.end_trials("GPU-hours")
    assert (stop.is_set(), stop.reason) == (True, "time")
    stop.trials_are_over()
    stop.end_trials("a timer that was late")
    assert not stop.is_set()


def test_the_first_ctrl_c_after_a_limit_stops_cleanly_and_the_second_at_once() -> None:
    stop = StopFlag()
    stop.end_trials("time")
    with stopping_on_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
