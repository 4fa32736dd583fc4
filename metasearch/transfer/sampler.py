"""A sampler for Optuna that starts from earlier studies.

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=TransferSampler(prior_studies))

Every proposal is the candidate of the largest expected gain of hypervolume (`proposal.py`), under beliefs about each
objective that mix the prior studies with the study's own results (`surrogates.py`); before its own first result, the
prior studies speak alone. Without them it is a Bayesian optimizer for one or several objectives. Conditional parameters
are learned from the configurations seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metasearch.transfer.encoding import Axis, Conditions, Encoding, Params
from metasearch.transfer.knowledge import Knowledge, thinned
from metasearch.transfer.mapping import fixed_choices, nearest
from metasearch.transfer.prior import NOTHING, Prior, objective_names, prior_of
from metasearch.transfer.proposal import Computed, propose, spread_out
from metasearch.transfer.results import Results
from metasearch.transfer.warp import Warp

Array = NDArray[np.float64]

PORTFOLIO = 8
"""Trials that are chosen among the configurations which several prior studies have tried, where there are many such."""
AHEAD = 5
"""Trials that are planned from the prior studies alone, unless their results make these improbable. A single bad
result, such as a training that diverged where theirs did not, otherwise costs them too much of their weight: on the
tables of neural machine translation the regret after 5 trials was 0.18 without this, and 0.14 with it."""
STARTUP = 8
"""Configurations spread over the space before the first model, where there are no prior studies."""
RUNNING_A_PLAN = 32
"""Trials are planned several at once, so that a fit serves all of them, where many run: one more for each so many. Each
then knows all results but the last few, of which it would know as little if it had been asked for a moment earlier."""
FAILURES = 3
"""Trials without a result after which the prior studies, which none contradicts, are not followed any longer."""


@dataclass
class Memory:
    """What a sampler keeps of a study. plans: trial number -> what was proposed for it, while it runs.

    ahead: what was planned for the next trials. space: that it was planned in.
    """

    knowledge: Knowledge | None = None
    plans: dict[int, Params] = field(default_factory=dict)
    ahead: list[Params] = field(default_factory=list)
    space: dict[str, BaseDistribution] = field(default_factory=dict)


class TransferSampler(BaseSampler):
    """Proposes configurations by what prior studies and the study's own trials tell; any number of objectives.

    prior_studies: studies of Optuna's, or loaded priors. They are matched by the names of parameters and objectives
    (`Study.set_metric_names`; unnamed objectives by their position); what does not match is left out. seed: of all that
    is random. computed: objective -> function of the parameters, for objectives that need no trial to be known, such as
    a network's size; it is given what a trial has (inactive parameters are not there), and asked from the first
    complete trial on, when it is known what that is. fixed: what holds for all trials of a study without being one of
    their parameters, such as a family of networks, for prior studies that tried others, too.
    """

    def __init__(
        self,
        prior_studies: Sequence[Study | Prior] = (),
        *,
        seed: int | None = None,
        computed: Mapping[str, Callable[[Mapping[str, Any]], float]] | None = None,
        fixed: Mapping[str, Any] = NOTHING,
    ) -> None:
        self._priors = tuple(p if isinstance(p, Prior) else prior_of(p) for p in prior_studies)
        self._computed = dict(computed or {})
        self._fixed = dict(fixed)
        self._rng = np.random.default_rng(seed)
        self._memories: dict[str, Memory] = {}
        self._lock = Lock()  # the threads of `study.optimize(n_jobs=...)` plan one after the other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def reseed_rng(self) -> None:
        """Draw a new seed, for a copy of the sampler in another thread or process."""
        self._rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return every parameter that another trial of the study has had, in its latest range and its first choices."""
        with self._lock:
            memory = self._memory(study)
            if memory.ahead:
                return memory.space
        found: dict[str, BaseDistribution] = {}
        for other in study.get_trials(deepcopy=False):
            if other.number != trial.number:
                found.update({n: d for n, d in other.distributions.items() if _alike(d, found.get(n, d))})
        return {name: found[name] for name in sorted(found) if not found[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a whole configuration, with a value for parameters that turn out to be inactive, too."""
        with self._lock:
            plan = self._plan(study, trial, search_space)
            return {name: plan[name] if name in plan else self._drawn(name, d) for name, d in search_space.items()}

    def _plan(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Params:
        """Return what is proposed for a trial, and keep it while the trial runs."""
        memory = self._memory(study)
        if memory.ahead and memory.space == search_space:
            plan = memory.ahead.pop(0)
        else:
            trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            trials = [other for other in trials if _fits(other, search_space)]
            # one that runs may not be among these, with choices of its own: only what has ended is forgotten
            ended = {other.number for other in trials if other.state.is_finished()}
            count = 1 + (len(trials) - len(ended)) // RUNNING_A_PLAN
            plan, *memory.ahead = self._proposals(study, trials, search_space, count)
            memory.space = search_space
            memory.plans = {n: kept for n, kept in memory.plans.items() if n not in ended}
        memory.plans[trial.number] = plan
        return plan

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value of a parameter that the study has not had so: as prior studies suggest, else a random one."""
        with self._lock:
            plan = self._memory(study).plans.get(trial.number, {})
            if param_name in plan:
                try:
                    return nearest(plan[param_name], param_distribution)
                except ValueError:  # a choice that this study does not have
                    pass
            return self._drawn(param_name, param_distribution)

    def _memory(self, study: Study) -> Memory:
        return self._memories.setdefault(study.study_name, Memory())

    def _drawn(self, name: str, distribution: BaseDistribution) -> Any:
        return Axis(name, distribution).draw(self._rng)

    def _proposals(
        self, study: Study, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution], count: int
    ) -> list[Params]:
        """Return configurations to try next, of the study's parameters and those that only prior studies have.

        count: of them, at most.
        """
        names = objective_names(study)
        directions = {n: d.name.lower() for n, d in zip(names, study.directions, strict=True)}
        fixed = {name: value for name, value in self._fixed.items() if name not in search_space}
        distributions = dict(search_space) | self._unseen(trials) | fixed_choices(self._priors, fixed)
        memory = self._memory(study)
        knowledge = memory.knowledge
        if knowledge is None or (knowledge.distributions, knowledge.directions) != (distributions, directions):
            knowledge = memory.knowledge = Knowledge.of(self._priors, distributions, directions, fixed)
        encoding = knowledge.encoding(trials)
        if not encoding.chosen:
            return [{}]
        results = Results.of(trials, encoding, knowledge.signs, memory.plans)
        if knowledge.priors and knowledge.doubted(results):  # their scales and starts mislead, too
            knowledge = knowledge.without_priors
        enough = results.measured.any() and len(results.values) >= STARTUP
        failures = 0 if results.measured.any() else sum(trial.state.is_finished() for trial in trials)
        if failures >= FAILURES or not (knowledge.priors or enough):
            return _spread(encoding, results.taken, self._rng, count)
        constraints = knowledge.constraints(results)
        if knowledge.priors and knowledge.complete and len(results.values) < AHEAD:
            results = results.unanswered()
        warps = [knowledge.warp(m, results) for m in range(len(names))]
        warped = np.column_stack([warp(results.values[:, m]) for m, warp in enumerate(warps)])
        believed = knowledge.beliefs(results)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        exact = self._computed if complete else {}
        single = {n: v for n, v in complete[-1].params.items() if n not in distributions} if complete else {}
        objectives = [
            _exact(exact[name], single, sign, warps[m]) if name in exact else believed[m]
            for m, (name, sign) in enumerate(zip(names, knowledge.signs, strict=True))
        ]
        if knowledge.portfolio and sum(trial.state.is_finished() for trial in trials) < PORTFOLIO:
            starts, only = knowledge.portfolio, True
        else:
            starts, only = knowledge.starts, False
        return propose(results, warped, objectives, constraints, starts, self._rng, only_starts=only, count=count)

    def _unseen(self, trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
        """Return the parameters that prior studies have and the study may yet have.

        One that no trial of the study has had, although its conditions held, is none of the study's.
        """
        seen = {name for trial in trials for name in trial.distributions}
        all_of_them = {n: d for prior in reversed(self._priors) for n, d in prior.distributions.items()}
        unseen = {n: d for n, d in all_of_them.items() if n not in seen and n not in self._fixed and not d.single()}
        # one that failed may have ended before it asked for all that it would have had
        finished = [{**self._fixed, **trial.params} for trial in trials if trial.state == TrialState.COMPLETE]
        if not unseen or not finished:
            return unseen
        examples = [trial.params for prior in self._priors for trial in prior.trials]
        conditions = Conditions.learned(thinned(examples), [Axis(n, d) for n, d in all_of_them.items()])
        return {n: d for n, d in unseen.items() if not any(conditions.permits(n, params) for params in finished)}


def _spread(encoding: Encoding, taken: Array, rng: np.random.Generator, count: int) -> list[Params]:
    """Return configurations far from those taken (T, D) and from each other."""
    found: list[Params] = []
    for _ in range(count):
        found.append(spread_out(encoding, taken, rng))
        taken = np.vstack([taken, encoding.encode(found[-1:])])
    return found


def _exact(function: Callable[[Mapping[str, Any]], float], fixed: Params, sign: float, warp: Warp) -> Computed:
    """Return what computes an objective on its warped scale. fixed: parameters that are not proposed."""
    return lambda configurations: warp(sign * np.array([function({**fixed, **config}) for config in configurations]))


def _fits(trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]) -> bool:
    """Return whether a space has the choices of a trial: one that was added to the study may have others."""
    for name in trial.params.keys() & search_space.keys():
        value, distribution = trial.params[name], search_space[name]
        try:
            found = nearest(value, distribution)
        except ValueError:
            return False
        if isinstance(distribution, CategoricalDistribution) and found != value:
            return False
    return True


def _alike(distribution: BaseDistribution, other: BaseDistribution) -> bool:
    """Return whether both are numbers, of whatever range, or have the same choices."""
    categorical = isinstance(distribution, CategoricalDistribution) or isinstance(other, CategoricalDistribution)
    return not categorical or distribution == other
