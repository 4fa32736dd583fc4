"""What `metasearch transfer` says of a study: belief in its prior studies, which were right, regions, trials saved.

The prior studies are those that it was started from, as they are now.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metasearch.errors import InputError, NotFoundError
from metasearch.report.tables import HEADINGS
from metasearch.search.priors import load_warm_start, prior_of_study
from metasearch.search.store import StudyDescription, description_of, is_finished, load_study
from metasearch.transfer.explained import Agreement, Weights, agreements, knowledge_for, weights_over_trials
from metasearch.transfer.prior import Prior
from metasearch.transfer.regions import DIFFERS, IDLE, GoodRegions, Region, good_regions
from metasearch.transfer.saved import Saved, trials_saved

BARS = "▁▂▃▄▅▆▇█"
PIPE_WIDTH, WIDEST = 100, 40
"""Columns of text where there is no terminal to ask; of one cell."""


@dataclass(frozen=True)
class Transferred:
    """trials: finished ones. priors: mapped to the study's space. against: a real study, "" where it is simulated."""

    study: str
    trials: int
    priors: tuple[Prior, ...]
    weights: tuple[Weights, ...]
    agreements: tuple[Agreement, ...]
    regions: tuple[GoodRegions, ...]
    saved: tuple[Saved, ...]
    against: str = ""

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON has it; of each prior study its name, task and number of trials."""
        priors = [{"name": p.name, "task": p.task, "trials": len(p.trials)} for p in self.priors]
        return {
            "study": self.study,
            "trials": self.trials,
            "priors": priors,
            "weights": [asdict(weights) for weights in self.weights],
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "regions": [asdict(regions) for regions in self.regions],
            "saved": [asdict(saved) | {"median": saved.median} for saved in self.saved],
            "against": self.against or None,
        }


def transferred(
    storage: RDBStorage,
    name: str,
    *,
    against: str | None = None,
    simulate: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Transferred:
    """Return what a study took from its prior studies. against: a study of the same task without any.

    simulate: whether trials saved are counted against simulated searches where nothing is to be compared with, which
    takes longer than all else; without either, none are. tell: hears of prior studies that are no more.
    Raises NotFoundError if no trial is complete yet, InputError for a study to compare with that is of another task,
    or not without priors.
    """
    study = load_study(storage, name)
    description = description_of(study)
    trials = [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise NotFoundError(f"study {name}: no trial is complete yet")
    cold = None if against is None else _cold_trials(storage, against, description)
    own = prior_of_study(study)
    knowledge = knowledge_for(own, load_warm_start(storage, description, description.parsed_space(), tell=tell))
    known = knowledge.priors
    return Transferred(
        study=name,
        trials=len(trials),
        priors=known,
        weights=weights_over_trials(trials, knowledge),
        agreements=agreements(trials, knowledge),
        regions=good_regions([*known, own], knowledge.distributions),
        saved=trials_saved(trials, knowledge, against=cold) if (known and simulate) or cold is not None else (),
        against=against or "",
    )


def _cold_trials(storage: RDBStorage, name: str, description: StudyDescription) -> list[FrozenTrial]:
    study = load_study(storage, name)
    other = description_of(study)
    if other.fingerprint != description.fingerprint or other.objectives != description.objectives:
        raise InputError("--against", "must be a study of the same task and objectives", name)
    if other.warm_start:
        raise InputError("--against", "must be a study that was started without prior studies", name)
    trials = [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise InputError("--against", "must be a study with a complete trial", name)
    return trials


def print_transferred(found: Transferred) -> None:
    """Print it on stdout: four short tables, and what they mean."""
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    count = len(found.priors)
    started = f"started from {count} prior {_studies(count)}" if count else "started without prior studies"
    out.print(Text.assemble((found.study, "bold"), f": {found.trials} finished trials, {started}"))
    if found.weights:
        out.print("\nbelief in the prior studies, after so many trials")
        out.print(_weights_table(found.weights))
    if found.agreements:
        out.print("which prior studies were right: what each alone let expect, ranked as the results are (Spearman)")
        out.print(_agreements_table(found.agreements))
        trials = found.agreements[0].trials
        if trials > 1:
            # two standard errors of a rank correlation of independent values
            out.print(f"of {trials} complete trials; below {2 / (trials - 1) ** 0.5:.2f} it may be chance\n")
    _print_regions(out, found)
    if found.saved:
        out.print("trials for the same hypervolume")
        out.print(_saved_table(found))
        if not found.against:
            out.print("simulated, for both sides, on what all results together let expect, smoother than the task;")
            out.print("a real search without priors says more: --against STUDY")
    else:
        out.print(f"trials saved: nothing to compare with; metasearch transfer {found.study} --against STUDY")


def _table(*headings: str, left: int = 1) -> Table:
    """Return a table whose first `left` columns are words and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True, max_width=WIDEST)
    return table


