"""From a family to a policy network: its few-example tasks, its training, and what it gains on held-out domains.

Symbols: T tasks; a task is a domain with some of its examples and a number of optimizer steps to learn it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metasearch.errors import InputError, StorageError
from metasearch.meta.artefacts import artefact_path, family_digest, file_digest, require_counts
from metasearch.meta.making import Tell
from metasearch.meta.meta_training import LoopSettings, MetaProgress, meta_train
from metasearch.meta.policy_network import PolicyNetwork, load_policy_network, save_policy_network
from metasearch.meta.policy_training import (
    best_peaks,
    family_scores,
    parameters_of,
    policies_of,
    policy_gradient,
    policy_value,
    starting_network,
    with_weights,
)
from metasearch.meta.short_training import PolicyTask, ShortTraining, Value, few_examples, outer_loss
from metasearch.models import NetworkSpec
from metasearch.parameters import POLICY_METHOD
from metasearch.policies import Policy
from metasearch.tasks import Task, TaskSource
from metasearch.tasks.domains import Domain, DomainSplit, split_domains
from metasearch.tasks.families import load_family
from metasearch.teachers import TeacherSource, teacher_for

PEAKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates among which the best constant and the best cosine are chosen on the family."""
DRAWN = ((100, 500), (50, 150))
"""From where to where the training examples and the optimizer steps of the family's tasks are drawn, log-uniformly."""
VALIDATION_SEEDS = (1_000_001,)
VALIDATIONS = 10


@dataclass(frozen=True)
class PolicyRequest:
    """A policy network that is to be meta-trained; JSON-ready.

    family: a FAMILY text. steps: of the outer loop, each with `pairs` antithetic pairs of trainings. tasks_each: tasks
    that are drawn of every domain. teacher: of every domain; the network then learns the temperature, too. start: a
    policy network to train on, with the tasks of this family. judged: seeds of the comparison on held-out domains.
    """

    family: str
    student: str = "convnet:width=8,depth=3"
    source: TaskSource = field(default_factory=lambda: TaskSource(""))
    optimizer: str = "adamw"
    steps: int = 100
    pairs: int = 8
    tasks_each: int = 3
    sigma: float = 0.1
    rate: float = 0.05
    alpha: float = 0.9
    seed: int = 0
    judged: int = 3
    teacher: str | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        NetworkSpec.parse(self.student, place="--student")
        require_counts(self, ("steps", "pairs", "tasks_each", "judged"))
        if self.start is not None and (found := load_policy_network(Path(self.start)).optimizer) != self.optimizer:
            raise InputError("--continue", f"must be a policy network for {self.optimizer}", found)

    @property
    def training(self) -> ShortTraining:
        """The trainings of the inner loop."""
        alpha = self.alpha if self.teacher is not None else 0.0
        return ShortTraining(NetworkSpec.parse(self.student), optimizer=self.optimizer, alpha=alpha)


