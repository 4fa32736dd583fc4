"""What a search takes over from an earlier one: its best student's weights, its structure, its strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optuna.storages import RDBStorage
from optuna.trial import TrialState

from metasearch.errors import InfeasibleError, InputError, NotFoundError
from metasearch.parameters import Value
from metasearch.records import METRICS, TrialResult
from metasearch.search.artefacts import KeptFile, joined, location, trial_folder
from metasearch.search.fixing import STRATEGY, STRUCTURE, fix, narrow_to, part_of
from metasearch.search.objectives import Constraint
from metasearch.search.pareto import Front
from metasearch.search.space import Space
from metasearch.search.store import RESULT, description_of, load_study

WEIGHTS_SUFFIX = ".safetensors"
STUDENT_FILE = f"student{WEIGHTS_SUFFIX}"
"""metasearch.pipeline.WEIGHTS_FILE, which is not imported here because it loads torch."""


@dataclass(frozen=True)
class Decided:
    """What earlier studies decide in a new one's space: each the name of a study, or None.

    structure, strategy: fixed at those of its best trial. structure_range: narrowed to those of its front.
    """

    structure: str | None = None
    structure_range: str | None = None
    strategy: str | None = None


def front_of(storage: RDBStorage, name: str) -> dict[int, TrialResult]:
    """Return a study's front under its constraints by number, the trial best in the first objective first.

    Raises NotFoundError for no such study, InfeasibleError where no complete trial satisfies its constraints.
    """
    study = load_study(storage, name)
    description = description_of(study)
    limits = [Constraint.parse(text) for text in description.constraints]
    front, results = Front.of([METRICS[metric] for metric in description.objectives]), dict[int, TrialResult]()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if RESULT in trial.user_attrs:
            result = TrialResult.from_json(trial.user_attrs[RESULT])
            metrics = dict(result.metrics)
            if all(limit.violation(metrics) <= 0 for limit in limits if limit.metric in metrics):
                results[trial.number] = result
                front.add(trial.number, [metrics[metric] for metric in description.objectives])
    if not front.members:
        raise InfeasibleError(f"study {name}: has no complete trial that satisfies its constraints")
    return {number: results[number] for number in front.in_order()}


def student_file(storage: Callable[[], RDBStorage], text: str) -> KeptFile:
    """Return the weights that `--init-from` names: a file, by its path or URL, or those of the best student of a study.

    storage: opened only where a study is named. Raises NotFoundError where they are not there, StorageError where they
    are others than the study's.
    """
    digest = None
    if text.endswith(WEIGHTS_SUFFIX):
        place = location(text, flag="--init-from")
    else:
        opened = storage()
        artefacts = description_of(load_study(opened, text)).artefacts
        number, best = next(iter(front_of(opened, text).items()))
        place = joined(trial_folder(joined(artefacts, text), number), STUDENT_FILE)
        digest = best.artefacts.get(STUDENT_FILE)
    try:
        file = KeptFile.at(place) if digest is None else KeptFile(place, digest)
        file.fetch()
    except NotFoundError as error:
        raise NotFoundError(f"--init-from {text}: {error}") from error
    return file


def decided_space(storage: RDBStorage, space: Space, decided: Decided, *, tell: Callable[[str], None]) -> Space:
    """Return the space with what earlier studies decide in it. tell: hears what that is, a line for each.

    Raises InputError for a structure asked for twice, a value that breaks a rule, or a space with nothing to search.
    """
    if decided.structure is not None and decided.structure_range is not None:
        raise InputError("--narrow-structure", "cannot stand beside --fix-structure", decided.structure_range)
    for flag, study, names in (
        ("--fix-structure", decided.structure, STRUCTURE),
        ("--fix-strategy", decided.strategy, STRATEGY),
    ):
        if study is not None:
            number, best = next(iter(front_of(storage, study).items()))
            values: dict[str, Value] = part_of(best.config, names)
            space = fix(space, values, place=f"{flag} {study}")
            shown = ", ".join(f"{path}={value}" for path, value in values.items())
            tell(f"{flag} {study}: as in its trial {number}: {shown}")
    if decided.structure_range is not None:
        configs = [result.config for result in front_of(storage, decided.structure_range).values()]
        space = narrow_to(space, configs, STRUCTURE, place=f"--narrow-structure {decided.structure_range}")
        left = [s for s in space.settings if part_of({s.path: 0}, STRUCTURE)]
        shown = ", ".join(f"{s.path} {s.domain}" for s in left)
        tell(f"--narrow-structure {decided.structure_range}: as on its front of {len(configs)}: {shown}")
    if not space.distributions():
        raise InputError(f"space {space.name}", "leaves nothing to search once structure and strategy are fixed")
    return space
