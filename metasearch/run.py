"""The state of one pipeline run: the student as it stands, and what was recorded on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metasearch.configuration import Configuration
from metasearch.errors import InputError
from metasearch.hypergradient import Hypergradient
from metasearch.initial import find_source, initial_weights
from metasearch.measure import accuracy, count_macs, count_parameters, predict
from metasearch.meta.artefacts import proposed_for
from metasearch.meta.policy_network import PolicyNetwork, check_network, load_policy_network, resolved
from metasearch.models import FAMILIES, NetworkSpec, build_network
from metasearch.models.lowered import LoweredNetwork
from metasearch.models.module_network import ModuleNetwork, deployable, require_int8
from metasearch.objective import DistillationObjective, JointObjective
from metasearch.parameters import META_INITS, POLICY_METHOD
from metasearch.policies import Policy
from metasearch.prune import recalibrate_batchnorm
from metasearch.quantize import QuantizedNetwork
from metasearch.records import EpochReport, StageResult
from metasearch.tasks import Task
from metasearch.teachers import VIEWS, Teacher
from metasearch.training import Schedule, TrainingData, train, validation_accuracy

Deployed = LoweredNetwork | QuantizedNetwork | ModuleNetwork


@dataclass
class Run:
    """The state of one pipeline run: the network as it stands, and what was recorded on the way.

    initial: files of weights by the name of the `student.init` that starts from them, and of a policy network under
    POLICY_METHOD. source: the task that a joint training is on, too. tuned: the float network that was quantized, where
    quantization-aware fine-tuning has changed it.
    """

    task: Task
    configuration: Configuration
    teacher: Teacher | None
    seed: int
    device: torch.device
    initial: Mapping[str, Path] = field(default_factory=dict)
    source: Task | None = None
    stages: list[StageResult] = field(default_factory=list)
    curve: list[EpochReport] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    tuned: LoweredNetwork | None = None

    def __post_init__(self) -> None:
        c = self.configuration
        for name, policy in (("learning_rate", c.learning_rate), ("temperature", c.temperature)):
            check_network(policy, self.policy_network, name, optimizer=c.optimizer)
        self.spec = NetworkSpec(c.family, width=round(c.width(0.0)), depth=c.depth)
        self._check_source()
        self.model = self._initialised(
            build_network(self.spec, input_shape=self.task.input_shape, classes=self.task.classes, seed=self.seed)
        ).to(self.device)
        self.validation_logits = torch.empty(0)
        if c.logit_standardization and self.task.classes == 2:
            raise InputError("logit_standardization", "needs three classes or more: of two it leaves no gradient", True)
        if c.quantize != "none" and c.family not in FAMILIES:
            require_int8(self.deployable())  # before a network of the user's is trained that int8 cannot take
        self.generator = torch.Generator().manual_seed(self.seed)
        self.distill_epochs = c.epochs if c.compresses else c.epochs + c.fine_tune_epochs

    def _check_source(self) -> None:
        weight = self.configuration.source_weight
        if weight > 0 and self.source is None:
            raise InputError("source_weight", "needs a source task: --source TASK", weight)
        if self.source is not None:
            check_alike(self.source, self.task)

    def _initialised(self, model: nn.Module) -> nn.Module:
        """Return the random student with the weights that it starts from; details["initialised"] is their share."""
        init = self.configuration.init
        if init == "random":
            return model
        network = None if self.teacher is None else self.teacher.network
        source = find_source(init, teacher=network, files=self.initial, task=self.task)
        if init in META_INITS:
            source = proposed_for(self.task, source, self.initial[init])
        share = initial_weights(model, source, spec=self.spec, task=self.task)
        if share < 1 or self.spec != source.spec:
            recalibrate_batchnorm(model, self.task)
        self.details["initialised"] = share
        return model

    def train(
        self,
        stage: str,
        epochs: int,
        reshape: Callable[[nn.Module, int], nn.Module] | None,
        *,
        scale: float = 1.0,
        after_step: Callable[[nn.Module], None] | None = None,
        features: bool = True,
        joint: bool = False,
    ) -> Iterator[EpochReport]:
        """Train self.model. scale: of the learning rate. features, joint: whether a loss of features, of the source."""
        c = self.configuration
        adaptive = c.learning_rate.kind == "hypergradient"
        rate = self.policy("learning_rate", c.learning_rate, epochs=epochs)
        schedule = Schedule(
            learning_rate=Hypergradient.of(c.learning_rate, scale=scale) if adaptive else lambda p: scale * rate(p),
            temperature=self.policy("temperature", c.temperature, epochs=epochs),
            epochs=epochs,
            batch_size=c.batch_size,
            optimizer=c.optimizer,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )
        objective = self.objective(features=features)
        started = time.perf_counter()
        done = len(self.curve)
        for model, epoch in train(
            self.model,
            self.training_data,
            objective=self._jointly(objective) if joint else objective,
            schedule=schedule,
            generator=self.generator,
            stage=stage,
            reshape=reshape,
            after_step=after_step,
        ):
            self.model = model
            planned = max(c.epochs + c.fine_tune_epochs, done + epochs)
            self.curve.append(replace(epoch, epoch=done + epoch.epoch, epochs=planned))
            yield self.curve[-1]
        self.stages.append(StageResult(stage, time.perf_counter() - started, self.network_metrics(self.model)))

    @cached_property
    def policy_network(self) -> PolicyNetwork | None:
        """The policy network that was given, if any."""
        return load_policy_network(self.initial[POLICY_METHOD]) if POLICY_METHOD in self.initial else None

    def policy(self, name: str, policy: Policy, *, epochs: int) -> Callable[[float], float]:
        """Return a policy, or what the policy network says in its place for so many epochs of this run's batches."""
        c, examples = self.configuration, len(self.training_data.labels)
        return resolved(
            policy,
            name,
            network=self.policy_network,
            task=self.task,
            steps=epochs * (examples // min(c.batch_size, examples)),
            optimizer=c.optimizer,
        )

    def deployable(self) -> LoweredNetwork | ModuleNetwork:
        """Return the network as it stands in the form in which it can be deployed, in floats."""
        return deployable(self.model, normalisation=self.task.normalisation, input_shape=self.task.input_shape)

    def objective(self, *, features: bool) -> DistillationObjective:
        """Return what the configuration trains for. features: whether its loss of features, if any, takes part."""
        c = self.configuration
        return DistillationObjective(
            loss=c.loss,
            features=features,
            alpha=c.alpha,
            input_shape=self.task.input_shape,
            label_smoothing=c.label_smoothing,
            feature_weight=c.feature_weight,
            standardized=c.logit_standardization,
            shapes={name: tuple(values.shape[2:]) for name, values in self.training_data.teaching.items()},
            seed=self.seed,
        )

    def _jointly(self, target: DistillationObjective) -> DistillationObjective | JointObjective:
        """Return the objective beside that of the source task, itself where the source has no weight."""
        c = self.configuration
        if c.source_weight == 0 or self.source is None:
            return target
        return JointObjective(
            target,
            TrainingData.without_teacher(self.source, device=self.device),
            source_weight=c.source_weight,
            target_weight=c.target_weight,
            batch_size=min(c.batch_size, len(self.source.train)),
            generator=torch.Generator().manual_seed(self.seed),
            seed=self.seed,
        )

    @cached_property
    def training_data(self) -> TrainingData:
        """The train split (and the unlabelled images) on the device, with what the teacher says of them."""
        task, augmented = self.task, self.configuration.augment and bool(self.task.augmentation)
        if self.teacher is None or self.configuration.alpha == 0:
            return TrainingData.without_teacher(
                task, device=self.device, views=VIEWS if augmented else 0, seed=self.seed
            )
        taught = task.taught
        teaching = self.teacher.teaching("views" if augmented else "train", loss=self.configuration.loss)
        return TrainingData(
            task,
            taught.inputs.to(self.device),
            taught.labels.to(self.device),
            {name: values.to(self.device) for name, values in teaching.items()},
            augmented,
            self.teacher.seed,
        )

    def validate(self, network: Deployed) -> float:
        """Keep the logits of the validation split; return their accuracy."""
        self.validation_logits = predict(network, self.task.validation.inputs, device=self.device)
        return accuracy(self.validation_logits, self.task.validation.labels)

    def network_metrics(self, model: nn.Module) -> dict[str, float]:
        """Return what is recorded of the network after every stage."""
        return {
            "val_accuracy": validation_accuracy(model, self.task, device=self.device),
            "parameters": count_parameters(model),
            "macs": count_macs(model, self.task.input_shape),
        }


def check_alike(source: Task, task: Task) -> None:
    """Raise InputError unless the source of a joint training has the task's inputs."""
    if source.input_shape != task.input_shape:
        raise InputError(
            f"--source {source.name}", f"must have the task's inputs {task.input_shape}", str(source.input_shape)
        )
