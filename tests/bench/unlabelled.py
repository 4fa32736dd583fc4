"""What unlabelled images add to few labelled ones, at equal steps."""

from __future__ import annotations

import multiprocessing
from statistics import mean, stdev

import torch

from metasearch.tasks import TaskSource
from tests.bench.job import data_root
from tests.bench.sides import SLOTS, Verdict, conditions, print_table
from tests.bench.students import CROSS_ENTROPY, Case, Trial, choose, prepare

LABELLED, UNLABELLED = 100, 2_000
RATES = (0.012, 0.025, 0.05, 0.1, 0.2)
STEPS, QUICK_STEPS = 1_200, 30
SEEDS, QUICK_SEEDS = 5, 2
TEMPERATURE = 4.0


def run(*, quick: bool) -> Verdict:
    """Measure 100 labelled Fashion-MNIST images with and without 2,000 unlabelled ones; print one table."""
    root = data_root()
    if root is None:
        return Verdict("unlabelled", None, "skipped: no FashionMNIST/raw in METASEARCH_DATA or shared/data")
    few, many = (TaskSource("fashion_mnist", data_root=str(root), max_train=count) for count in (LABELLED, 6_000))
    case = Case(few, many)
    prepare(case)
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if quick else (STEPS, SEEDS)
    trials = [
        Trial(case, loss, steps, TEMPERATURE, unlabelled=extra)
        for loss, extra in ((CROSS_ENTROPY, 0), ("kd", 0), ("kd", UNLABELLED))
    ]
    with multiprocessing.get_context("spawn").Pool(SLOTS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = choose(pool, trials, rates=RATES, seeds=seeds, chosen_by=seeds)
    rows = [
        (trial.loss, str(trial.unlabelled), f"{c.rate:g}", f"{mean(c.tests):.4f}", f"{stdev(c.tests):.4f}")
        for trial, c in zip(trials, found, strict=True)
    ]
    header = ("loss", "unlabelled", "rate", "test accuracy", "deviation over seeds")
    print_table(f"Unlabelled images, {LABELLED} labelled ones of Fashion-MNIST", header, rows, [conditions()])
    gains = [with_extra - without for without, with_extra in zip(found[1].tests, found[2].tests, strict=True)]
    text = f"kd gains {mean(gains):+.4f} (deviation over seeds {stdev(gains):.4f}) by {UNLABELLED:,} unlabelled images"
    return Verdict("unlabelled", None if quick else mean(gains) > 0, text)
