"""The flags that several commands share, and what their texts mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_study, complete_task
from metasearch.errors import InputError

if TYPE_CHECKING:
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
SourceTask = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="TASK",
        help="Train on this task, too, by source_weight; of the same image size.",
        autocompletion=complete_task,
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
class ResourceFlags:
    """Where the trials of a search run, and what each gets."""

    workers: Workers = None
    threads: Threads = 1
    gpus_per_trial: GpusPerTrial = 0.0
    address: Address = None

    def check(self) -> None:
        """Raise InputError for GPUs that no trial would get, and an address of Ray's client. Loads no ray."""
        from metasearch.search.connect import check_address
        from metasearch.search.placement import check_fits_here, check_share

        check_share(self.gpus_per_trial)
        if self.address is None:
            check_fits_here(self.gpus_per_trial)
        else:
            check_address(self.address)

    def resources(self) -> Resources:
        """Return them as the search takes them."""
        from metasearch.search.runner import Resources

        return Resources(self.workers, self.threads, self.gpus_per_trial, self.address)


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are dataclasses are a flag a field, as Typer wants them.

    A field may be a dataclass itself; flags keep the order in which they are met.
    """

    @wraps(command)
    def told(**values: Any) -> None:
        command(**_grouped(command, values))

    # by name only: what must be given may then follow what need not
    named = [flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in _flags_of(command)]
    told.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]  # a function has it once it is set
    return told


def _parameters(group: Callable[..., Any]) -> list[tuple[inspect.Parameter, bool]]:
    """Return the parameters of a command or a dataclass, and whether each is a dataclass itself."""
    parameters = inspect.signature(group, eval_str=True).parameters.values()
    return [(each, isinstance(each.annotation, type) and is_dataclass(each.annotation)) for each in parameters]


def _flags_of(group: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    for parameter, nested in _parameters(group):
        if nested:
            yield from _flags_of(parameter.annotation)
        else:
            yield parameter


def _grouped(group: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command or a dataclass, whose flags have these values."""
    return {
        parameter.name: parameter.annotation(**_grouped(parameter.annotation, values))
        if nested
        else values[parameter.name]
        for parameter, nested in _parameters(group)
    }


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
