"""Students of a few images a class on one domain: where they may start, and how they learn from there.

The student is distilled, with labels beside, from a teacher that has seen all images of the domain but those held out.
BatchNorm's statistics are measured on the few images before every test: the running ones trail the weights in the first
steps, which would make every start but the best look slow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from metasearch.initial import SourceNetwork, initial_weights
from metasearch.measure import accuracy, predict
from metasearch.meta.artefacts import STUDENT_SHOTS, support_from
from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.meta_training import LoopSettings, accuracy_on, meta_train, outer_gradient
from metasearch.meta.method import Inner, Method, classification_loss
from metasearch.meta.methods import METHODS
from metasearch.models import NetworkSpec, build_network
from metasearch.objective import DistillationObjective
from metasearch.policies import Policy
from metasearch.prune import recalibrate_batchnorm
from metasearch.tasks import Task
from metasearch.tasks.domains import Domain
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes
from metasearch.teachers import train_teacher
from metasearch.training import Schedule, TrainingData, laid_out

STUDENT, TEACHER = NetworkSpec("convnet", width=8, depth=3), NetworkSpec("convnet", width=16, depth=4)
RANDOM, TEACHER_SLICE = "random", "teacher_slice"
ALPHA, TEMPERATURE, BATCH, WEIGHT_DECAY = 0.5, 4.0, 25, 1e-4
CPU = torch.device("cpu")

SHOTS, QUERIES, META_EXAMPLES, VALIDATION_EPISODES, VALIDATIONS = 5, 5, 300, 15, 4
"""META_EXAMPLES: about as many a step, whatever the ways."""
INNER = {"fomaml": Inner(3, 0.1), "reptile": Inner(6, 0.1)}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A domain with its teacher. few, held: the rows of each class that a student may learn from, and that judge it."""

    domain: Domain
    few: tuple[Tensor, ...]
    held: tuple[Tensor, ...]
    teacher: nn.Module
    logits: Tensor

    @classmethod
    def on(cls, domain: Domain, *, held: int, most: int) -> Pretrained:
        """Return the domain with a teacher of its images but the last `held` a class, at most `most` of each."""
        few = tuple(rows[:-held][:most] for rows in domain.rows_of_class)
        last = tuple(rows[-held:] for rows in domain.rows_of_class)
        task = task_of(domain, torch.cat(few), torch.cat(last))
        teacher = train_teacher(task, TEACHER, seed=0, device=CPU)
        logits = predict(teacher, domain.inputs, prepare=domain.normalisation)
        return cls(domain, few, last, teacher, logits)

    def accuracy(self) -> float:
        """Return the teacher's accuracy on the images that are held out."""
        rows = torch.cat(self.held)
        return accuracy(self.logits[rows], self.domain.labels[rows])

    def data(self, *, shots: int, seed: int) -> TrainingData:
        """Return so many images of each class, drawn by the seed, with what the teacher says; the others are its test.

        A class with fewer images gives all that it has.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.cat([own[torch.randperm(len(own), generator=generator)[:shots]] for own in self.few])
        task = task_of(self.domain, rows, torch.cat(self.held))
        return TrainingData(task, task.train.inputs, task.train.labels, {"logits": self.logits[rows][None]})


def task_of(domain: Domain, few: Tensor, held: Tensor) -> Task:
    """Return the task of these rows: few to train on, held as validation and as test split."""
    rows, lengths = torch.cat([few, held, held]), torch.tensor([len(few), len(held), len(held)])
    splits = torch.repeat_interleave(torch.arange(3), lengths)
    inputs, labels = domain.inputs[rows], domain.labels[rows]
    return replace(domain, inputs=inputs, labels=labels, splits=splits, teacher_logits=None).task()


@dataclass(frozen=True, eq=False)
class Learned:
    """A method with the meta-parameters that were the best on the validation domains."""

    method: Method
    meta: Parameters


def meta_learned(
    name: str, *, learn: Sequence[Domain], choose: Sequence[Domain], steps: int, ways: int, rotations: bool
) -> Learned:
    """Return a method of METHODS trained over episodes of the domains `learn`, by the loop of `metasearch meta-train`.

    rotations: whether a class turned by quarters is a class of its own; not in the episodes of `choose`.
    """
    shape = EpisodeShape(ways, SHOTS, QUERIES)
    count = max(1, META_EXAMPLES // (ways * (SHOTS + QUERIES)))
    network = build_network(STUDENT, input_shape=learn[0].input_shape, classes=ways, seed=0)
    method = METHODS[name](FunctionalNetwork.of(network), INNER.get(name, Inner()), classification_loss())

    def sample(generator: torch.Generator) -> EpisodeBatch:
        return sample_episodes(learn, shape=shape, count=count, generator=generator, rotations=rotations)

    found = meta_train(
        method.initial(),
        outer_gradient(method, sample),
        accuracy_on(method, choose, shape=shape, episodes=VALIDATION_EPISODES, steps=None, seed=0),
        settings=LoopSettings(steps, rate=2e-3, every=max(1, steps // VALIDATIONS)),
        generator=torch.Generator().manual_seed(0),
    )
    return Learned(method, found.parameters)


def started(
    name: str,
    task: Task,
    *,
    teacher: nn.Module,
    learned: Mapping[str, Learned],
    seed: int,
) -> nn.Module:
    """Return a student with the weights of a start: random, teacher_slice, or the key of a meta-learned one."""
    model = build_network(STUDENT, input_shape=task.input_shape, classes=task.classes, seed=seed)
    if name == TEACHER_SLICE:
        initial_weights(model, SourceNetwork(TEACHER, teacher, task.class_names), spec=STUDENT, task=task)
    elif name != RANDOM:
        support = support_from(task, shots=STUDENT_SHOTS, seed=seed)
        model.load_state_dict(learned[name].method.initialisation(learned[name].meta, support))
    return model


def curve(model: nn.Module, data: TrainingData, *, rate: float, at: Sequence[int], seed: int) -> list[float]:
    """Return the test accuracy in [0, 1] after each number of steps in `at`, ascending, at a constant learning rate."""
    task, model = data.task, laid_out(model)
    policies = Policy("constant", {"value": rate}), Policy("constant", {"value": TEMPERATURE})
    schedule = Schedule(*policies, epochs=1, batch_size=BATCH, weight_decay=WEIGHT_DECAY)
    objective = DistillationObjective("kd", ALPHA, task.input_shape)
    optimizer = schedule.new_optimizer(model)
    generator, batch_at = torch.Generator().manual_seed(seed), data.epoch(0)
    order, size = torch.empty(0, dtype=torch.int64), min(BATCH, len(data.labels))
    found = []
    for step in range(at[-1] + 1):
        if step in at:
            found.append(_test_accuracy(model, task))
        if len(order) < size:
            order = torch.randperm(len(data.labels), generator=generator)
        indices, order = order[:size], order[size:]
        inputs, teaching = batch_at(indices)
        loss = objective(model.train(), inputs, teaching, data.labels[indices], temperature=TEMPERATURE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return found


def _test_accuracy(model: nn.Module, task: Task) -> float:
    settled = copy.deepcopy(model)
    recalibrate_batchnorm(settled, task)
    return accuracy(predict(settled, task.test.inputs, prepare=task.normalisation), task.test.labels)


def steps_to(accuracies: np.ndarray, target: float, at: Sequence[int]) -> float:
    """Return the first of the steps `at` whose accuracy reaches the target, infinity where none does."""
    return next((float(step) for step, value in zip(at, accuracies, strict=True) if value >= target), float("inf"))
