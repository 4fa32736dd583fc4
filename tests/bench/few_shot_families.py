"""The two families of the few-shot benchmark, cut into domains to learn from, to choose by and to judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from metasearch.tasks import Split, TaskSource, load_task
from metasearch.tasks.domains import Domain, cut_by_class, groups_of_size, joined, whole_domain
from metasearch.tasks.families import load_family
from metasearch.tasks.prepared import fit_normalisation

SIDE = 16
ALPHABETS = {
    "learn": ("Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit"),
    "choose": ("Early_Aramaic",),
    "judge": ("Balinese", "Tagalog"),
}
IDX = "idx:{folder}/raw/{images}-idx3-ubyte.gz,{folder}/raw/{labels}-idx1-ubyte.gz"
NOT_MNIST = IDX.format(folder="notMNIST", images="t10k-images", labels="t10k-labels")
KANNADA = IDX.format(folder="KannadaMNIST", images="X_kannada_MNIST_test", labels="y_kannada_MNIST_test")
DIG_MNIST = IDX.format(folder="KannadaMNIST", images="X_dig_MNIST", labels="y_dig_MNIST")
DIGITS = {  # data set and which half of its classes: judged are data sets and digits that nothing was learned from
    "learn": (("mnist", 0), (KANNADA, 0), (NOT_MNIST, 0), (NOT_MNIST, 1)),
    "choose": (("digits", 1),),
    "judge": (("usps", 1), (DIG_MNIST, 1)),
}
Parts = dict[str, tuple[Domain, ...]]


@dataclass(frozen=True)
class Kind:
    """A family: its domains by part, how many images of a class judge a student and may teach one, and its episodes."""

    load: Callable[[Path], Parts]
    held: int
    most: int
    ways: int
    rotations: bool


def _alphabets(root: Path) -> Parts:
    place = root if (root / "omniglot-py").is_dir() else root / "Omniglot"
    source = TaskSource("", data_root=str(place), image_size=SIDE)
    by_name = {domain.name.rpartition("#")[2]: domain for domain in load_family("omniglot@groups", source=source)}
    return _alike({part: tuple(by_name[name] for name in names) for part, names in ALPHABETS.items()})


def _digits(root: Path) -> Parts:
    def half(text: str, index: int) -> Domain:
        task = load_task(TaskSource(text, data_root=str(root), image_size=SIDE, max_train=1000))
        whole = whole_domain(task, name=short_name(text))
        return cut_by_class(whole, groups_of_size(task.class_names, len(task.class_names) // 2))[index]

    return _alike({part: tuple(half(*which) for which in chosen) for part, chosen in DIGITS.items()})


def _alike(parts: Parts) -> Parts:
    """Return the domains, all normalised by those that are learned from."""
    first = parts["learn"][0].normalisation
    together = joined([replace(domain, normalisation=first) for domain in parts["learn"]])
    normalisation = fit_normalisation(Split(together.inputs, together.labels))
    return {part: tuple(replace(d, normalisation=normalisation) for d in domains) for part, domains in parts.items()}


def short_name(name: str) -> str:
    """Return what tells a domain from the others of its family."""
    if name.startswith("idx:"):
        return "Dig-MNIST" if "X_dig" in name else Path(name.removeprefix("idx:")).parts[0]
    return name.removeprefix("omniglot@groups#")


FAMILIES = {
    "alphabets": Kind(_alphabets, held=5, most=15, ways=15, rotations=True),
    "digits": Kind(_digits, held=20, most=60, ways=5, rotations=False),
}
"""A character of Omniglot has 20 drawings: 15 of them stand for 20 images a class there."""
