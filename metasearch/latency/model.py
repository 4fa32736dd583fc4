"""A latency model: the time of a network on a device as the sum of its operations' times, linear in their shapes.

    ms = sum over operations of overhead + a * MACs + b * bytes, all coefficients at least 0

with coefficients for each kind of operation, int8 or float, and whether its channels fill the blocks in which the
device's kernels work. What little is measured of the many kinds is shared: coefficients are fitted first for all
operations together, then by kind, then by kind, precision and blocks, each time drawn to those before (ridge), which
alone stand where nothing was measured. Errors are relative to the network's time. Symbols: N networks, L layers of all
of them together, F coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metasearch.latency.measured import Measured
from metasearch.latency.work import CONVOLUTIONS, DEPTHWISE, INPUT, Work

Array = NDArray[np.float64]
ANY = "any"
BLOCKS = (1, 4, 8, 16)
"""Channels that a kernel takes at once, as they are tried: 4 with NEON or SSE, 8 with AVX2, 16 with AVX-512."""
FEWEST = 3
"""Networks from which a model is fitted, at least."""
LAYER_WEIGHT = 0.3
"""The weight of a layer's time against that of a whole network, whose measurement needs no profile."""
RIDGE = 0.1
"""How strongly coefficients are drawn to those of the level before. Chosen, like LAYER_WEIGHT, on 148 networks of four
families on one thread of an AMD EPYC: from 8 of them the others are ranked by .80, from 16 by .85 (Spearman), by MACs
by .77; without the ridge by .66 and .81, without the layers' times by .50 and .77."""
LEAST_RIDGE = 1e-3
MOST_FOLDS = 20


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the milliseconds of one image on one thread. coefficients: of (1, MACs, bytes), by `groups`' names."""

    block: int
    coefficients: Mapping[str, Sequence[float]]

    def predict(self, works: Sequence[Work]) -> float:
        """Return the latency of a network with these works."""
        return float(sum(terms(work, self.block) @ self._of(work) for work in works))

    def _of(self, work: Work) -> Array:
        found = (self.coefficients.get(name) for name in reversed(groups(work, self.block)))
        return np.asarray(next(each for each in found if each is not None), dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """A fitted model and how well it predicts networks that it was not fitted to, each left out once.

    error: mean of |predicted - measured| / measured. rank: Spearman's correlation of both; macs_rank: of MACs and the
    measured time.
    """

    model: LatencyModel
    networks: int
    error: float
    rank: float
    macs_rank: float

    def __str__(self) -> str:
        return (
            f"from {self.networks} networks; of one left out it is off by {self.error:.0%} in the mean, "
            f"and ranks them by {self.rank:.2f} (Spearman; MACs by {self.macs_rank:.2f})"
        )


def groups(work: Work, block: int) -> tuple[str, str, str]:
    """Return the names under which coefficients of a work are looked for, the widest group first.

    The input of a network is a group of its own: its overhead is that of the whole call.
    """
    widest = INPUT if work.kind == INPUT else ANY
    precision = "int8" if work.int8 else "float"
    inputs, outputs = work.channels
    read = outputs if work.kind == DEPTHWISE else inputs
    filled = " blocks" if block > 1 and work.kind in CONVOLUTIONS and read % block == 0 else ""
    return widest, work.kind, f"{work.kind} {precision}{filled}"


def terms(work: Work, block: int) -> Array:
    """Return (1, millions of MACs, kilobytes); MACs as if the output's channels were a multiple of `block`."""
    macs, outputs = work.macs, work.channels[1]
    if work.kind in CONVOLUTIONS:
        macs = macs // outputs * -(-outputs // block) * block
    return np.array([1.0, macs / 1e6, work.moved / 1e3])


def fit(networks: Sequence[Measured]) -> Fit:
    """Return the model that fits best, of those that BLOCKS allow. Raises ValueError for fewer than FEWEST networks."""
    if len(networks) < FEWEST:
        raise ValueError(f"a latency model needs {FEWEST} networks, not {len(networks)}")
    measured = np.array([network.ms for network in networks])
    left_out = {block: _left_out(networks, block) for block in BLOCKS}
    errors = {block: float(np.mean(np.abs(left_out[block] / measured - 1))) for block in BLOCKS}
    block = min(BLOCKS, key=lambda block: errors[block])
    macs = np.array([network.macs for network in networks])
    ranks = [_rank_correlation(values, measured) for values in (left_out[block], macs)]
    return Fit(fit_block(networks, block), len(networks), errors[block], *ranks)


def fit_block(networks: Sequence[Measured], block: int) -> LatencyModel:
    """Return the model of one size of blocks."""
    from scipy.optimize import nnls

    found: dict[str, list[float]] = {}
    before: dict[str, Array] = {}
    levels = len(groups(networks[0].works[0], block))
    for level in range(levels):
        belongs = [groups(work, block) for network in networks for work in network.works]
        names = {group[level]: group[level - 1] for group in belongs}
        column = {name: 3 * index for index, name in enumerate(names)}
        rows, targets = _equations(networks, block, level, column)
        prior = np.zeros(rows.shape[1])
        for name, wider in names.items() if level else ():
            prior[column[name] : column[name] + 3] = before[wider]
        size = np.abs(rows).max(axis=0)
        ridge = (RIDGE if level else LEAST_RIDGE) * np.diag(np.where(size > 0, size, 1.0))
        solved, _ = nnls(np.vstack([rows, ridge]), np.concatenate([targets, ridge @ prior]))
        before = {name: solved[place : place + 3] for name, place in column.items()}
        found |= {name: values.tolist() for name, values in before.items()}
    return LatencyModel(block, found)


def _equations(networks: Sequence[Measured], block: int, level: int, column: Mapping[str, int]) -> tuple[Array, Array]:
    """Return rows (N + L, F + 1) and what they should give (N + L,), both in shares of their network's time.

    The last column is the overhead of timing one event, which the layers' times have and a network's has not.
    """
    rows, targets = [], []
    for network in networks:
        whole = np.zeros(3 * len(column) + 1)
        for layer in network.layers:
            place = column[groups(layer.work, block)[level]]
            whole[place : place + 3] += terms(layer.work, block)
            if layer.ms is not None:
                row = np.zeros(len(whole))
                row[place : place + 3] = terms(layer.work, block)
                row[-1] = layer.nodes
                rows.append(LAYER_WEIGHT * row / network.ms)
                targets.append(LAYER_WEIGHT * layer.ms / network.ms)
        rows.append(whole / network.ms)
        targets.append(1.0)
    return np.array(rows), np.array(targets)


def _left_out(networks: Sequence[Measured], block: int) -> Array:
    """Return the prediction (N,) for each network of a model that has not seen it: fitted without it, or its fold."""
    found = np.zeros(len(networks))
    folds = min(len(networks), MOST_FOLDS)
    for fold in range(folds):
        model = fit_block([network for index, network in enumerate(networks) if index % folds != fold], block)
        for index in range(fold, len(networks), folds):
            found[index] = model.predict(networks[index].works)
    return found


def _rank_correlation(values: Array, others: Array) -> float:
    """Return Spearman's correlation, 0 where all values are the same."""
    from scipy.stats import spearmanr

    return float(spearmanr(values, others).statistic) if np.ptp(values) and np.ptp(others) else 0.0
