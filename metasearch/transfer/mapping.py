"""A prior on another space: its parameters mapped by name, and what that cost.

A value that the new space does not permit moves to the nearest one that it does, among choices of numbers, too; another
choice that it does not have leaves the trial out. Numbers are one kind, whether they were searched as floats, whole
numbers or choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.parameters import ADDED, PARAMETERS
from metasearch.transfer.prior import NOTHING, Prior, PriorTrial

OURS = "metasearch"
"""The name under which a prior made by this program has its version."""

Active = Callable[[Mapping[str, Any]], AbstractSet[str]]
"""From the parameters of a trial to the names of those that the conditions of a space permit."""


@dataclass(frozen=True)
class MappedPrior:
    """A prior on the distributions of a new space, and how it came there.

    prior: the mapped one, whose directions are those of the shared objectives; the old one where it is refused. kept:
    parameters that both searched. fixed: those that the new space fixes at one of several choices that the old one
    tried. dropped: others that the new space does not search. filled: those that only the new space searches, with the
    value that the old one fixed. absent: those of which the old one says nothing. clipped:
    parameter -> values that moved. left_out: trials with a choice that the space does not have. refused: why the prior
    cannot be used, "" where it can.
    """

    prior: Prior
    kept: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    filled: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    clipped: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0
    refused: str = ""

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The choices of numbers in the new space of which the prior tried none."""
        tried = Counter(name for trial in self.prior.trials for name in trial.params)
        return tuple(
            name
            for name, count in self.clipped.items()
            if count == tried[name] and isinstance(self.prior.distributions[name], CategoricalDistribution)
        )

    @property
    def outcome(self) -> str:
        """What was mapped, but for the prior's name and its number of trials."""
        if self.refused:
            return f"not used: {self.refused}"
        counts = [
            ("kept", len(self.kept), ()),
            ("fixed here", len(self.fixed), self.fixed),
            ("dropped", len(self.dropped), self.dropped),
            ("filled", len(self.filled), (f"{name}={value}" for name, value in self.filled.items())),
            ("unknown there", len(self.absent), self.absent),
        ]
        parts = [f"{count} {what}{_listed(names)}" for what, count, names in counts if count]
        values = sum(self.clipped.values())
        text = f"for {', '.join(self.prior.directions)}; parameters {', '.join(parts)}"
        text += f"; {values} values clipped{_listed(f'{n} {k}' for n, k in self.clipped.items())}" if values else ""
        left_out = f"; {self.left_out} trials left out, of choices that the space does not have"
        return text + (left_out if self.left_out else "")


def summaries(priors: Iterable[MappedPrior]) -> list[str]:
    """Return what was mapped, a line for all priors that only their names and numbers of trials tell apart."""
    alike: dict[str, list[MappedPrior]] = {}
    for mapped in priors:
        alike.setdefault(mapped.outcome, []).append(mapped)
    lines = []
    for outcome, group in alike.items():
        names = f"prior{'s' * (len(group) > 1)} {', '.join(mapped.prior.name for mapped in group)}"
        counts = sorted({len(mapped.prior.trials) for mapped in group})
        trials = " to ".join(map(str, counts[:: max(1, len(counts) - 1)])) + " trials " + "each " * (len(group) > 1)
        lines.append(f"{names}: {'' if group[0].refused else trials}{outcome}")
    return lines


