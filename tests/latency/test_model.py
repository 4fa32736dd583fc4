from __future__ import annotations

import numpy as np
import pytest

from metasearch.latency.measured import Measured, Timed
from metasearch.latency.model import ANY, FEWEST, LatencyModel, fit, fit_block, groups, terms
from metasearch.latency.work import ADD, DENSE, DEPTHWISE, INPUT, LINEAR, Work, convolution_work
from tests.latency.devices import TRUTH, networks, took


@pytest.mark.parametrize("layers", [True, False])
def test_a_fit_finds_the_device_that_made_the_times(layers: bool) -> None:
    model = fit_block(networks(40, layers=layers), 1)
    unseen = networks(20, seed=1)
    predicted = np.array([model.predict(each.works) for each in unseen])
    assert predicted == pytest.approx([each.ms for each in unseen], rel=0.1)
    one = convolution_work((24, 16, 16), (24, 1, 3, 3), (24, 16, 16), int8=False)
    assert model.predict([one]) == pytest.approx(took(one), rel=0.1 if layers else 0.3)


def test_the_times_of_layers_make_up_for_few_networks() -> None:
    works = [work for each in networks(30, seed=1) for work in each.works if work.kind != INPUT]
    errors = {}
    for layers in (True, False):
        model = fit_block(networks(5, layers=layers, seed=2), 1)
        errors[layers] = np.mean([abs(model.predict([work]) - took(work)) for work in works])
    assert errors[True] < 0.9 * errors[False]


def test_a_fit_says_how_well_it_predicts_what_it_has_not_seen() -> None:
    found = fit(networks(12))
    assert found.networks == 12
    assert found.error < 0.15
    assert found.rank > found.macs_rank + 0.1


def test_networks_that_are_left_out_do_not_speak_for_themselves() -> None:
    """Times that have nothing to do with the shapes are fitted, but not predicted."""
    rng = np.random.default_rng(0)
    noise = [Measured(n.name, n.digest, float(rng.uniform(0.1, 10)), n.layers) for n in networks(8, layers=False)]
    assert fit(noise).error > 0.5


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(3)
    noise = [Measured(n.name, n.digest, n.ms * float(rng.uniform(0.5, 2)), n.layers) for n in networks(10)]
    assert all(value >= 0 for values in fit_block(noise, 8).coefficients.values() for value in values)


def test_what_was_never_measured_costs_what_its_kind_or_else_any_operation_costs() -> None:
    model = fit_block(networks(20), 1)
    unseen = Work(ADD, True, 0, 1000)
    assert model.predict([unseen]) == pytest.approx(np.dot(model.coefficients[ANY], terms(unseen, 1)))
    int8 = Work(DEPTHWISE, True, 10**6, 1000, (8, 8))
    assert model.predict([int8]) == pytest.approx(np.dot(model.coefficients[DEPTHWISE], terms(int8, 1)))


def test_channels_that_fill_blocks_are_a_group_of_their_own() -> None:
    wide, odd = (Work(DENSE, False, 9 * 16 * c, 100, (16, c)) for c in (16, 20))
    assert groups(wide, 16)[-1] == groups(odd, 16)[-1] == f"{DENSE} float blocks"
    assert groups(Work(DENSE, False, 9, 100, (12, 16)), 16)[-1] == f"{DENSE} float"
    assert terms(odd, 16)[1] == pytest.approx(9 * 16 * 32 / 1e6)


def test_the_block_of_the_device_is_found() -> None:
    """A device that works on 8 channels at once takes as long for 9 as for 16."""
    blocked = [
        Measured(
            n.name,
            n.digest,
            LatencyModel(8, {name: TRUTH[name] for name in (INPUT, DENSE, DEPTHWISE, LINEAR)}).predict(n.works),
            n.layers[:1] + tuple(Timed(work) for work in n.works[1:]),
        )
        for n in networks(24)
    ]
    assert fit(blocked).model.block == 8


def test_too_few_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=f"needs {FEWEST} networks, not {FEWEST - 1}"):
        fit(networks(FEWEST - 1))
