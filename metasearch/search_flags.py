"""The flags of a search: what `launch` is told, and what `resume` gives it beyond that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_space, complete_study, complete_task, complete_warm_start
from metasearch.errors import InputError
from metasearch.flags import (
    Device,
    ResourceFlags,
    Seed,
    StartFlags,
    TaskFlags,
    TeacherFlags,
    read_configurations,
    seconds,
)
from metasearch.search.budget import Budget, More

if TYPE_CHECKING:
    from metasearch.search.earlier import Decided
    from metasearch.search.prepare import Options

WarmStartText = Annotated[
    str,
    typer.Option(
        "--warm-start",
        metavar="PRIORS",
        help="auto: all priors that fit (auto,-NAME: but one); none; or NAME,NAME of `metasearch priors`.",
        autocompletion=complete_warm_start,
    ),
]
MetaFamily = Annotated[
    str | None,
    typer.Option(
        metavar="FAMILY",
        help="Meta-train on it, by Ray, what the space asks for and no --meta gives.",
        autocompletion=complete_task,
    ),
]
FixStructure = Annotated[
    str | None,
    typer.Option(
        metavar="STUDY", help="Fix family, width and depth at those of its best student.", autocompletion=complete_study
    ),
]
NarrowStructure = Annotated[
    str | None,
    typer.Option(
        metavar="STUDY", help="Narrow family, width and depth to those on its front.", autocompletion=complete_study
    ),
]
FixStrategy = Annotated[
    str | None,
    typer.Option(
        metavar="STUDY",
        help="Fix learning rate, loss, pruning, ... at its best trial's.",
        autocompletion=complete_study,
    ),
]


@dataclass(frozen=True)
class EarlierFlags:
    """What a search is told of earlier studies that decide a part of its space."""

    fix_structure: FixStructure = None
    narrow_structure: NarrowStructure = None
    fix_strategy: FixStrategy = None

    def decided(self) -> Decided:
        """Return which study decides what."""
        from metasearch.search.earlier import Decided

        return Decided(structure=self.fix_structure, structure_range=self.narrow_structure, strategy=self.fix_strategy)


@dataclass(frozen=True)
class GoalFlags:
    """What a command is told of what a search is to reach."""

    objective: Annotated[
        list[str] | None, typer.Option(metavar="METRIC", help="Instead of the space's own; repeat.")
    ] = None
    constraint: Annotated[list[str] | None, typer.Option(help='Such as "model_bytes<=25kB"; repeat.')] = None


@dataclass(frozen=True)
class ChoiceFlags:
    """What a command is told of how a search chooses its trials, and which it ends early."""

    sampler: Annotated[str, typer.Option(help="transfer, tpe, gp, nsga2 or random.")] = "transfer"
    warm_start: WarmStartText = "auto"
    enqueue: Annotated[str | None, typer.Option(metavar="FILE", help="YAML: configurations to run first.")] = None
    early_stopping: Annotated[bool, typer.Option(help="Stop trials that trail others of their size.")] = False

    def enqueued(self) -> tuple[dict[str, Any], ...]:
        """Return the configurations to run first."""
        return () if self.enqueue is None else tuple(read_configurations(self.enqueue))


@dataclass(frozen=True)
class BudgetFlags:
    """What a command is told of what a new search may use."""

    trials: Annotated[int, typer.Option(help="Finished trials wanted, exactly.")] = 32
    timeout: Annotated[str | None, typer.Option(help="End the search after, for example, 90s, 30m or 2h.")] = None
    trial_timeout: Annotated[
        str | None, typer.Option(help="A trial whose own steps take longer has failed, hung or not.")
    ] = None
    gpu_hours: Annotated[
        float | None,
        typer.Option(
            help="End the search when its trials have used so many: each its share of a GPU from its begin to its "
            "end, lost and stopped ones, too. Final runs and controls come on top.",
        ),
    ] = None

    def budget(self, *, gpus_per_trial: float) -> Budget:
        """Return it as numbers. Raises InputError for GPU-hours of trials without a GPU."""
        if self.gpu_hours is not None and not gpus_per_trial:
            raise InputError("--gpu-hours", "needs --gpus-per-trial", self.gpu_hours)
        return Budget(
            trials=self.trials,
            timeout_s=seconds(self.timeout, place="--timeout"),
            trial_timeout_s=seconds(self.trial_timeout, place="--trial-timeout"),
            gpu_hours=self.gpu_hours,
        )


@dataclass(frozen=True)
class MoreFlags:
    """What a command is told of what a search is given beyond what its study says."""

    trials: Annotated[int | None, typer.Option(help="A new, larger number of finished trials.")] = None
    gpu_hours: Annotated[
        float | None, typer.Option(help="A new, larger number of GPU-hours: they add up over a study's drivers.")
    ] = None
    timeout: Annotated[
        str | None, typer.Option(help="End the search after, for example, 2h, which starts anew with each driver.")
    ] = None

    def more(self) -> More:
        """Return it as numbers."""
        return More(self.trials, seconds(self.timeout, place="--timeout"), self.gpu_hours)


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """What `launch` is told of its search; the order is that of the help."""

    space: Annotated[str, typer.Option(help="A preset or a YAML file.", autocompletion=complete_space)] = (
        "distill_compress"
    )
    name: Annotated[str | None, typer.Option(help="Of the study. Default: TASK-SPACE-NUMBER.")] = None
    budget: BudgetFlags
    resources: ResourceFlags
    device: Device = "auto"
    teacher: TeacherFlags
    goal: GoalFlags
    choice: ChoiceFlags
    start: StartFlags
    meta_family: MetaFamily = None
    earlier: EarlierFlags
    latency_from: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY[:DEVICE]",
            help="Predict latency_ms from what `metasearch bench --into STUDY` brought back.",
            autocompletion=complete_study,
        ),
    ] = None
    seed: Seed = 0
    task: TaskFlags
    artefacts: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="For weights; of any file system of fsspec's. Default: in the home folder."
        ),
    ] = None

    @property
    def stem(self) -> str:
        """What the name of the study begins with where none is given."""
        return f"{self.task.task}-{Path(self.space).stem}"

    def tasks(self) -> dict[str, str | None]:
        """Return the texts that name tasks, None for one that is not given, by their flags."""
        return {
            "TASK": self.task.task,
            "--unlabelled": self.task.unlabelled,
            "--source": self.start.source_task,
            "--meta-family": self.meta_family,
        }

    def options(self) -> Options:
        """Return the search as it is made from. Raises InputError or NotFoundError for what no flag may say."""
        from metasearch.search.space import load_space

        source = self.task.source(self.seed)
        budget = self.budget.budget(gpus_per_trial=self.resources.gpus_per_trial)
        space = load_space(self.space)
        from metasearch.search.prepare import Options  # last: torch takes its time

        return Options(
            source=source,
            space=space,
            **vars(budget),
            name=self.name,
            objectives=tuple(self.goal.objective or ()),
            constraints=tuple(self.goal.constraint or ()),
            sampler=self.choice.sampler,
            seed=self.seed,
            teacher=self.teacher.source(),
            device=self.device,
            early_stopping=self.choice.early_stopping,
            enqueue=self.choice.enqueued(),
            artefacts=self.artefacts,
            warm_start=self.choice.warm_start,
            init_from=self.start.init_from,
            meta=tuple(self.start.meta or ()),
            joint=self.start.joint(source),
            decided=self.earlier.decided(),
            latency_from=self.latency_from,
        )
