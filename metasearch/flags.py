"""The flags that several commands share, and what their texts mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_study, complete_task, complete_warm_start
from metasearch.errors import InputError

if TYPE_CHECKING:
    from metasearch.search.earlier import Decided
    from metasearch.search.runner import Resources
    from metasearch.tasks import TaskSource
    from metasearch.teachers import TeacherSource

TaskText = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="digits, fashion_mnist, folder:DIR, npz:FILE, table:FILE, ...",
        autocompletion=complete_task,
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="The study's name; `metasearch studies` lists them.", autocompletion=complete_study
    ),
]
StudyNames = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...", help="One or several; `metasearch studies` lists them.", autocompletion=complete_study
    ),
]
StorageUrl = Annotated[
    str | None, typer.Option("--storage", metavar="URL", help="Default: METASEARCH_STORAGE, else SQLite.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the data sets. Default: METASEARCH_DATA.")]
MaxTrain = Annotated[int | None, typer.Option(help="At most so many training examples, balanced by class.")]
ImageSize = Annotated[int | None, typer.Option(help="Resize images to this height and width.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download a missing data set.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave unreadable images out instead of refusing.")]
Augment = Annotated[str | None, typer.Option(help="none, shift or shift+flip. Default: what suits the task.")]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="More images, without labels: rest[:N] beyond --max-train, mixed[:N] from pairs, images:DIR or a TASK.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of data splits, sampler and trials.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TeacherTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        metavar="[SHARE*]SOURCE",
        help="convnet:width=24,depth=6, resnet18, googlenet, vit:width=64,depth=4, package.module:function, FILE.pt2, "
        "FILE.onnx, or FILE.npz with logits or labels; repeat for an ensemble.",
    ),
]
TeacherWeights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help=".safetensors, .pt or .pth, one for each --teacher; - for none (it is then trained), own for a function "
        "that returns a trained network.",
    ),
]
TeacherNormalisation = Annotated[
    str, typer.Option(help="Of its inputs: task, unit, imagenet, raw, or MEAN,.../STD,... of [0, 1] pixels.")
]
TeacherMean = Annotated[str, typer.Option(help="Of an ensemble: probabilities or logits.")]
TeacherLabelsOnly = Annotated[
    bool, typer.Option("--teacher-labels-only", help="Use only which class the teacher predicts.")
]
TeacherFeatures = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Its feature maps and embedding, first to last: layers of a network, nodes of a .pt2 graph, values of an "
        ".onnx graph; a ? lists them.",
    ),
]
WarmStartText = Annotated[
    str,
    typer.Option(
        "--warm-start",
        metavar="PRIORS",
        help="auto: all priors that fit (auto,-NAME: but one); none; or NAME,NAME of `metasearch priors`.",
        autocompletion=complete_warm_start,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="STUDY|FILE|URL",
        help="What student.init=prior_student starts from: the best student of a study, or a weights file.",
        autocompletion=complete_study,
    ),
]
MetaFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--meta",
        metavar="FILE|URL",
        help="What `metasearch meta-train` made, for student.init or kind network; repeat.",
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
SourceTask = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="TASK",
        help="Train on this task, too, by source_weight; of the same image size.",
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
Workers = Annotated[int | None, typer.Option(min=1, help="Trials at once. Default: one a CPU.")]
Threads = Annotated[int, typer.Option(min=1, help="CPUs, and torch threads, of a trial.")]
GpusPerTrial = Annotated[float, typer.Option(min=0, help="GPUs of a trial; fractions share a device.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster (auto: the one this machine is in). Default: local.")
]
SUBMIT = typer.Option("--submit", metavar="URL", help="Of a Ray dashboard, such as http://HEAD:8265: as a job there.")
SubmittedTo = Annotated[str, SUBMIT]
Submit = Annotated[str | None, SUBMIT]
Detach = Annotated[bool, typer.Option("--detach", help="With --submit: do not wait for the job's end.")]


@dataclass(frozen=True)
class TaskFlags:
    """What a command is told of its task."""

    task: TaskText
    data_root: DataRoot = None
    max_train: MaxTrain = None
    image_size: ImageSize = None
    download: Download = False
    skip_corrupt: SkipCorrupt = False
    augment: Augment = None
    unlabelled: Unlabelled = None

    def source(self, seed: int) -> TaskSource:
        """Return what the task is made from. seed: of its splits and subsets."""
        from metasearch.tasks import TaskSource

        return TaskSource(
            text=self.task,
            data_root=self.data_root,
            max_train=self.max_train,
            image_size=self.image_size,
            seed=seed,
            download=self.download,
            skip_corrupt=self.skip_corrupt,
            augment=self.augment,
            unlabelled=self.unlabelled,
        )


@dataclass(frozen=True)
class TeacherFlags:
    """What a command is told of the task's teacher."""

    teacher: TeacherTexts = None
    teacher_weights: TeacherWeights = None
    teacher_normalisation: TeacherNormalisation = "task"
    teacher_mean: TeacherMean = "probabilities"
    teacher_labels_only: TeacherLabelsOnly = False
    teacher_features: TeacherFeatures = None

    def source(self) -> TeacherSource | None:
        """Return the teacher, None where none is named; raises InputError where the flags do not go together."""
        from metasearch.teachers import teacher_from_flags

        return teacher_from_flags(
            self.teacher or (),
            weights=self.teacher_weights or (),
            normalisation=self.teacher_normalisation,
            mean=self.teacher_mean,
            labels_only=self.teacher_labels_only,
            features=self.teacher_features,
        )


