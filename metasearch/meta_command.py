"""`metasearch meta-train`: learn an initialisation or a policy over a family of tasks.

The result goes to stdout, progress to stderr. The file that it makes is given to `launch` and `run` with --meta.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metasearch.completion import complete_task
from metasearch.errors import InputError, StorageError
from metasearch.flags import AsJson, DataRoot, Download, ImageSize, Seed
from metasearch.parameters import META_INITS, POLICY_METHOD
from metasearch.spelling import hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from metasearch.meta.fine_tuning import Target
    from metasearch.meta.making import MetaRequest
    from metasearch.meta.meta_training import MetaProgress
    from metasearch.meta.policy_making import PolicyRequest
    from metasearch.tasks import TaskSource

METHOD_NAMES = (*META_INITS, POLICY_METHOD)


def meta_train(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help="TASK@groups, TASK@classes:SIZE, TASK@random:COUNT, TASK,TASK,...",
            autocompletion=complete_task,
        ),
    ],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHOD_NAMES)}.")] = "protonet",
    student: Annotated[str | None, typer.Option(metavar="SPEC", help="Such as convnet:width=16,depth=3.")] = None,
    ways: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Support examples of each class.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Of the outer loop. Default: 1000; 100 for a policy.")] = None,
    inner_steps: Annotated[int, typer.Option(help="Gradient steps on a support set.")] = 5,
    inner_lr: Annotated[float, typer.Option(help="Their learning rate.")] = 0.1,
    judged: Annotated[
        int | None, typer.Option(help="Held-out episodes (a policy: seeds a task) of the result.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Pretrained on each TASK; students learn to learn from it.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Train a student on it in the end, beside one from random weights.",
            autocompletion=complete_task,
        ),
    ] = None,
    target_epochs: Annotated[int, typer.Option(min=1, help="Of that training.")] = 10,
    target_max_train: Annotated[int | None, typer.Option(help="Training examples of the target, at most.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Copy the result there, for --meta.")] = None,
    start: Annotated[
        str | None, typer.Option("--continue", metavar="FILE", help="Train this one on, with the tasks of FAMILY.")
    ] = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    as_json: AsJson = False,
) -> None:
    """Learn over a family of tasks what a student starts from, or how it is trained; say how much that helps.

    Example: metasearch meta-train omniglot@groups --method protonet --shots 1 --image-size 28 --to start.safetensors
    """
    if method not in METHOD_NAMES:
        raise InputError("--method", f"must be one of {', '.join(METHOD_NAMES)} {hint(method, METHOD_NAMES)}", method)
    if method == POLICY_METHOD and target is not None:
        raise InputError(
            "--target", "is for initialisations: a policy is used with `run --meta` or `launch --meta`", target
        )
    from metasearch.tasks import TaskSource

    source = TaskSource(family, data_root=data_root, image_size=image_size, seed=seed, download=download)
    common: dict[str, Any] = {"family": family, "source": source, "seed": seed, "teacher": teacher, "start": start}
    common |= {name: value for name, value in (("student", student), ("steps", steps), ("judged", judged)) if value}
    console = _console()
    tell: Callable[[str], None] = partial(console.print, markup=False, soft_wrap=True)
    if method == POLICY_METHOD:
        from metasearch.meta.policy_making import PolicyRequest

        found = _policy(PolicyRequest(**common), tell)
    else:
        from metasearch.meta.making import MetaRequest

        request = MetaRequest(
            method=method, ways=ways, shots=shots, inner_steps=inner_steps, inner_lr=inner_lr, **common
        )
        on_target = None if target is None else replace(source, text=target, max_train=target_max_train)
        found = _initialisation(request, on_target, target_epochs, tell)
    if to is not None:
        _copy(Path(found["file"]), to)
        found["file"] = str(to)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in _lines(found):
        typer.echo(line)


def _initialisation(
    request: MetaRequest, target: TaskSource | None, epochs: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Make the artefact; return what is said of it."""
    from metasearch.meta.making import make_artefact

    task = None
    if target is not None:
        from metasearch.tasks import load_task

        task = load_task(target)  # before hours of training, not after
    artefact = make_artefact(request, progress=partial(_progress, tell, "accuracy", 1), tell=tell)
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


def _policy(request: PolicyRequest, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make the policy network; return what is said of it."""
    from metasearch.meta.policy_making import make_policy_network

    path, network = make_policy_network(request, progress=partial(_progress, tell, "loss", -1), tell=tell)
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


def _progress(tell: Callable[[str], None], measure: str, sign: int, report: MetaProgress) -> None:
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


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)
