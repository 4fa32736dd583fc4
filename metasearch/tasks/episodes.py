"""Episodes: N-way K-shot tasks drawn from domains, as batches of tensors.

Symbols: T episodes, N ways (classes), K shots (support examples a class), Q queries a class; S = N K, R = N Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metasearch.errors import InputError
from metasearch.tasks.domains import Domain

QUARTER_TURNS = 4


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """T episodes: inputs are normalised float32, labels int64 in 0..N-1, the examples of a class one after the other.

    support_inputs: (T, S, ...). support_labels: (T, S). query_inputs: (T, R, ...). query_labels: (T, R).
    support_logits, query_logits: a teacher's logits on the same examples, for the N classes of the episode, (T, S, N)
    and (T, R, N), or None. For regression the labels are (T, S, outputs) and (T, R, outputs), float.
    """

    support_inputs: Tensor
    support_labels: Tensor
    query_inputs: Tensor
    query_labels: Tensor
    support_logits: Tensor | None = None
    query_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.support_labels)

    def part(self, start: int, stop: int) -> EpisodeBatch:
        """Return episodes start..stop-1."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: value[start:stop] for name, value in tensors.items() if value is not None}
        return EpisodeBatch(**chosen)


@dataclass(frozen=True)
class EpisodeShape:
    """How many classes an episode has, and how many support and query examples each of them. Raises InputError."""

    ways: int = 5
    shots: int = 1
    queries: int = 15

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise InputError(name, f"must be at least {least}", getattr(self, name))

    def require(self, domains: Sequence[Domain], *, rotations: bool = False) -> None:
        """Raise InputError, naming the domain, where one has too few classes or a class of it too few examples."""
        if not domains:
            raise InputError("episodes", "need at least one domain")
        for domain in domains:
            classes = len(domain.rows_of_class) * (QUARTER_TURNS if rotations else 1)
            if classes < self.ways:
                raise InputError("ways", f"domain {domain.name} has {classes} classes; must be at most that", self.ways)
            smallest = min(range(len(domain.rows_of_class)), key=lambda label: len(domain.rows_of_class[label]))
            available = len(domain.rows_of_class[smallest])
            if available < self.shots + self.queries:
                rule = (
                    f"class {domain.class_names[smallest]} of domain {domain.name} has {available} examples; "
                    "shots and queries together must be at most that"
                )
                raise InputError("shots", rule, f"shots={self.shots}, queries={self.queries}")


def sample_episodes(
    domains: Sequence[Domain],
    *,
    shape: EpisodeShape,
    count: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    rotations: bool = False,
) -> EpisodeBatch:
    """Return `count` episodes, each of one domain, all drawn by `generator` (of the CPU).

    Domains, then classes and examples without replacement, are drawn uniformly; support and query are disjoint. A
    teacher's logits are gathered where every domain has them, for the classes of the episode alone.
    rotations: whether each class turned by 90, 180 and 270 degrees is a class of its own (Santoro et al. 2016, section
    4.1, for Omniglot); only for square images, and without a teacher, who does not know them.
    Raises InputError where a domain has too few classes or examples, or cannot be turned.
    """
    shape.require(domains, rotations=rotations)
    for domain in domains if rotations else ():
        if len(domain.input_shape) != 3 or domain.input_shape[1] != domain.input_shape[2]:
            raise InputError("rotations", f"domain {domain.name} must hold square images", domain.input_shape)
        if domain.teacher_logits is not None:
            raise InputError("rotations", f"the teacher of domain {domain.name} knows no turned classes")
    taught = all(domain.teacher_logits is not None for domain in domains)
    drawn = [_draw(domains, shape, generator, rotations=rotations, taught=taught) for _ in range(count)]
    inputs = torch.stack([episode.inputs for episode in drawn]).to(device)
    logits = [episode.logits for episode in drawn if episode.logits is not None]
    teaching = torch.stack(logits).to(device) if logits else None
    labels, shots = torch.arange(shape.ways, device=device), shape.shots
    return EpisodeBatch(
        support_inputs=inputs[:, :, :shots].flatten(1, 2),
        support_labels=labels.repeat_interleave(shots).expand(count, -1),
        query_inputs=inputs[:, :, shots:].flatten(1, 2),
        query_labels=labels.repeat_interleave(shape.queries).expand(count, -1),
        support_logits=None if teaching is None else teaching[:, :, :shots].flatten(1, 2),
        query_logits=None if teaching is None else teaching[:, :, shots:].flatten(1, 2),
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One episode: inputs (N, K + Q, ...), normalised, and the teacher's logits (N, K + Q, N) or None."""

    inputs: Tensor
    logits: Tensor | None


def _draw(
    domains: Sequence[Domain], shape: EpisodeShape, generator: torch.Generator, *, rotations: bool, taught: bool
) -> _Drawn:
    domain = domains[int(torch.randint(len(domains), (), generator=generator))]
    turns = QUARTER_TURNS if rotations else 1
    classes = torch.randperm(turns * len(domain.rows_of_class), generator=generator)[: shape.ways]
    rows = torch.stack(
        [_choose(domain.rows_of_class[label // turns], shape.shots + shape.queries, generator) for label in classes]
    )
    inputs = domain.normalisation(domain.inputs[rows.flatten()]).reshape(*rows.shape, *domain.input_shape)
    if rotations:
        inputs = torch.stack(
            [torch.rot90(inputs[way], int(label) % turns, (-2, -1)) for way, label in enumerate(classes)]
        )
    logits = domain.teacher_logits[rows][..., classes] if taught and domain.teacher_logits is not None else None
    return _Drawn(inputs, logits)


def _choose(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
