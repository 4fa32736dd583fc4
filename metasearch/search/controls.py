"""What every study is compared with: its front with several seeds, and its controls, in a companion study.

For each chosen student of the front: `final` runs it again with fresh seeds and reads the test split; `direct` distils
an unpruned student of the same family and the nearest MACs with the same budget, if one can be built; `alone` trains
the same student without the teacher; `random` distils one that had another start from random weights, the best student
of these by as many seeds as its gain is told from. The companion `NAME/controls` is seen by no sampler.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import replace
from functools import cache
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState

from metasearch.configuration import Configuration
from metasearch.errors import InputError, MetasearchError
from metasearch.measure import count_macs
from metasearch.models import NetworkSpec, build_network
from metasearch.parameters import PARAMETERS
from metasearch.records import Config
from metasearch.search.ledger import Proposal, trial_seed
from metasearch.search.pareto import Front, hypervolume
from metasearch.search.store import (
    CONTROLS,
    ROLE,
    StudyDescription,
    create_study,
    is_finished,
    load_study,
    study_exists,
)
from metasearch.tasks import Task

MOST_CHOSEN = 4
FINAL_SEEDS = 3
START_SEEDS = 5
"""Seeds of the best student that had another start than random weights, and of its like from these: paired."""
WIDEST = 256
RANDOM_START = {"student.init": "random"}


def choose(front: Front, *, most: int = MOST_CHOSEN) -> list[int]:
    """Return at most `most` of the front's trials: the best in the first objective, then those that add most volume.

    The volume is that of the front in the unit cube, sizes by their logarithm, so that its knees are chosen. Those
    nearer to the worst trial of the search than to the best are left out: at its far end a front holds networks of a
    few hundred bytes that nobody ships.
    """
    ordered = front.in_order()
    middle = (front.members[ordered[0]][0] + front.worst) / 2 if ordered else 0.0
    worth = [number for number in ordered if front.members[number][0] <= middle]
    if len(worth) <= most:
        return worth
    places = dict(zip(worth, _in_unit_cube([front.members[number] for number in worth]), strict=True))
    reference = (1.0 + 1.0 / len(worth),) * len(front.signs)
    chosen = [worth[0]]
    while len(chosen) < most:
        rest = [number for number in worth if number not in chosen]
        chosen.append(max(rest, key=lambda n: hypervolume([places[c] for c in (*chosen, n)], reference)))
    return [number for number in worth if number in chosen]


def _in_unit_cube(costs: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return costs (N, M) scaled to [0, 1] by objective; one that is positive throughout, a size, by its logarithm."""
    columns = []
    for column in zip(*costs, strict=True):
        scaled = [math.log(cost) for cost in column] if min(column) > 0 else list(column)
        low, high = min(scaled), max(scaled)
        columns.append([(value - low) / ((high - low) or 1.0) for value in scaled])
    return list(zip(*columns, strict=True))


def final_seed(study_seed: int, index: int) -> int:
    """Return the seed of the final run `index`, which no trial of the search has."""
    return trial_seed(study_seed, 1_000_000 + index)


def companion(
    storage: RDBStorage,
    study: Study,
    description: StudyDescription,
    chosen: dict[int, tuple[Config, dict[str, float]]],
    task: Task,
) -> Study:
    """Return the companion study, with every final run and control queued that is not in it yet.

    chosen: configuration and metrics of each chosen trial, by number, the best first.
    """
    name = study.study_name + CONTROLS
    if not study_exists(storage, name):
        create_study(storage, name, replace(description, trials=0))
    companion_study = load_study(storage, name)
    queued = {
        _key(trial.user_attrs[ROLE])
        for trial in companion_study.get_trials(deepcopy=False)
        if is_finished(trial) or not trial.state.is_finished()  # one that its machine lost is queued again
    }
    best_started = next((number for number, (config, _) in chosen.items() if _has_start(config)), None)
    for number, (config, metrics) in chosen.items():
        pairs = START_SEEDS if number == best_started else 1
        for role in _roles(number, config, metrics, task, description.seed, pairs=pairs):
            if _key(role) not in queued:
                companion_study.enqueue_trial({}, user_attrs={ROLE: role})
    return companion_study


