"""`metasearch meta-train`: learn an initialisation or a policy over a family of tasks.

The result goes to stdout, progress to stderr. The file that it makes is given to `launch` and `run` with --meta.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_task
from metasearch.errors import InputError, StorageError
from metasearch.flags import AsJson, DataRoot, Download, ImageSize, Seed, with_flags
from metasearch.messages import tell
from metasearch.parameters import META_INITS, POLICY_METHOD
from metasearch.spelling import hint

if TYPE_CHECKING:
    from metasearch.meta.fine_tuning import Target
    from metasearch.meta.making import MetaRequest
    from metasearch.meta.meta_training import MetaProgress
    from metasearch.meta.policy_making import PolicyRequest
    from metasearch.tasks import TaskSource

METHOD_NAMES = (*META_INITS, POLICY_METHOD)


@dataclass(frozen=True)
class LearningFlags:
    """What is to be learned, and how."""

    method: Annotated[str, typer.Option(help=f"{', '.join(METHOD_NAMES)}.")] = "protonet"
    student: Annotated[str | None, typer.Option(metavar="SPEC", help="Such as convnet:width=16,depth=3.")] = None
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5
    shots: Annotated[int, typer.Option(help="Support examples of each class.")] = 5
    steps: Annotated[int | None, typer.Option(help="Of the outer loop. Default: 1000; 100 for a policy.")] = None
    inner_steps: Annotated[int, typer.Option(help="Gradient steps on a support set.")] = 5
    inner_lr: Annotated[float, typer.Option(help="Their learning rate.")] = 0.1
    judged: Annotated[int | None, typer.Option(help="Held-out episodes (a policy: seeds a task) of the result.")] = None
    teacher: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Pretrained on each TASK; students learn to learn from it.")
    ] = None

    def __post_init__(self) -> None:
        if self.method not in METHOD_NAMES:
            rule = f"must be one of {', '.join(METHOD_NAMES)} {hint(self.method, METHOD_NAMES)}"
            raise InputError("--method", rule, self.method)

    def initialisation(self, source: TaskSource, start: str | None) -> MetaRequest:
        """Return what asks for an initialisation. source: its text is the FAMILY. start: a file to train on from."""
        from metasearch.meta.making import MetaRequest

        return MetaRequest(
            method=self.method,
            ways=self.ways,
            shots=self.shots,
            inner_steps=self.inner_steps,
            inner_lr=self.inner_lr,
            **self._common(source, start),
        )

    def policy(self, source: TaskSource, start: str | None) -> PolicyRequest:
        """Return what asks for a policy, as `initialisation` does."""
        from metasearch.meta.policy_making import PolicyRequest

        return PolicyRequest(**self._common(source, start))

    def _common(self, source: TaskSource, start: str | None) -> dict[str, Any]:
        given = {"student": self.student, "steps": self.steps, "judged": self.judged}
        family = {"family": source.text, "source": source, "seed": source.seed}
        return {**family, "teacher": self.teacher, "start": start, **{n: v for n, v in given.items() if v is not None}}


@dataclass(frozen=True)
class TargetFlags:
    """What an initialisation is tried on in the end."""

    target: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Train a student on it in the end, beside one from random weights.",
            autocompletion=complete_task,
        ),
    ] = None
    target_epochs: Annotated[int, typer.Option(min=1, help="Of that training.")] = 10
    target_max_train: Annotated[int | None, typer.Option(help="Training examples of the target, at most.")] = None

    def source(self, family: TaskSource) -> TaskSource | None:
        """Return what the target is made from, read as the tasks of the family are; None where there is none."""
        return None if self.target is None else replace(family, text=self.target, max_train=self.target_max_train)


@dataclass(frozen=True)
class FamilyFlags:
    """The family of tasks that is learned from."""

    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help="TASK@groups, TASK@classes:SIZE, TASK@random:COUNT, TASK,TASK,...",
            autocompletion=complete_task,
        ),
    ]
    seed: Seed = 0
    data_root: DataRoot = None
    image_size: ImageSize = None
    download: Download = False

    def source(self) -> TaskSource:
        """Return what its tasks are made from; its text is the family."""
        from metasearch.tasks import TaskSource

        return TaskSource(
            self.family,
            data_root=self.data_root,
            image_size=self.image_size,
            seed=self.seed,
            download=self.download,
        )


@with_flags
def meta_train(
    *,
    learning: LearningFlags,
    target: TargetFlags,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Copy the result there, for --meta.")] = None,
    start: Annotated[
        str | None, typer.Option("--continue", metavar="FILE", help="Train this one on, with the tasks of FAMILY.")
    ] = None,
    family: FamilyFlags,
    as_json: AsJson = False,
) -> None:
    """Learn over a family of tasks what a student starts from, or how it is trained; say how much that helps.

    Example: metasearch meta-train omniglot@groups --method protonet --shots 1 --image-size 28 --to start.safetensors
    """
    if learning.method == POLICY_METHOD and target.target is not None:
        rule = "is for initialisations: a policy is used with `run --meta` or `launch --meta`"
        raise InputError("--target", rule, target.target)
    source = family.source()
    if learning.method == POLICY_METHOD:
        found = _policy(learning.policy(source, start))
    else:
        request = learning.initialisation(source, start)
        found = _initialisation(request, target.source(source), target.target_epochs)
    if to is not None:
        _copy(Path(found["file"]), to)
        found["file"] = str(to)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in _lines(found):
        typer.echo(line)


def _initialisation(request: MetaRequest, target: TaskSource | None, epochs: int) -> dict[str, Any]:
    """Make the artefact; return what is said of it."""
    from metasearch.meta.making import make_artefact

    task = None
    if target is not None:
        from metasearch.tasks import load_task

        task = load_task(target)  # before hours of training, not after
    artefact = make_artefact(request, progress=partial(_progress, "accuracy", 1), tell=tell)
    found = {
        "method": request.method,
        "student": request.student,
        "family": request.family,
        "file": str(artefact.path),
        "gain": artefact.record["gain"],
        "held_out": artefact.record["domains"]["test"],
    }
    if task is None:
        return found
    from metasearch.meta.fine_tuning import FineTuning, fine_tune_on
    from metasearch.teachers import TeacherSource, teacher_for

    teacher = (
        None if request.teacher is None else teacher_for(task, TeacherSource.of(request.teacher), seed=request.seed)
    )
    tell(f"target {task.name}: {len(task.train)} examples, {epochs} epochs from both starts")
    tuned = fine_tune_on(task, artefact, teacher=teacher, settings=FineTuning(epochs), seed=request.seed)
    return found | {"target": _target_record(task.name, tuned)}


def _target_record(name: str, tuned: Target) -> dict[str, Any]:
    return {"task": name, "meta_learned": list(tuned.meta_learned), "random": list(tuned.random)}


def _policy(request: PolicyRequest) -> dict[str, Any]:
    """Make the policy network; return what is said of it."""
    from metasearch.meta.policy_making import make_policy_network

    path, network = make_policy_network(request, progress=partial(_progress, "loss", -1), tell=tell)
    return {
        "method": POLICY_METHOD,
        "student": request.student,
        "family": request.family,
        "file": str(path),
        "gain": network.record["gain"],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    gain = found["gain"]
    if found["method"] == POLICY_METHOD:
        others = [name for name in gain["losses"] if name != POLICY_METHOD]
        lines = [
            f"policy: better than the best {' and the best '.join(others)} rate of the family on {gain['better']} of "
            f"{gain['judged']} held-out tasks"
        ]
    else:
        from metasearch.meta.held_out import Gain

        lines = [f"{found['method']} on the held-out {', '.join(found['held_out'])}: {Gain(**gain).text()}"]
    if "target" in found:
        target = found["target"]
        for name in ("meta_learned", "random"):
            curve = " ".join(f"{100 * value:.1f}" for value in target[name])
            lines.append(f"{target['task']} from {name.replace('_', '-')} weights, % by epoch: {curve}")
    return [*lines, found["file"]]


def _progress(measure: str, sign: int, report: MetaProgress) -> None:
    """Tell of a validation. measure: of the validation domains; sign: -1 where it is the smaller the better."""
    tell(
        f"step {report.step}/{report.steps}: outer loss {report.train_loss:.4f}, "
        f"{measure} on validation domains {sign * report.value:.4f}, best {sign * report.best:.4f}"
    )


def _copy(path: Path, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    except OSError as error:
        raise StorageError(f"{to}: cannot be written ({error}); the result lies in {path}") from error
