"""Episodes one by one or in one pass of vmap: which is faster, at which sizes, and whether the code picks that one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from metasearch.meta.functional import FunctionalNetwork
from metasearch.meta.inner_loop import vmap_pays
from metasearch.meta.maml import Maml
from metasearch.meta.method import Inner
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks.episodes import EpisodeBatch
from tests.bench.sides import Verdict, conditions, print_table

WAYS, QUERIES, STEPS = 5, 5, 3
REPEATS, QUICK_REPEATS = 2, 1
CLEAR = 1.25
"""A wrong pick counts where the other one is faster by more than this: between, noise decides."""


@dataclass(frozen=True)
class Size:
    """A student, its inputs, the shots of its episodes and how many of them are in a batch."""

    student: str
    input_shape: tuple[int, ...]
    shots: int
    episodes: int

    def episode_batch(self) -> EpisodeBatch:
        """Return episodes of noise: only their sizes matter here."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(WAYS)
        inputs = [
            torch.randn(self.episodes, WAYS * each, *self.input_shape, generator=generator)
            for each in (self.shots, QUERIES)
        ]
        support, query = (labels.repeat_interleave(each).expand(self.episodes, -1) for each in (self.shots, QUERIES))
        return EpisodeBatch(inputs[0], support, inputs[1], query)

    def method(self, *, first_order: bool, vmapped: bool) -> Maml:
        """Return MAML for the student."""
        spec = NetworkSpec.parse(self.student)
        module: nn.Module = build_network(spec, input_shape=self.input_shape, classes=WAYS, seed=0)
        network = FunctionalNetwork.of(module)
        return Maml(network, Inner(STEPS, 0.01), first_order=first_order, vmapped=vmapped)


SIZES = [
    Size(student, shape, shots, episodes)
    for student, shape in (
        ("mlp:width=8,depth=2", (16,)),
        ("mlp:width=32,depth=2", (64,)),
        ("mlp:width=16,depth=2", (1, 28, 28)),
        ("convnet:width=4,depth=3", (1, 8, 8)),
        ("convnet:width=8,depth=3", (1, 16, 16)),
        ("convnet:width=16,depth=4", (1, 28, 28)),
        ("convnet:width=32,depth=4", (1, 28, 28)),
    )
    for shots, episodes in ((1, 4), (1, 16), (5, 4))
] + [Size("convnet:width=64,depth=4", (1, 28, 28), shots=1, episodes=4)]


def run(*, quick: bool) -> Verdict:
    """Time the outer loss and its gradient, both ways, for each size; judge whether the code picks the faster."""
    rows, wrong = [], []
    for size in SIZES[::3] if quick else SIZES:
        batch = size.episode_batch()
        for first_order in (False, True):
            loop, vmapped = (
                seconds(size.method(first_order=first_order, vmapped=way), batch, QUICK_REPEATS if quick else REPEATS)
                for way in (False, True)
            )
            picked = vmap_pays(size.method(first_order=first_order, vmapped=False).network, batch)
            if (loop / vmapped if not picked else vmapped / loop) > CLEAR:
                wrong.append(size)
            rows.append(
                (
                    f"{size.student} on {'x'.join(map(str, size.input_shape))}",
                    "first" if first_order else "second",
                    str(size.shots),
                    str(size.episodes),
                    f"{loop * 1e3:.1f}",
                    f"{vmapped * 1e3:.1f}",
                    f"{loop / vmapped:.2f}",
                    "vmap" if picked else "loop",
                )
            )
    notes = [
        conditions(),
        f"{WAYS}-way, {QUERIES} queries a class, {STEPS} inner steps of MAML; CPU ms of one thread, median; ratio: "
        "above 1 vmap wins",
    ]
    header = ("student", "order", "shots", "episodes", "loop ms", "vmap ms", "ratio", "picked")
    print_table("Episodes in a loop or vmapped", header, rows, notes)
    text = f"the slower way is picked at {len(wrong)} of {len(rows)} sizes, by more than {CLEAR - 1:.0%}"
    return Verdict("episodes", None if quick else not wrong, text)


def seconds(method: Maml, batch: EpisodeBatch, repeats: int) -> float:
    """Return the median CPU seconds of one outer loss and its gradient, after one to warm up."""
    meta = {name: value.requires_grad_() for name, value in method.initial().items()}
    times = []
    for _ in range(1 + repeats):
        started = time.process_time()
        torch.autograd.grad(method.outer_loss(meta, batch), list(meta.values()))
        times.append(time.process_time() - started)
    return median(times[1:])
