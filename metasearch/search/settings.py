"""A setting: one dotted path of a configuration, what it may be, and the conditions under which it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.errors import InputError
from metasearch.parameters import Value, section_path
from metasearch.transfer.encoding import value_at

Condition = tuple[str, tuple[Value, ...]]
"""A path, and the values of it under which a setting is active."""


@dataclass(frozen=True)
class Setting:
    """One parameter of a space.

    path: dotted, such as learning_rate.peak. domain: the value of a fixed setting, the distribution of a searched one.
    when: conditions that must all hold; none means always active.
    """

    path: str
    domain: Value | BaseDistribution
    when: tuple[Condition, ...] = ()

    @property
    def searched(self) -> bool:
        """Whether the value is chosen by a sampler."""
        return isinstance(self.domain, BaseDistribution)

    @property
    def choices(self) -> tuple[Value, ...]:
        """The values that it has to choose from: one if fixed, none if it is a range."""
        if isinstance(self.domain, CategoricalDistribution):
            return cast(tuple[Value, ...], tuple(self.domain.choices))
        return () if isinstance(self.domain, BaseDistribution) else (self.domain,)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest number that it may be."""
        if isinstance(self.domain, (FloatDistribution, IntDistribution)):
            return self.domain.low, self.domain.high
        numbers = [float(choice) for choice in self.choices]
        return min(numbers), max(numbers)

    def active(self, values: Mapping[str, Value]) -> bool:
        """Return whether the conditions hold in `values`; one on an absent parameter does not."""
        return all(path in values and values[path] in permitted for path, permitted in self.when)

    def suggest(self, trial: Trial) -> Value:
        """Return its value in an Optuna trial."""
        domain = self.domain
        if isinstance(domain, FloatDistribution):
            return trial.suggest_float(self.path, domain.low, domain.high, log=domain.log, step=domain.step)
        if isinstance(domain, IntDistribution):
            return trial.suggest_int(self.path, domain.low, domain.high, log=domain.log, step=domain.step)
        if isinstance(domain, CategoricalDistribution):
            return cast(Value, trial.suggest_categorical(self.path, domain.choices))
        return cast(Value, domain)

    def at(self, share: float) -> Value:
        """Return the value below which `share` in [0, 1) of the range lies (of its logarithm, where that is uniform).

        A uniform share makes a uniform value: this is the inverse of the distribution function.
        """
        return cast(Value, value_at(self.domain, share) if isinstance(self.domain, BaseDistribution) else self.domain)

    def check(self, value: Value, place: str) -> None:
        """Raise InputError unless `value`, already of the right type, is one that this setting may have."""
        domain = self.domain
        if isinstance(domain, (FloatDistribution, IntDistribution)):
            number = float(value)
            if not domain.low <= number <= domain.high:
                raise InputError(place, f"must be in [{domain.low:.12g}, {domain.high:.12g}] in this space", value)
            steps = (number - domain.low) / domain.step if domain.step else 0.0
            if abs(steps - round(steps)) > 1e-8:  # Optuna's own tolerance
                raise InputError(place, f"must be {domain.low:.12g} plus a multiple of {domain.step:.12g}", value)
        elif isinstance(domain, CategoricalDistribution):
            if value not in domain.choices:
                raise InputError(place, f"must be one of {', '.join(map(str, domain.choices))} in this space", value)
        elif value != domain:
            raise InputError(place, f"is fixed at {domain} in this space", value)

    def plain(self) -> Any:
        """Return what the YAML says of it."""
        domain = self.domain
        if not isinstance(domain, BaseDistribution):
            return domain
        plain: dict[str, Any] = {}
        if isinstance(domain, (FloatDistribution, IntDistribution)):
            plain |= {"low": domain.low, "high": domain.high}
            if domain.step not in (None, 1) or (isinstance(domain, FloatDistribution) and domain.step):
                plain["step"] = domain.step
            if domain.log:
                plain["log"] = True
        else:
            plain["choices"] = list(self.choices)
        if self.when:
            plain["when"] = {path: list(values) if len(values) > 1 else values[0] for path, values in self.when}
        return plain


def range_distribution(
    low: float, high: float, *, step: float | None, log: bool, integer: bool, place: str
) -> BaseDistribution:
    """Return the Optuna distribution of a range. Raises InputError if the range is empty or its step does not fit."""
    if low >= high:
        raise InputError(f"{place}.low", "must be below high", f"low={low:.12g}, high={high:.12g}")
    if log and step is not None:
        raise InputError(f"{place}.step", "cannot be combined with log", step)
    if log and low <= 0:
        raise InputError(f"{place}.low", "must be above 0 where log is true", low)
    if step is not None:
        if step <= 0:
            raise InputError(f"{place}.step", "must be above 0", step)
        if high - low > 1e6 * step:
            raise InputError(f"{place}.step", "must leave at most a million values", step)
        width = Decimal(str(high)) - Decimal(str(low))
        if width % Decimal(str(step)) != 0:
            raise InputError(f"{place}.step", f"must divide high - low = {float(width):.12g}", step)
    if integer:
        return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
    return FloatDistribution(low, high, log=log, step=step)


def in_order(settings: Iterable[Setting], place: str) -> tuple[Setting, ...]:
    """Return the settings, each after those that its conditions name. Raises InputError if conditions form a cycle."""
    waiting, ordered, done = list(settings), list[Setting](), set[str]()
    while waiting:
        ready = [setting for setting in waiting if all(path in done for path, _ in setting.when)]
        if not ready:
            raise InputError(f"{place}: {section_path(waiting[0].path)}.when", f"forms a cycle: {_cycle(waiting)}")
        ordered += ready
        done |= {setting.path for setting in ready}
        waiting = [setting for setting in waiting if setting.path not in done]
    return tuple(ordered)


def _cycle(waiting: list[Setting]) -> str:
    """Return "a -> b -> a" for a cycle among settings that all wait for one another."""
    targets = {s.path: next(p for p, _ in s.when if p in {w.path for w in waiting}) for s in waiting}
    walk = [waiting[0].path]
    while walk[-1] not in walk[:-1]:
        walk.append(targets[walk[-1]])
    return " -> ".join(walk[walk.index(walk[-1]) :])
