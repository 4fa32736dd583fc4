"""Successive halving that does not compare a student with a bigger one."""

from __future__ import annotations

import random

from metasearch.records import EpochReport
from metasearch.search.early_stopping import SuccessiveHalving


def report(epoch: int, accuracy: float, macs: int = 100, epochs: int = 9) -> EpochReport:
    return EpochReport("distill", epoch, epochs, 0.1, accuracy, macs, 0.1, 1.0, 0.1)


def test_no_trial_stops_before_enough_have_reached_its_rung() -> None:
    halving = SuccessiveHalving(by_size=False, least=4)
    assert [halving.goes_on(n, report(3, 0.9 - n / 10)) for n in range(3)] == [True] * 3


def test_a_trial_stops_unless_it_is_among_the_best_third_at_its_rung() -> None:
    halving = SuccessiveHalving(by_size=False)
    for number, accuracy in enumerate([0.9, 0.8, 0.7, 0.6, 0.5]):
        halving.goes_on(number, report(3, accuracy))
    assert halving.goes_on(5, report(3, 0.85))
    assert not halving.goes_on(6, report(3, 0.55))


def test_only_the_rungs_are_judged_and_never_the_last_epoch() -> None:
    halving = SuccessiveHalving(by_size=False)
    for number in range(8):
        for epoch in (3, 6, 9):
            halving.goes_on(number, report(epoch, 0.9))
    assert halving.goes_on(9, report(1, 0.0))
    assert halving.goes_on(9, report(9, 0.0))
    assert not halving.goes_on(9, report(6, 0.0))


def test_a_small_student_is_not_stopped_by_bigger_ones() -> None:
    halving, plain = SuccessiveHalving(by_size=True), SuccessiveHalving(by_size=False)
    for number in range(8):
        for each in (halving, plain):
            each.goes_on(number, report(3, 0.9, macs=1000 + number))
    assert halving.goes_on(8, report(3, 0.5, macs=10))
    assert not plain.goes_on(8, report(3, 0.5, macs=10))


def test_a_big_student_is_stopped_by_smaller_ones_that_are_better() -> None:
    halving = SuccessiveHalving(by_size=True)
    for number in range(4):
        halving.goes_on(number, report(3, 0.9, macs=500))
    assert not halving.goes_on(4, report(3, 0.5, macs=1000))


def test_a_big_student_is_not_stopped_by_much_smaller_ones_that_learn_faster_at_first() -> None:
    halving = SuccessiveHalving(by_size=True)
    for number in range(4):
        halving.goes_on(number, report(3, 0.9, macs=10))
    assert halving.goes_on(4, report(3, 0.5, macs=1000))


def test_a_short_trial_whose_rungs_fall_together_is_judged_once() -> None:
    halving = SuccessiveHalving(by_size=False)
    halving.goes_on(0, report(1, 0.5, epochs=2))
    assert {rung: set(records) for rung, records in halving.records.items()} == {1: {0}}


def test_rungs_refilled_from_stored_curves_decide_as_the_first_ones_did() -> None:
    noise = random.Random(0)
    curves = {n: [report(e, noise.random(), macs=noise.choice([10, 20, 30])) for e in (1, 3, 6)] for n in range(20)}
    seen = SuccessiveHalving(by_size=True)
    for number, curve in curves.items():
        for each in curve:
            seen.goes_on(number, each)
    refilled = SuccessiveHalving(by_size=True)
    for number, curve in curves.items():
        refilled.refill(number, curve)
    assert refilled.records == seen.records
    probes = [report(3, accuracy / 10, macs=20) for accuracy in range(10)]
    assert [refilled.goes_on(99, p) for p in probes] == [seen.goes_on(99, p) for p in probes]


def test_a_trial_that_is_run_again_replaces_its_own_record() -> None:
    halving = SuccessiveHalving(by_size=False)
    halving.goes_on(0, report(3, 0.1))
    halving.goes_on(0, report(3, 0.2))
    assert halving.records[0] == {0: (0.2, 100)}
