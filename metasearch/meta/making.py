"""From a family to a meta-learned file: domains, meta-training, held-out gain; made once, found in the cache after.

Symbols: N ways, K shots, T episodes a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metasearch.errors import InputError
from metasearch.meta.artefacts import (
    Artefact,
    artefact_path,
    bound_method,
    family_digest,
    file_digest,
    read_artefact,
    require_counts,
    write_artefact,
)
from metasearch.meta.functional import Parameters
from metasearch.meta.held_out import held_out_gain
from metasearch.meta.meta_training import LoopSettings, MetaProgress, accuracy_on, meta_train, outer_gradient
from metasearch.meta.method import Inner, classification_loss
from metasearch.meta.methods import METHODS
from metasearch.models import NetworkSpec
from metasearch.spelling import hint
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.domains import Domain, DomainSplit, split_domains, whole_domain
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes
from metasearch.tasks.families import Member, load_family, load_member, parse_family
from metasearch.tasks.splits import SPLITS
from metasearch.teachers import TeacherSource, teacher_for

VALIDATION_EPISODES = 40
VALIDATIONS, LEAST_BETWEEN = 20, 10
"""How often a run is validated, at most, and the least number of steps between; each time a checkpoint is written."""


@dataclass(frozen=True)
class MetaRequest:
    """What is to be meta-learned; JSON-ready, so that another process can make it.

    family: a FAMILY text. source: data root, image size and the like of its tasks; its text is not read. steps: of the
    outer loop, with `episodes` episodes each. inner_steps, inner_lr: of the inner loop, and inner_steps those of the
    random weights that it is compared with. alpha, temperature: of the distillation in both loops, where there is a
    teacher, which is pretrained on every whole TASK of the family. start: a file to train on from.
    Raises InputError for a value out of range.
    """

    family: str
    method: str
    student: str = "convnet:width=16,depth=3"
    source: TaskSource = field(default_factory=lambda: TaskSource(""))
    ways: int = 5
    shots: int = 5
    queries: int = 10
    steps: int = 1000
    episodes: int = 4
    inner_steps: int = 5
    inner_lr: float = 0.1
    rate: float = 2e-3
    alpha: float = 0.5
    temperature: float = 4.0
    seed: int = 0
    judged: int = 200
    teacher: str | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                "--method", f"must be one of {', '.join(METHODS)} {hint(self.method, METHODS)}", self.method
            )
        NetworkSpec.parse(self.student, place="--student")
        if self.start is not None:
            read_artefact(Path(self.start), methods=(self.method,))
        require_counts(self, ("steps", "episodes", "judged"))
        if self.judged < 2:
            raise InputError("--judged", "must be at least 2: an interval needs two", self.judged)
        _ = self.shape, self.inner

    @property
    def shape(self) -> EpisodeShape:
        """Ways, shots and queries."""
        return EpisodeShape(self.ways, self.shots, self.queries)

    @property
    def inner(self) -> Inner:
        """The inner loop."""
        return Inner(self.inner_steps, self.inner_lr)

    def described(self, domains: DomainSplit) -> dict[str, Any]:
        """Return all that the outcome depends on, JSON-ready: the data by their digest, wherever they lie."""
        names = ("student", "ways", "shots", "queries", "steps", "episodes", "inner_steps", "inner_lr", "rate", "seed")
        described = {name: getattr(self, name) for name in (*names, "judged")}
        described |= {"family": family_digest(domains), "input_shape": domains.train[0].input_shape}
        if self.teacher is not None:
            described |= {name: getattr(self, name) for name in ("teacher", "alpha", "temperature")}
        if self.start is not None:
            described["start"] = file_digest(self.start)
        return described


Tell = Callable[[str], None]


PARTS = (("train", "learn from"), ("validation", "choose by"), ("test", "judge by"))


def find_artefact(request: MetaRequest) -> Path | None:
    """Return the file of a request in the cache, None where it is still to be made. Raises as `make_artefact` does."""
    return _found(request)[1]


def make_artefact(
    request: MetaRequest,
    *,
    progress: Callable[[MetaProgress], None] | None = None,
    tell: Tell = lambda line: None,
) -> Artefact:
    """Return the artefact of a request: from the cache, else meta-trained, from its checkpoint where a run was cut off.

    progress: called after every validation. tell: called with a line on what happens next.
    Raises InputError for a family of fewer than three tasks, for more ways or shots than a domain has, and for a
    teacher that does not fit; TrialFailure where the inner loop diverges throughout; StorageError for a cache that
    cannot be written.
    """
    domains, there, path = _found(request)
    if there is not None:
        tell(f"{request.method}: found in the cache, {there}")
        return read_artefact(there)
    counts = ", ".join(f"{len(getattr(domains, part))} to {verb}" for part, verb in PARTS)
    tell(f"{request.method}: {request.student}; domains: {counts}")
    if request.teacher is not None:
        members = parse_family(request.family).members
        taught = [domain for member in members for domain in taught_domains(member, request, tell=tell)]
        domains = split_domains(taught, seed=request.seed)
    return _meta_trained(request, domains, path, progress)


def largest_shape(domains: Sequence[Domain], wanted: EpisodeShape) -> EpisodeShape:
    """Return the episodes that are wanted, or the largest below that every domain has the classes and examples for."""
    classes = min(len(domain.rows_of_class) for domain in domains)
    examples = min(len(rows) for domain in domains for rows in domain.rows_of_class)
    shots = max(1, min(wanted.shots, examples // 2))
    return EpisodeShape(min(wanted.ways, classes), shots, max(1, min(wanted.queries, examples - shots)))


def _found(request: MetaRequest) -> tuple[DomainSplit, Path | None, Path]:
    """Return the domains of a request, its file where it is there, and where it belongs."""
    domains = split_domains(load_family(request.family, source=request.source), seed=request.seed)
    for part in (domains.train, domains.validation, domains.test):
        request.shape.require(part)
    path = artefact_path(request.method, request.described(domains))
    return domains, path if path.is_file() else None, path


def taught_domains(member: Member, request: MetaRequest, *, tell: Tell) -> tuple[Domain, ...]:
    """Return the domains of one TASK with the logits, for their classes, of a teacher that is pretrained on all of it.

    Raises InputError for domains cut by a column: their classes are those of the whole.
    """
    if member.rule == "column":
        raise InputError(
            "--teacher", "cannot be cut into tasks by a column: use groups, classes or random", str(member)
        )
    source = replace(request.source, text=member.task)
    task = load_task(source)
    tell(f"teacher {request.teacher} of {member.task}")
    teacher = teacher_for(task, TeacherSource.of(request.teacher or ""), seed=request.seed, progress=None)
    logits = torch.cat([teacher.logits["train"][0][: len(task.train)], *(teacher.logits[n] for n in SPLITS[1:])])
    labels = whole_domain(task).labels
    taught = []
    for domain in load_member(member, request.source):
        classes = torch.tensor([task.class_names.index(name) for name in domain.class_names])
        rows = torch.isin(labels, classes)
        taught.append(replace(domain, teacher_logits=logits[rows][:, classes].float()))
    return tuple(taught)


def _continued(artefact: Artefact, start: Parameters) -> Parameters:
    """Return the meta-parameters of a file, to be trained on. Raises InputError where they are of another shape."""
    for name, tensor in start.items():
        if name not in artefact.meta or artefact.meta[name].shape != tensor.shape:
            rule = "must be of the same student, input shape and ways to be trained on"
            raise InputError(str(artefact.path), rule, f"{artefact.spec}, ways={artefact.record['ways']}")
    return {name: artefact.meta[name] for name in start}


def _sample(domains: Sequence[Domain], request: MetaRequest, generator: torch.Generator) -> EpisodeBatch:
    return sample_episodes(domains, shape=request.shape, count=request.episodes, generator=generator)


def _meta_trained(
    request: MetaRequest, domains: DomainSplit, path: Path, progress: Callable[[MetaProgress], None] | None
) -> Artefact:
    spec = NetworkSpec.parse(request.student)
    bind = partial(
        bound_method,
        request.method,
        spec,
        input_shape=domains.train[0].input_shape,
        ways=request.ways,
        inner=request.inner,
        seed=request.seed,
    )
    method = bind(alpha=request.alpha, temperature=request.temperature) if request.teacher is not None else bind()
    start = method.initial()
    if request.start is not None:
        before = read_artefact(Path(request.start), methods=(request.method,))
        start = _continued(before, start)
    sample = partial(_sample, domains.train, request)
    checkpoint = path.with_suffix(".checkpoint")
    settings = LoopSettings(request.steps, rate=request.rate, every=max(LEAST_BETWEEN, request.steps // VALIDATIONS))
    validate = accuracy_on(
        method, domains.validation, shape=request.shape, episodes=VALIDATION_EPISODES, steps=None, seed=request.seed
    )
    found = meta_train(
        start,
        outer_gradient(method, sample),
        validate,
        settings=settings,
        generator=torch.Generator().manual_seed(request.seed),
        checkpoint=checkpoint,
        identity=path.name,
        progress=progress,
    )
    loss = classification_loss(alpha=request.alpha if request.teacher else 0.0, temperature=request.temperature)
    gain = held_out_gain(
        method,
        found.parameters,
        loss=loss,
        validation=domains.validation,
        test=domains.test,
        shape=request.shape,
        steps=request.inner_steps,
        episodes=request.judged,
        seed=request.seed,
    )
    described = request.described(domains)
    record = {
        **described,
        "method": request.method,
        "fingerprint": described["family"],
        "family": request.family,
        "domains": {part: [domain.name for domain in getattr(domains, part)] for part, _ in PARTS},
        "gain": gain.record(),
        "best_step": found.step,
        "history": [(step, value) for step, _, value in found.history],
    }
    write_artefact(path, method, found.parameters, spec=spec, task=domains.validation[0].task(), record=record)
    checkpoint.unlink(missing_ok=True)
    return read_artefact(path)
