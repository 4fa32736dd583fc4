"""The policy network against the best constant and the best cosine learning rate, on tasks that it has not seen.

All three are chosen on one family: tasks of 100 to 500 images and 50 to 150 steps from four data sets; the network is
taken where it is best on a fifth. The held-out tasks are of other data sets, and seeds are paired: the same first
weights, the same batches. The loss is the cross-entropy on images that no training saw.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from metasearch.meta.meta_training import MetaProgress
from metasearch.meta.policy_making import Comparison, PolicyRequest, policy_tasks, train_policy_network
from metasearch.meta.policy_network import PolicyNetwork
from metasearch.meta.short_training import PolicyTask
from metasearch.parameters import POLICY_METHOD
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.domains import Domain, whole_domain
from metasearch.tasks.families import load_family
from tests.bench.job import data_root
from tests.bench.sides import Verdict, conditions, print_table

IMAGE_SIZE, MAX_TRAIN = 16, 600
CMATER = "npz:{root}/CMATERdb/{name}-numerals/training-images.npz"
IDX = "idx:{root}/{folder}/raw/{images}-idx3-ubyte.gz,{root}/{folder}/raw/{labels}-idx1-ubyte.gz"
NOT_MNIST = {"folder": "notMNIST", "images": "t10k-images", "labels": "t10k-labels"}
KANNADA = {"folder": "KannadaMNIST", "images": "X_kannada_MNIST_test", "labels": "y_kannada_MNIST_test"}
SEEDS = 5
STEPS, PAIRS = 60, 8
MOST_LOST = 1 / 3
"""The share of the held-out tasks on which the network may fail to beat both: it must on 4 of 6."""


def run(*, quick: bool) -> Verdict:
    """Train the network, print one table of the held-out tasks, and judge it."""
    torch.set_num_threads(1)
    root = data_root()
    if quick or root is None:
        digits = load_family("digits@classes:2")
        train, validation, held_out = digits[:3], digits[3:4], digits[4:]
        request = PolicyRequest("digits@classes:2", steps=2, pairs=1, tasks_each=1, judged=1)
        each = 1
    else:
        train = _domains(root, "mnist", "fashion_mnist", IDX.format(root=root, **NOT_MNIST), _cmater(root, "bangla"))
        validation = _domains(root, _cmater(root, "devanagari"))
        held_out = _domains(root, "usps", "digits", IDX.format(root=root, **KANNADA), _cmater(root, "telugu"))
        request = PolicyRequest("digit data sets", steps=STEPS, pairs=PAIRS, tasks_each=4, judged=SEEDS)
        each = 2
    parts = [
        policy_tasks(domains, each=count, seed=request.seed)
        for domains, count in ((train, request.tasks_each), (validation, request.tasks_each), (held_out, each))
    ]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        network, found = train_policy_network(
            *parts, request=request, checkpoint=Path(scratch) / "checkpoint", progress=_print_progress, tell=print
        )
    _show(found, network, parts[2], request, time.process_time() - started)
    text = f"better than the best constant and the best cosine on {found.better} of {len(found.tasks)} held-out tasks"
    met = None if quick or root is None else found.better >= (1 - MOST_LOST) * len(found.tasks)
    return Verdict("policy network", met, text)


def _domains(root: Path, *texts: str) -> tuple[Domain, ...]:
    sources = [TaskSource(text, data_root=str(root), max_train=MAX_TRAIN, image_size=IMAGE_SIZE) for text in texts]
    return tuple(whole_domain(load_task(source), name=_name(source.text)) for source in sources)


def _cmater(root: Path, name: str) -> str:
    return CMATER.format(root=root, name=name)


def _name(text: str) -> str:
    """Return a data set's short name: the folder that tells it from the others."""
    parts = Path(text.partition(",")[0]).parts
    return next((part for part in reversed(parts[:-1]) if part != "raw"), text)


def _print_progress(report: MetaProgress) -> None:
    print(f"step {report.step}/{report.steps}: {report.train_loss:.4f}, validation {-report.value:.4f}", flush=True)


def _show(
    found: Comparison, network: PolicyNetwork, tasks: list[PolicyTask], request: PolicyRequest, seconds: float
) -> None:
    names = list(found.losses)
    rows = []
    for index, (name, task) in enumerate(zip(found.tasks, tasks, strict=True)):
        rate = network.policy_for(task.features, "learning_rate")
        shown = " ".join(f"{rate(progress):.3g}" for progress in (0.0, 0.2, 0.5, 0.9))
        losses = [f"{found.losses[kind][index]:.4f}" for kind in names]
        accuracies = [f"{found.accuracies[kind][index]:.4f}" for kind in names]
        rows.append((name, *losses, *accuracies, shown))
    notes = [
        conditions(),
        f"student {request.student}, {request.optimizer}, batches of {request.training.batch_size}, labels alone; "
        f"{request.steps} steps of {request.pairs} antithetic pairs; {request.judged} paired seeds; "
        f"{seconds:.0f} CPU seconds in all",
        "loss and accuracy: means over seeds; rate: what the network says at progress 0, 0.2, 0.5 and 0.9",
    ]
    header = ("held-out task", *(f"loss {kind}" for kind in names), *(f"accuracy {kind}" for kind in names), "rate")
    print_table(f"Learning rates by a {POLICY_METHOD} network", header, rows, notes)