@dataclass(frozen=True)
class Comparison:
    """On how many of the held-out tasks the network's loss was lower than the baselines', over the same seeds.

    losses: mean outer loss by task, of network, best constant and best cosine; accuracies: likewise.
    """

    tasks: tuple[str, ...]
    losses: dict[str, tuple[float, ...]]
    accuracies: dict[str, tuple[float, ...]]

    @property
    def better(self) -> int:
        """The number of tasks on which the network beats both."""
        others = zip(*(self.losses[name] for name in self.losses if name != POLICY_METHOD), strict=True)
        return sum(own < min(rest) for own, rest in zip(self.losses[POLICY_METHOD], others, strict=True))

    def record(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {**asdict(self), "better": self.better, "judged": len(self.tasks)}


def policy_tasks(domains: Sequence[Domain], *, each: int, seed: int, teacher: str | None = None) -> list[PolicyTask]:
    """Return `each` tasks of every domain, with examples and steps drawn as DRAWN says."""
    rng = np.random.default_rng(seed)
    tasks = []
    for domain in domains:
        whole = domain.task()
        for index in range(each):
            examples, steps = (round(math.exp(rng.uniform(math.log(low), math.log(high)))) for low, high in DRAWN)
            few = few_examples(whole, examples=max(examples, whole.classes), seed=seed + index)
            tasks.append(PolicyTask(few, steps, None if teacher is None else _logits(few, teacher, seed)))
    return tasks


def _logits(task: Task, teacher: str, seed: int) -> torch.Tensor:
    return teacher_for(task, TeacherSource.of(teacher), seed=seed).logits["train"][0]


def find_policy_network(request: PolicyRequest) -> Path | None:
    """Return the file of a request in the cache, None where it is still to be made."""
    path = _found(request)[2]
    return path if path.is_file() else None


def _found(request: PolicyRequest) -> tuple[DomainSplit, dict[str, Any], Path]:
    """Return the domains of a request, all that the outcome depends on, and where its file belongs."""
    domains = split_domains(load_family(request.family, source=request.source), seed=request.seed)
    described: dict[str, Any] = {
        **{name: value for name, value in asdict(request).items() if name not in ("family", "source", "start")},
        "family": family_digest(domains),
    }
    if request.start is not None:
        described["start"] = file_digest(request.start)
    return domains, described, artefact_path(POLICY_METHOD, described)


def make_policy_network(
    request: PolicyRequest,
    *,
    progress: Callable[[MetaProgress], None] | None = None,
    tell: Tell = lambda line: None,
) -> tuple[Path, PolicyNetwork]:
    """Return the policy network of a request and its file: from the cache, else meta-trained.

    It begins as a cosine from the peak that is best for tasks of such features, or as `start`. Raises as
    `making.make_artefact` does.
    """
    domains, described, path = _found(request)
    if path.is_file():
        tell(f"{POLICY_METHOD}: found in the cache, {path}")
        return path, load_policy_network(path)
    parts = [
        policy_tasks(part, each=request.tasks_each, seed=request.seed, teacher=request.teacher)
        for part in (domains.train, domains.validation, domains.test)
    ]
    network, comparison = train_policy_network(
        *parts,
        request=request,
        checkpoint=path.with_suffix(".checkpoint"),
        identity=path.name,
        progress=progress,
        tell=tell,
    )
    record = {**described, "fingerprint": described["family"], "family": request.family, "gain": comparison.record()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_policy_network(replace(network, record=record), path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error})") from error
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return path, load_policy_network(path)


def train_policy_network(
    train: Sequence[PolicyTask],
    validation: Sequence[PolicyTask],
    test: Sequence[PolicyTask],
    *,
    request: PolicyRequest,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Callable[[MetaProgress], None] | None = None,
    tell: Tell = lambda line: None,
) -> tuple[PolicyNetwork, Comparison]:
    """Return the network trained on the first tasks and best on the second, compared on the third."""
    training = request.training
    baselines, peaks = baselines_on(train, training=training, seed=request.seed)
    shown = ", ".join(f"{name} from {policy(0.0):g}" for name, policy in baselines.items())
    tell(f"{POLICY_METHOD}: {len(train)} tasks to learn from; best on them: {shown}")
    outputs = ("learning_rate", "temperature") if request.teacher is not None else ("learning_rate",)
    start = (
        starting_network(train, peaks=peaks, temperature=4.0, training=training, seed=request.seed, outputs=outputs)
        if request.start is None
        else load_policy_network(Path(request.start))
    )
    found = meta_train(
        parameters_of(start),
        policy_gradient(start, train, training=training, sigma=request.sigma, pairs=request.pairs),
        policy_value(start, validation, training=training, seeds=VALIDATION_SEEDS),
        settings=LoopSettings(request.steps, rate=request.rate, every=max(1, request.steps // VALIDATIONS)),
        generator=torch.Generator().manual_seed(request.seed),
        checkpoint=checkpoint,
        identity=identity,
        progress=progress,
    )
    network = with_weights(start, found.parameters)
    seeds = range(2_000_000, 2_000_000 + request.judged)
    return network, compare(network, baselines, test, training=training, seeds=seeds)


def baselines_on(
    tasks: Sequence[PolicyTask], *, training: ShortTraining, seed: int
) -> tuple[dict[str, Policy], list[float]]:
    """Return the best constant and the best cosine of PEAKS on all tasks together, and each task's own best cosine's
    peak."""
    candidates = {
        "constant": [Policy("constant", {"value": peak}) for peak in PEAKS],
        "cosine": [Policy("cosine", {"start": peak}) for peak in PEAKS],
    }
    scores = {
        name: family_scores(policies, tasks, temperature=_four, training=training, seeds=(seed,))
        for name, policies in candidates.items()
    }
    best = {name: policies[int(scores[name].mean(axis=1).argmin())] for name, policies in candidates.items()}
    return best, best_peaks(PEAKS, scores["cosine"])


def compare(
    network: PolicyNetwork,
    baselines: dict[str, Policy],
    tasks: Sequence[PolicyTask],
    *,
    training: ShortTraining,
    seeds: Sequence[int],
) -> Comparison:
    """Return how the network does on held-out tasks beside fixed policies; all with the same seeds."""
    losses: dict[str, list[float]] = {POLICY_METHOD: [], **{name: [] for name in baselines}}
    accuracies: dict[str, list[float]] = {name: [] for name in losses}
    for task in tasks:
        policies: dict[str, tuple[Value, Value]] = {name: (policy, _four) for name, policy in baselines.items()}
        policies[POLICY_METHOD] = policies_of(network, task)
        for name, (rate, temperature) in policies.items():
            found = [outer_loss(task, rate, temperature, training=training, seed=seed) for seed in seeds]
            losses[name].append(float(np.mean([loss for loss, _ in found])))
            accuracies[name].append(float(np.mean([accuracy for _, accuracy in found])))
    return Comparison(
        tuple(f"{task.task.name}, {len(task.task.train)} examples, {task.steps} steps" for task in tasks),
        {name: tuple(values) for name, values in losses.items()},
        {name: tuple(values) for name, values in accuracies.items()},
    )


def _four(progress: float) -> float:
    """Return the temperature where nothing is said of it."""
    return 4.0