def propose_control(trial: optuna.Trial) -> Proposal:
    """Return the run that a queued trial of the companion stands for."""
    role = trial.user_attrs[ROLE]
    return Proposal(role["config"], seed=role["seed"], read_test=True)


def _key(role: dict[str, Any]) -> tuple[str, int, int]:
    return role["role"], role["of"], role["seed"]


def _roles(
    number: int, config: Config, metrics: dict[str, float], task: Task, seed: int, *, pairs: int
) -> list[dict[str, Any]]:
    """Return the runs that a chosen trial asks for. pairs: seeds from random weights, of one that had another start."""
    pairs = pairs if _has_start(config) else 0
    seeds = [final_seed(seed, index) for index in range(max(FINAL_SEEDS, pairs))]
    roles = [{"role": "final", "of": number, "seed": s, "config": config} for s in seeds]
    without_pruning = {
        path: value for path, value in config.items() if not path.startswith(("pruning_ratio", "student.width"))
    }
    if Configuration.of(config).prunes:
        width = width_of_macs(config, metrics["macs"], task)
        if width is not None:
            direct = without_pruning | {"pruning_ratio": 0.0, "student.width": width}
            roles.append({"role": "direct", "of": number, "seed": seeds[0], "config": direct})
    if config["alpha"] > 0:
        start = RANDOM_START if config.get("student.init") == "teacher_slice" else {}
        alone = config | {"alpha": 0.0} | start | _as_many_steps(config, task)
        roles.append({"role": "alone", "of": number, "seed": seeds[0], "config": alone})
    random = config | RANDOM_START
    return roles + [{"role": "random", "of": number, "seed": s, "config": random} for s in seeds[:pairs]]


def _has_start(config: Config) -> bool:
    return bool(config.get("student.init", "random") != "random")


def _as_many_steps(config: Config, task: Task) -> Config:
    """Return the epochs over the labelled examples that have the steps of those over the unlabelled ones, too."""
    if task.unlabelled is None:
        return {}
    times = 1 + len(task.unlabelled) / len(task.train)
    high = PARAMETERS["epochs"].high
    return {
        name: min(round(times * config[name]), int(high)) for name in ("epochs", "fine_tune_epochs") if name in config
    }


def width_of_macs(config: Config, macs: float, task: Task) -> int | None:
    """Return the width at which the configuration's family and depth come nearest to `macs`, None if none can be built.

    A user's family may refuse some widths (GroupNorm(8, width)): the search is among the others.
    """

    @cache
    def macs_at(width: int) -> int | None:
        spec = NetworkSpec(config["student.family"], width=width, depth=config["student.depth"])
        try:
            network = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=0)
        except MetasearchError:
            return None
        return count_macs(network, task.input_shape)

    def first(widths: range) -> int | None:
        return next((width for width in widths if macs_at(width) is not None), None)

    def reaches(width: int) -> bool:
        found = first(range(width, WIDEST + 1))
        return found is None or (macs_at(found) or 0) >= macs

    widths = range(1, WIDEST + 1)
    middle = bisect.bisect_left(widths, True, key=reaches) + 1  # MACs grow with width
    nearest = [width for width in (first(range(middle - 1, 0, -1)), first(range(middle, WIDEST + 1))) if width]
    return min(nearest, key=lambda width: abs((macs_at(width) or 0) - macs), default=None)


def roles_of(study: Study) -> list[tuple[dict[str, Any], optuna.trial.FrozenTrial]]:
    """Return every complete run of the companion with what it stands for. Raises InputError for another study."""
    runs = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if any(ROLE not in trial.user_attrs for trial in runs):
        raise InputError(f"study {study.study_name}", "is no companion of controls: its trials have no role")
    return [(trial.user_attrs[ROLE], trial) for trial in runs]