def map_prior(
    prior: Prior,
    distributions: Mapping[str, BaseDistribution],
    objectives: Mapping[str, str],
    *,
    active: Active | None = None,
    fixed: Mapping[str, Any] = NOTHING,
) -> MappedPrior:
    """Return the prior on other distributions, for other objectives (name -> minimize or maximize).

    An objective is shared where every complete trial measured it, whether the old study improved it or not. active:
    what it does not name is taken out of a trial; by default all stays. fixed: what the new space does not search; a
    choice of these (a family, an optimizer; not a number) stays in the trials, see `fixed_choices`.
    """
    complete = prior.complete
    shared = {name: d for name, d in objectives.items() if all(name in trial.metrics for trial in complete)}
    kept = tuple(name for name in distributions if name in prior.distributions)
    filled = _filled(prior, distributions)
    absent = tuple(name for name in distributions if name not in kept and name not in filled)
    choices = {n: d for n, d in fixed_choices([prior], fixed).items() if n in prior.distributions}
    dropped = tuple(name for name in prior.distributions if name not in distributions and name not in choices)
    mapped = MappedPrior(prior, kept, tuple(choices), dropped, filled, absent)
    distributions = dict(distributions) | choices
    if not complete:
        return replace(mapped, refused="no trial is complete")
    if not kept:
        return replace(mapped, refused="it shares no parameter")
    if not shared:
        return replace(mapped, refused=f"it measured none of {', '.join(objectives)}")
    trials, clipped = [], Counter[str]()
    for trial in prior.trials:
        found = _mapped_params(trial, distributions, filled)
        if found is not None:
            names = found.keys() if active is None else found.keys() & (active(found) | choices.keys())
            trials.append(replace(trial, params={name: value for name, value in found.items() if name in names}))
            clipped.update(name for name in names & trial.params.keys() if _moved(trial.params[name], found[name]))
    if not any(trial.state == "complete" for trial in trials):
        return replace(mapped, refused="every complete trial has a choice that the space does not have")
    still = {name: value for name, value in prior.fixed.items() if name not in distributions}
    new = replace(prior, directions=shared, distributions=distributions, trials=tuple(trials), fixed=still)
    ordered = {name: clipped[name] for name in kept if clipped[name]}
    return replace(mapped, prior=new, clipped=ordered, left_out=len(prior.trials) - len(trials))


def fixed_choices(priors: Iterable[Prior], fixed: Mapping[str, Any]) -> dict[str, CategoricalDistribution]:
    """Return the choices that priors tried, searched or fixed, where a new space fixes one and they tried others.

    A model of the priors needs to know them: what a family of networks costs says little of another one.
    """
    found: dict[str, list[Any]] = {}
    for name, value in fixed.items():
        if not _is_number(value):
            tried = [value]
            for prior in priors:
                distribution = prior.distributions.get(name)
                if isinstance(distribution, CategoricalDistribution):
                    tried += distribution.choices
                elif name in prior.fixed and not _is_number(prior.fixed[name]):
                    tried.append(prior.fixed[name])
            found[name] = list(dict.fromkeys(tried))
    return {name: CategoricalDistribution(tried) for name, tried in found.items() if len(tried) > 1}


def nearest(value: Any, distribution: BaseDistribution) -> Any:
    """Return the value of a distribution that is nearest to one of another: of choices, the same, or among numbers any.

    Raises ValueError where none is like it.
    """
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        numbers = [choice for choice in distribution.choices if isinstance(choice, (int, float)) and _is_number(choice)]
        if _is_number(value) and len(numbers) == len(distribution.choices):
            return min(numbers, key=lambda number: abs(number - value))
        raise ValueError(f"is none of {distribution.choices}: {value!r}")
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if not _is_number(value):
        raise ValueError(f"is no number: {value!r}")
    number = min(max(value, distribution.low), distribution.high)
    if distribution.step is not None and not distribution.log:
        number = distribution.low + distribution.step * round((number - distribution.low) / distribution.step)
        number = min(number, distribution.high)
    return round(number) if isinstance(distribution, IntDistribution) else float(number)


def _filled(prior: Prior, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return what the old space fixed and the new one searches, where the new one has the like of its value.

    A parameter that this program did not have yet counts as fixed at its default, as the trials were run.
    """
    fixed = {name: PARAMETERS[name].default for name in ADDED} if OURS in prior.versions else {}
    fixed |= dict(prior.fixed)
    filled = {}
    for name, distribution in distributions.items():
        if name in fixed and name not in prior.distributions:
            try:
                filled[name] = nearest(fixed[name], distribution)
            except ValueError:  # a choice that is no more: as if it were not known
                continue
    return filled


def _mapped_params(
    trial: PriorTrial, distributions: Mapping[str, BaseDistribution], filled: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a trial's parameters in the new space, None where it has not the like of one."""
    try:
        own = {n: nearest(trial.params[n], d) for n, d in distributions.items() if n in trial.params}
    except ValueError:
        return None
    return own | dict(filled)


def _moved(old: Any, new: Any) -> bool:
    # a step's multiple is not the same to the last bit in every space
    return _is_number(old) and _is_number(new) and abs(new - old) > 1e-9 * max(abs(old), abs(new))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(names: Iterable[str]) -> str:
    shown = ", ".join(names)
    return f" ({shown})" if shown else ""
