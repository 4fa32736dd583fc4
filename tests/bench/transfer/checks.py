"""What is demanded of the transfer sampler, each demand as a function of what came out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.bench.transfer.contenders import IN_PARALLEL
from tests.bench.transfer.costs import Costs
from tests.bench.transfer.outcome import COLD_TPE, Outcome, Sampler, mean_and_error, upper_bounds

Array = NDArray[np.float64]

OURS: Sampler = ("transfer", "good")
OURS_COLD: Sampler = ("transfer", "none")
OURS_IRRELEVANT: Sampler = ("transfer", "one irrelevant")
OURS_PARALLEL: Sampler = ("transfer" + IN_PARALLEL, "good")
TPE_PARALLEL: Sampler = ("tpe" + IN_PARALLEL, "none")
GP_ENQUEUED: Sampler = ("gp", "good")
BAD = ("shuffled", "inverted")

AT = (5, 10, 20, 30)
REGRETS = {"fcnet": {5: 0.095, 10: 0.070, 20: 0.045, 30: 0.036}, "nmt": {5: 0.115, 30: 0.050}}
TRIALS_TO_COLD = {"fcnet": 5, "own": 8}
BOUND_AT_30, MEAN_AT_10 = 0.01, 0.02
IRRELEVANT = 0.005
SECONDS = {"100 trials, 10 priors": 0.5, "1000 trials, 10 priors": 1.0, "100 trials, 100 priors": 2.0}
SECONDS_BEFORE = 60.0


@dataclass(frozen=True)
class Check:
    """One demand. line: its number in the list. met: None where it was not judged."""

    line: int
    what: str
    measured: str
    target: str
    met: bool | None


def low_regret(outcome: Outcome) -> list[Check]:
    """Line 1: below fixed regrets, and below GPSampler that has the priors' best points enqueued."""
    checks = []
    (ours,) = outcome.of(OURS)
    for trial, target in REGRETS.get(outcome.table, {}).items():
        mean, _ = mean_and_error(ours, trial)
        checks.append(
            Check(1, f"{outcome.table}: after {trial}", _number(mean), f"<= {_number(target)}", mean <= target)
        )
    mine, opponent = outcome.of(OURS, GP_ENQUEUED)
    for trial in AT if mine.size else ():
        mean, other = mean_and_error(mine, trial)[0], mean_and_error(opponent, trial)[0]
        met = mean < other if outcome.whole(GP_ENQUEUED) else None
        checks.append(
            Check(1, f"{outcome.table}: after {trial}, gp enqueued", _number(mean), f"< {_number(other)}", met)
        )
    return checks


def trials_saved(outcome: Outcome) -> list[Check]:
    """Line 2: the first trial that reaches what cold TPE has after all of its trials, the median of task x seed."""
    if outcome.table not in TRIALS_TO_COLD or not outcome.of(COLD_TPE)[0].size:
        return []
    median, target = float(np.median(outcome.first_trials(OURS))), TRIALS_TO_COLD[outcome.table]
    met = median <= target if outcome.whole(COLD_TPE) else None
    return [Check(2, f"{outcome.table}: trials to cold TPE's 30", f"{median:g}", f"<= {target}", met)]


def bad_priors(outcome: Outcome) -> list[Check]:
    """Line 3: priors that mislead cost little after 10 and 30 trials, on every task; one among good ones, too."""
    checks = []
    for kind in BAD:
        for name, baseline in (("cold tpe", COLD_TPE), ("ours without", OURS_COLD)):
            bad, other = outcome.of(("transfer", kind), baseline)
            if not bad.size:
                continue
            what = f"{outcome.table}: {kind}, loss to {name}"
            bounds = upper_bounds(bad[:, :, 29] - other[:, :, 29])
            checks.append(_worst(what + ", 30, 90 % bound", outcome, bounds, BOUND_AT_30, strict=True))
            if baseline == COLD_TPE:
                means = (bad[:, :, 9] - other[:, :, 9]).mean(1)
                checks.append(_worst(what + ", 10, mean", outcome, means, MEAN_AT_10, strict=False))
    irrelevant, good = outcome.of(OURS_IRRELEVANT, OURS)
    for trial in AT:
        mean, error = mean_and_error(irrelevant - good, trial)
        measured = f"{_signed(mean)} ± {_number(error)}"
        what = f"{outcome.table}: one irrelevant prior, after {trial}"
        checks.append(Check(3, what, measured, f"< {_signed(IRRELEVANT)}", mean < IRRELEVANT))
    return checks


def _worst(what: str, outcome: Outcome, losses: Array, target: float, *, strict: bool) -> Check:
    worst = int(np.argmax(losses))
    loss = float(losses[worst])
    met = (loss < target if strict else loss <= target) if outcome.whole(COLD_TPE) and not np.isnan(loss) else None
    sign = "<" if strict else "<="
    return Check(3, what, f"{_signed(loss)} ({outcome.tasks[worst]})", f"{sign} {_signed(target)}", met)


def parallel(outcome: Outcome) -> list[Check]:
    """Line 4: what asking before any of 8 tells costs, at equal trials; less than it costs TPE with a constant liar.

    TPE draws its first ten trials at random, so that it has nothing to lose before: judged from 20 on.
    """
    ours, ours_one = outcome.of(OURS_PARALLEL, OURS)
    theirs, theirs_one = outcome.of(TPE_PARALLEL, COLD_TPE)
    checks = []
    for trial in AT[1:] if theirs.size else ():
        (mean, error), (other, _) = mean_and_error(ours - ours_one, trial), mean_and_error(theirs - theirs_one, trial)
        judged = trial > 10 and outcome.whole(TPE_PARALLEL, COLD_TPE)
        measured, target = f"{_signed(mean)} ± {_number(error)}", f"< {_signed(other)}"
        what = f"{outcome.table}: 8 workers, loss after {trial}, tpe's"
        checks.append(Check(4, what, measured, target, mean < other if judged else None))
    return checks


def costs(measured: Costs) -> list[Check]:
    """Line 6: seconds of CPU to propose one configuration, those before the first, and those for a batch."""
    checks = [
        Check(
            6,
            f"one proposal, {case}",
            f"{measured.medians[case]:.2f} s",
            f"<= {limit:g} s",
            measured.medians[case] <= limit,
        )
        for case, limit in SECONDS.items()
    ]
    first = max(measured.before.values())
    checks.append(
        Check(6, "once, before the first", f"{first:.1f} s", f"<= {SECONDS_BEFORE:g} s", first <= SECONDS_BEFORE)
    )
    one_by_one = f"< {measured.one_by_one:.2f} s"
    met = measured.batch < measured.one_by_one
    checks.append(
        Check(6, f"a batch of {measured.batch_size}, told one by one", f"{measured.batch:.2f} s", one_by_one, met)
    )
    return checks


def _number(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