def _weights_table(weights: Sequence[Weights]) -> Table:
    shown = [w for w in weights if w.trials in {1, 2, 4, 8, 16, weights[-1].trials}]
    table = _table("", *(str(w.trials) for w in shown), "")
    for name in weights[0].shares:
        bars = "".join(BARS[min(int(w.shares[name] * len(BARS)), len(BARS) - 1)] for w in weights)
        table.add_row(HEADINGS.get(name, name), *(f"{w.shares[name]:.0%}" for w in shown), bars)
    return table


def _agreements_table(found: Sequence[Agreement]) -> Table:
    objectives = list(dict.fromkeys(a.objective for a in found))
    names = [HEADINGS.get(name, name) for name in objectives]
    table = _table("prior study", "task", *names, left=2)
    correlations = {(a.prior, a.objective): a.correlation for a in found}
    for prior, task in dict.fromkeys((a.prior, a.task) for a in found):
        values = [correlations.get((prior, name)) for name in objectives]
        table.add_row(Text(prior), Text(task), *("" if v is None else f"{v:.2f}" for v in values))
    return table


def _print_regions(out: Console, found: Transferred) -> None:
    told = [regions for regions in found.regions if regions.verdict not in {IDLE, ""}]
    if told:
        out.print("where the best fifth of the trials lie: the middle half of numbers, the commonest choice")
        table = _table("parameter", "here", "prior studies", "verdict", left=4)
        for regions in told:
            here = [region for region in regions.regions if region.study == found.study]
            others = [region for region in regions.regions if region.study != found.study]
            shown = region_text(here[0]) if here else ""
            table.add_row(regions.parameter, Text(shown), Text(regions_text(others, regions.verdict)), regions.verdict)
        out.print(table)
    for verdict, text in ((IDLE, "does not matter, or no more than by chance"), ("", "too few trials to tell")):
        names = [regions.parameter for regions in found.regions if regions.verdict == verdict]
        if names:
            out.print(f"{text}: {', '.join(names)}")
    out.print()


def region_text(region: Region) -> str:
    """Return a study's good region in a few words."""
    if region.share is not None:
        return f"{region.choice} {region.share:.0%} of {region.trials}"
    return _range_text(region.low, region.high)


def _range_text(low: Any, high: Any) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def regions_text(regions: Sequence[Region], verdict: str) -> str:
    """Return the regions of several studies in a few words: their span, or the two that are farthest apart."""
    if not regions:
        return ""
    if regions[0].share is not None:
        counted = Counter(str(region.choice) for region in regions)
        return ", ".join(f"{choice} in {count}" for choice, count in counted.most_common())
    first, last = min(regions, key=lambda r: r.high), max(regions, key=lambda r: r.low)
    if verdict == DIFFERS and first is not last:
        return "\n".join(f"{region_text(region)} ({region.study})" for region in (first, last))
    return _range_text(min(r.low for r in regions), max(r.high for r in regions))


def _saved_table(found: Transferred) -> Table:
    searches = len(found.saved[0].cold)
    without = f"in {found.against}" if found.against else f"without priors, median of {searches} (range)"
    table = _table("here", "hypervolume", without, "saved", left=0)
    for saved in found.saved:
        median = saved.median
        more = f"> {saved.limit}" if median is None else f"{median:g}"
        if searches > 1:
            counts = sorted(saved.limit + 1 if count is None else count for count in saved.cold)
            ends = [f"> {saved.limit}" if count > saved.limit else str(count) for count in (counts[0], counts[-1])]
            more += f" ({' to '.join(dict.fromkeys(ends))})"
        gain = f"> {saved.limit - saved.trials}" if median is None else f"{median - saved.trials:g}"
        table.add_row(str(saved.trials), f"{saved.volume:.3f}", more, gain)
    return table


def _studies(count: int) -> str:
    return "study" if count == 1 else "studies"