@dataclass(frozen=True)
class StartFlags:
    """What a command is told of what students start from, and of a source task to train on beside their own."""

    init_from: InitFrom = None
    meta: MetaFiles = None
    source_task: SourceTask = None

    def joint(self, target: TaskSource) -> TaskSource | None:
        """Return the source task, read as the target is but whole; None where there is none."""
        text = self.source_task
        return None if text is None else replace(target, text=text, max_train=None, augment=None, unlabelled=None)


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
class Budget:
    """What a new search may use; None: as much as it needs. Raises InputError for a limit that leaves it nothing."""

    trials: int
    timeout_s: float | None
    trial_timeout_s: float | None
    gpu_hours: float | None

    def __post_init__(self) -> None:
        limits = {
            "--timeout": self.timeout_s,
            "--trial-timeout": self.trial_timeout_s,
            "--gpu-hours": self.gpu_hours,
        }
        for place, limit in limits.items():
            if limit is not None and not limit > 0:
                raise InputError(place, "must be above 0", limit)


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
class ResourceFlags:
    """Where the trials of a search run, and what each gets."""

    workers: Workers = None
    threads: Threads = 1
    gpus_per_trial: GpusPerTrial = 0.0
    address: Address = None

    def check(self) -> None:
        """Raise InputError for GPUs that no trial would get. Loads no ray."""
        from metasearch.search.placement import check_fits_here, check_share

        check_share(self.gpus_per_trial)
        if self.address is None:
            check_fits_here(self.gpus_per_trial)

    def resources(self) -> Resources:
        """Return them as the search takes them."""
        from metasearch.search.runner import Resources

        return Resources(self.workers, self.threads, self.gpus_per_trial, self.address)


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are dataclasses are a flag a field, as Typer wants them."""
    groups: dict[str, type[Any]] = {}
    flags: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            flags += inspect.signature(group, eval_str=True).parameters.values()
        else:
            flags.append(parameter)

    @wraps(command)
    def told(**values: Any) -> None:
        grouped = {name: g(**{f.name: values.pop(f.name) for f in fields(g)}) for name, g in groups.items()}
        command(**values, **grouped)

    # by name only: what must be given may then follow what need not
    named = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in flags]
    told.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]  # a function has it once it is set
    return told


def read_configurations(path: str) -> list[dict[str, Any]]:
    """Return the configurations of a YAML file: one mapping of dotted paths, or a list of them.

    Raises NotFoundError for one that cannot be read, InputError for one that holds something else.
    """
    from metasearch.search.strict_yaml import load_yaml, read_text

    loaded = load_yaml(read_text(path), place=path)
    found = loaded if isinstance(loaded, list) else [loaded]
    for position, config in enumerate(found):
        if not isinstance(config, dict):
            raise InputError(f"{path}: [{position}]", "must map dotted parameters to values", config)
    return found


def seconds(text: str | None, *, place: str) -> float | None:
    """Return the seconds that a text such as 90s, 30m or 2h means, None for none. Raises InputError at the place."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if match is None:
        raise InputError(place, "must be a number with s, m or h, such as 30m", text)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
