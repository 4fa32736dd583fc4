"""What a teacher knows of a task: its logits on every split, computed once and cached, or read from a file.

Symbols: N examples, C classes, V augmented views, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.initial import SourceNetwork
from metasearch.measure import accuracy, expected_calibration_error
from metasearch.models import NetworkSpec
from metasearch.objective import needed_features
from metasearch.records import EpochReport
from metasearch.tasks import Task
from metasearch.teachers.logits_file import label_logits, read_logits
from metasearch.teachers.network_member import FEATURE_GROUPS, SPLITS, NetworkMember, show_features
from metasearch.teachers.opening import open_teacher
from metasearch.teachers.recipe import default_teacher
from metasearch.teachers.source import TeacherSource


@dataclass(frozen=True)
class Teacher:
    """A teacher's knowledge of one task: logits, and how good it is.

    logits: `train` (1, N, C); `views` (V, N, C) on the augmented views, empty where none were asked for; `validation`
    and `test` (N, C). metrics: val_accuracy, test_accuracy; val_ece unless it gives labels alone; parameters and macs,
    of all members, where they are known. seed: of its training and of the views. labels_only: whether the logits say
    which class is predicted, by a margin of LABEL_MARGIN, and nothing else. features: those that were asked for, by
    split and name (`train.hint`, `views.embedding`), (V, N, ...) each; of the first member that shows any.
    network: where a student is to start from it. N in `train` and `views` counts the train split, then the unlabelled
    inputs.
    """

    spec: str
    seed: int
    logits: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    labels_only: bool = False
    features: Mapping[str, Tensor] = field(default_factory=dict)
    network: SourceNetwork | None = None

    def teaching(self, split: str, *, loss: str) -> dict[str, Tensor]:
        """Return what a loss reads of the teacher on `train` or `views`, (V, N, ...) each, by name.

        Raises InputError where the teacher was not asked for it, or has it not.
        """
        if len(self.logits[split]) == 0:
            raise InputError("augment", "needs the teacher's logits on augmented views: teacher_for(..., views=True)")
        prefix = f"{split}."
        own = {name.removeprefix(prefix): values for name, values in self.features.items() if name.startswith(prefix)}
        return {"logits": self.logits[split], **{name: own[name] for name in needed_features(loss, available=own)}}

    @property
    def feature_names(self) -> set[str]:
        """The features that a loss may read, such as `hint`."""
        return {name.partition(".")[2] for name in self.features}


def teacher_for(
    task: Task,
    source: TeacherSource | NetworkSpec | str | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    views: bool = False,
    features: Collection[str] = (),
    network: bool = False,
    progress: Callable[[EpochReport], None] | None = None,
) -> Teacher:
    """Return the task's teacher: opened, or trained (member i with seed + i), or read from the cache.

    source: None for the default teacher. views: whether logits on augmented views are needed. features: the
    losses whose features are needed, where the teacher shows them. network: whether its network is needed, where that
    is of one of our families (of an ensemble, the first that is). progress: called after every training epoch.
    Raises InputError for a teacher that does not fit the task, NotFoundError for a missing file.
    """
    source = TeacherSource.of(default_teacher(task) if source is None else source).absolute()
    views = views and bool(task.augmentation)
    _check_views(source, views=views)
    networks = [
        NetworkMember(
            member, task, source, seed=seed + index, view_seed=seed, device=torch.device(device), progress=progress
        )
        for index, member in enumerate(source.members)
    ]
    known = [
        read_logits(each.member, task)
        if each.member.is_logits
        else each.known(views=views, groups=() if source.labels_only else _groups_of(features))
        for each in networks
    ]
    shares = [member.share for member in source.members]
    logits = {
        name: ensemble_logits([k.logits[name] for k in known], shares, mean=source.mean)
        for name in (*SPLITS, *(["views"] if views else []))
    }
    only_labels = all(k.labels_only for k in known)
    metrics: dict[str, float] = {
        "val_accuracy": accuracy(logits["validation"], task.validation.labels),
        "test_accuracy": accuracy(logits["test"], task.test.labels),
    }
    if not only_labels:
        metrics["val_ece"] = expected_calibration_error(logits["validation"], task.validation.labels)
    for name in ("parameters", "macs"):
        counts = [k.counts.get(name) for k in known]
        if None not in counts:
            metrics[name] = sum(count for count in counts if count is not None)
    if source.labels_only or only_labels:
        logits = {name: label_logits(tensor.argmax(dim=-1), task.classes) for name, tensor in logits.items()}
    logits = {"views": torch.empty(0)} | logits | {"train": logits["train"][None]}
    shown = next((k.features for k in known if k.features), {})
    opened = next((each.source_network() for each in networks if network and each.member is source.open_member), None)
    return Teacher(str(source), seed, logits, metrics, source.labels_only or only_labels, shown, opened)


def check_teacher(source: TeacherSource, task: Task, *, views: bool) -> set[str]:
    """Raise what `teacher_for` would raise for a teacher that is not there or does not fit, without training any.

    Returns the names of the features that it can show, such as `hint`.
    """
    source = source.absolute()
    _check_views(source, views=views and bool(task.augmentation))
    names: set[str] = set()
    for member in source.members:
        if member.is_logits:
            read_logits(member, task)
            continue
        normalisation, features = source.normalisation, source.features
        network = open_teacher(member, task, normalisation=normalisation, train=False, features=features)
        if not names and not source.labels_only:
            names = set(show_features(network, task.train.inputs[:1], FEATURE_GROUPS))
    return names


def ensemble_logits(logits: Sequence[Tensor], shares: Sequence[float], *, mean: str) -> Tensor:
    """Return the logits (..., C) of an ensemble of M members.

    mean `logits`: sum_m share_m * logits_m; `probabilities`: log sum_m share_m * softmax(logits_m), whose softmax is
    the mean of the members' probabilities. Shares are divided by their sum; a single member is returned as it is.
    """
    if len(logits) == 1:
        return logits[0]
    weights = torch.tensor(shares, dtype=torch.float32) / sum(shares)
    stacked = torch.stack(list(logits), dim=-1)  # (..., C, M)
    if mean == "logits":
        return stacked @ weights
    return (stacked.log_softmax(dim=-2) + weights.log()).logsumexp(dim=-1)


def _groups_of(losses: Collection[str]) -> list[str]:
    """Return the groups of features that the losses read."""
    every = dict.fromkeys(FEATURE_GROUPS)
    read = {group for loss in losses for group in needed_features(loss, available=every)}
    return [group for group in FEATURE_GROUPS if group in read]


def _check_views(source: TeacherSource, *, views: bool) -> None:
    for member in source.members:
        if views and member.is_logits:
            raise InputError(
                member.place, "has no logits of augmented images: needs --augment none, or augment: false in the space"
            )
