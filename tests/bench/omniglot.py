"""Few-shot classification of Omniglot's characters: each meta-learner against training from scratch.

The alphabets of images_background_small1 but one are learned from, with their characters turned by quarters as classes
of their own; the one left chooses (steps at test, scratch's rate); those of images_background_small2 that are in no
other set judge, unturned. The network is the usual one: four 3x3 convolutions with BatchNorm, ReLU and 2x2 max pooling,
then a linear layer. BatchNorm is normalised by the support set; *transductive* is by the query batch itself.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from metasearch.meta.functional import FunctionalNetwork, Parameters
from metasearch.meta.maml import Maml
from metasearch.meta.method import Inner, Method, classification_loss, query_accuracies, query_accuracy, support_of
from metasearch.meta.methods import METHODS
from metasearch.meta.reptile import Reptile
from metasearch.tasks import Split, TaskSource
from metasearch.tasks.domains import Domain, joined
from metasearch.tasks.episodes import EpisodeShape, sample_episodes
from metasearch.tasks.families import load_family
from metasearch.tasks.prepared import fit_normalisation
from tests.bench.sides import SLOTS, Verdict, conditions, print_table
from tests.repository import SHARED

TRAIN = ("Balinese", "Greek", "Korean", "Latin")
VALIDATION = ("Early_Aramaic",)
TEST = ("Japanese_(katakana)", "Sanskrit", "Tagalog")
WIDTH, WAYS, SHOTS, SIDE = 32, 5, (1, 5), 28
TEST_QUERIES, TEST_EPISODES, CHOOSING_EPISODES = 15, 600, 40
QUICK_ITERATIONS, QUICK_EPISODES = 3, 4
SCRATCH, SCRATCH_RATES, SCRATCH_STEPS = "scratch", (0.01, 0.03, 0.1, 0.3, 1.0), 30
GAIN, PROTONET_5_SHOT = 0.15, 0.90
"""Each meta-learner must beat scratch by so much at 1 shot, and ProtoNet pass so much at 5."""


@dataclass(frozen=True)
class Recipe:
    """How a method is trained.

    iterations: at 1 shot; at 5, where each costs two to three times as much, half as many. ways, queries: of the
    training episodes. test_steps: what validation chooses from; None: the method's own.
    outer_lr: falls linearly to 0; of Adam, or of plain SGD where `sgd` (Reptile's own).
    """

    iterations: int
    episodes: int
    outer_lr: float
    inner: Inner
    ways: int = WAYS
    queries: int = 5
    sgd: bool = False
    test_steps: tuple[int | None, ...] = (1, 3, 5, 10)


RECIPES = {
    "protonet": Recipe(600, 1, 2e-3, Inner(), ways=20, test_steps=(None,)),
    "maml": Recipe(500, 8, 3e-3, Inner(1, 0.4)),
    # one step of 0.4 taught it nothing in 350 iterations (59 % at test, scratch 60 %)
    "fomaml": Recipe(500, 4, 1e-3, Inner(4, 0.1)),
    "reptile": Recipe(600, 2, 1.0, Inner(5, 0.1), queries=10, sgd=True, test_steps=(5, 10, 20)),
    "metasgd": Recipe(500, 8, 3e-3, Inner(1, 0.1)),
    "hypernetwork": Recipe(500, 8, 1e-3, Inner(), test_steps=(None, 1, 3)),
}
REPTILE_BATCHES = 3


@dataclass(frozen=True)
class Job:
    """One method at one number of shots."""

    method: str
    shots: int
    root: str
    quick: bool


@dataclass(frozen=True)
class Outcome:
    """Accuracies on the test episodes, (T,) each, and how they came about."""

    accuracies: Tensor
    transductive: Tensor
    chosen: str
    cpu_seconds: float


def run(*, quick: bool) -> Verdict:
    """Measure every method at 1 and 5 shots; print one table; judge each against scratch."""
    root = Path(os.environ.get("METASEARCH_DATA") or SHARED / "data")
    root = root if (root / "omniglot-py").is_dir() else root / "Omniglot"
    if not (root / "omniglot-py").is_dir():
        return Verdict("omniglot", None, "skipped: no omniglot-py in METASEARCH_DATA or shared/data/Omniglot")
    load_domains(str(root))  # prepared once, before the processes ask for it at the same time
    names = [name for name in (SCRATCH, *RECIPES) if name == SCRATCH or name in METHODS]
    jobs = [Job(name, shots, str(root), quick) for shots in SHOTS for name in names]
    found: dict[tuple[str, int], Outcome] = {}
    with multiprocessing.get_context("spawn").Pool(SLOTS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for job, outcome in zip(jobs, pool.imap(measure, jobs), strict=True):
            found[job.method, job.shots] = outcome
            print(f"  {job.method}, {job.shots}-shot: {with_interval(outcome.accuracies)}", flush=True)
    rows = [
        (
            name,
            str(shots),
            with_interval(found[name, shots].accuracies),
            with_interval(found[name, shots].transductive),
            found[name, shots].chosen,
            f"{found[name, shots].cpu_seconds:.0f}",
        )
        for shots in SHOTS
        for name in names
    ]
    total = sum(outcome.cpu_seconds for outcome in found.values()) / 60
    notes = [
        conditions(),
        f"{WAYS}-way on {', '.join(TEST)}; learned from {', '.join(TRAIN)}, chosen on {', '.join(VALIDATION)}; "
        f"{SIDE}x{SIDE} pixels, {WIDTH} filters; {len(found['protonet', 1].accuracies)} test episodes, "
        f"{TEST_QUERIES} queries a class, with 95 % intervals; one seed; {total:.0f} core-minutes in all",
        f"scratch: {SCRATCH_STEPS} steps of plain descent from random weights, the best of {len(SCRATCH_RATES)} rates",
    ]
    header = ("method", "shots", "accuracy", "transductive", "chosen on validation", "CPU s")
    print_table("Omniglot, accuracy on characters of new alphabets", header, rows, notes)
    return judged(found, names, quick=quick)


def judged(found: dict[tuple[str, int], Outcome], names: list[str], *, quick: bool) -> Verdict:
    """Return whether each meta-learner beats scratch at 1 shot, and ProtoNet passes at 5."""
    scratch = float(found[SCRATCH, 1].accuracies.mean())
    gains = {name: float(found[name, 1].accuracies.mean()) - scratch for name in names if name != SCRATCH}
    protonet = float(found["protonet", 5].accuracies.mean())
    met = None if quick else min(gains.values()) >= GAIN and protonet > PROTONET_5_SHOT
    shown = ", ".join(f"{name} {100 * gain:+.1f}" for name, gain in gains.items())
    text = f"points over scratch at 1 shot: {shown}; ProtoNet at 5 shots {100 * protonet:.1f} %"
    return Verdict("omniglot", met, f"{text} (targets: {100 * GAIN:+.0f} each, {100 * PROTONET_5_SHOT:.0f} %)")


def measure(job: Job) -> Outcome:
    """Train one method, choose on validation, and return its accuracies on the test episodes."""
    started = time.process_time()
    domains = load_domains(job.root)
    episodes = {
        part: sample_episodes(
            [joined(domains[part])],
            shape=EpisodeShape(WAYS, job.shots, TEST_QUERIES),
            count=QUICK_EPISODES if job.quick else count,
            generator=torch.Generator().manual_seed(seed),
        )
        for part, count, seed in (("validation", CHOOSING_EPISODES, 1), ("test", TEST_EPISODES, 2))
    }
    candidates = list(scratch() if job.method == SCRATCH else learned(job, domains["train"]))
    best = max(
        candidates,
        key=lambda it: float(query_accuracies(it.method, it.meta, episodes["validation"], steps=it.steps).mean()),
    )
    test, network = episodes["test"], best.method.network
    accuracies: dict[bool, list[Tensor]] = {False: [], True: []}
    for index in range(len(test)):
        weights = best.method.adapt(best.meta, support_of(test, index), steps=best.steps)
        for transductive, found in accuracies.items():
            found.append(query_accuracy(network, weights, test, index, transductive=transductive))
    usual, transductive_ones = (torch.stack(accuracies[way]) for way in (False, True))
    return Outcome(usual, transductive_ones, best.name, time.process_time() - started)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may be judged: a method with its meta-parameters, and the steps it takes at test."""

    name: str
    method: Method
    meta: Parameters
    steps: int | None


def scratch() -> Iterator[Candidate]:
    """Yield training from random weights at each rate."""
    for rate in SCRATCH_RATES:
        method = Maml(usual_network(WAYS), Inner(SCRATCH_STEPS, rate), first_order=True)
        yield Candidate(f"rate {rate:g}", method, method.initial(), SCRATCH_STEPS)


def learned(job: Job, alphabets: tuple[Domain, ...]) -> Iterator[Candidate]:
    """Train a method over episodes of the training alphabets' characters; yield it with each number of test steps."""
    recipe = RECIPES[job.method]
    network = usual_network(WAYS)
    method = METHODS[job.method](network, recipe.inner, classification_loss())
    if isinstance(method, Reptile):
        method = replace(method, batches=REPTILE_BATCHES)
    meta = {name: value.requires_grad_() for name, value in method.initial().items()}
    kind = torch.optim.SGD if recipe.sgd else torch.optim.Adam
    optimizer: torch.optim.Optimizer = kind(list(meta.values()), lr=recipe.outer_lr)
    iterations = QUICK_ITERATIONS if job.quick else recipe.iterations // (2 if job.shots > 1 else 1)
    generator = torch.Generator().manual_seed(0)
    shape = EpisodeShape(recipe.ways, job.shots, recipe.queries)
    everything = [joined(alphabets)]
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = recipe.outer_lr * (1 - iteration / iterations)
        episodes = sample_episodes(everything, shape=shape, count=recipe.episodes, generator=generator, rotations=True)
        optimizer.zero_grad()
        method.outer_loss(meta, episodes).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    meta = {name: value.detach() for name, value in meta.items()}
    for steps in recipe.test_steps:
        yield Candidate("as it is" if steps is None else f"steps: {steps}", method, meta, steps)


def load_domains(root: str) -> dict[str, tuple[Domain, ...]]:
    """Return the alphabets by their part, all normalised by the training alphabets alone."""
    source = TaskSource("", data_root=root, image_size=SIDE)
    by_alphabet = {domain.name.rpartition("#")[2]: domain for domain in load_family("omniglot@groups", source=source)}
    training = joined([by_alphabet[name] for name in TRAIN])
    normalisation = fit_normalisation(Split(training.inputs, training.labels))
    parts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return {
        part: tuple(replace(by_alphabet[name], normalisation=normalisation) for name in names)
        for part, names in parts.items()
    }


def usual_network(ways: int, *, width: int = WIDTH) -> FunctionalNetwork:
    """Return the network of Vinyals et al. (2016), with as many filters as `width` says, drawn from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers: list[nn.Module] = []
        for channels in (1, width, width, width):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        return FunctionalNetwork.of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, ways)))


def with_interval(accuracies: Tensor) -> str:
    """Return the mean in percent and half of its 95 % interval."""
    half = 1.96 * float(accuracies.std()) / math.sqrt(len(accuracies))
    return f"{100 * float(accuracies.mean()):.1f} ± {100 * half:.1f}"
