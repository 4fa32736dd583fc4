"""What a task is made from: a TASK text, where the data lie, and the options of its making."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from metasearch.errors import InputError
from metasearch.folders import home_folder
from metasearch.tasks.families import absolute_member, paths_of_family
from metasearch.tasks.sources import absolute_argument, existing

IMAGE_SIZES = range(8, 225)
AUGMENTATIONS = ("none", "shift", "shift+flip")
REST, MIXED = "rest", "mixed"
IMAGES_PREFIX = "images:"


@dataclass(frozen=True)
class TaskSource:
    """What a task is made from; JSON-ready, so that a worker process can load the same task again.

    text: a TASK, as on the command line. data_root: where registered data lie, and relative paths that the working
    directory has not; else METASEARCH_DATA, else home_folder()/data. max_train: at most so many train examples,
    balanced over the classes. image_size: images become (image_size, image_size), in 8..224. seed: of the splits and
    subsets made here. augment: none, shift or shift+flip, in place of the source's own. unlabelled: more inputs,
    without labels: rest or rest:N of what max_train leaves out, mixed or mixed:N of train examples, images:DIR, or
    another TASK.
    Raises InputError for an option out of its range.
    """

    text: str
    data_root: str | None = None
    max_train: int | None = None
    image_size: int | None = None
    seed: int = 0
    download: bool = False
    skip_corrupt: bool = False
    augment: str | None = None
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        if self.max_train is not None and self.max_train < 2:
            raise InputError("max_train", "must be at least one example a class", self.max_train)
        if self.image_size is not None and self.image_size not in IMAGE_SIZES:
            raise InputError("image_size", f"must lie in {IMAGE_SIZES[0]}..{IMAGE_SIZES[-1]}", self.image_size)
        if self.seed < 0:
            raise InputError("seed", "must be at least 0", self.seed)
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise InputError("augment", f"must be one of {', '.join(AUGMENTATIONS)}", self.augment)
        if self.unlabelled is not None and is_made(self.unlabelled):
            kind, _ = made_of(self.unlabelled)
            if kind == REST and self.max_train is None:
                raise InputError("unlabelled", "nothing is left out without max_train", self.unlabelled)

    def root(self) -> Path:
        """Return the data root that applies here."""
        return Path(self.data_root or os.environ.get("METASEARCH_DATA") or home_folder() / "data").expanduser()

    def absolute(self) -> TaskSource:
        """Return the same source with absolute paths, for a process in another working directory.

        Raises NotFoundError for a file or folder that is not there.
        """
        root = Path.cwd() / self.root()
        unlabelled = None if self.unlabelled is None else absolute_unlabelled(self.unlabelled, root)
        text = absolute_member(self.text, root)
        return replace(self, text=text, data_root=str(root), unlabelled=unlabelled)


def made_of(text: str) -> tuple[str, int | None]:
    """Return what `rest`, `rest:N`, `mixed` or `mixed:N` asks for, and N; raises InputError for an N below 1."""
    kind, colon, number = text.partition(":")
    if not colon:
        return kind, None
    if not number.isdecimal() or int(number) < 1:
        raise InputError("unlabelled", f"must be spelled {kind} or {kind}:N, with N at least 1", text)
    return kind, int(number)


def is_made(text: str) -> bool:
    """Return whether a text asks for inputs made of the task's own: what max_train left out, or mixtures."""
    return text.partition(":")[0] in (REST, MIXED)


def absolute_unlabelled(text: str, data_root: Path) -> str:
    """Return the text with the paths in it made absolute; raises NotFoundError for one that is not there."""
    if text.startswith(IMAGES_PREFIX):
        return f"{IMAGES_PREFIX}{existing(text.removeprefix(IMAGES_PREFIX), data_root)}"
    return text if is_made(text) else absolute_argument(text, data_root)


def named_paths(text: str) -> list[str]:
    """Return the files and folders that a TASK, a FAMILY or an `unlabelled` text names, as it spells them."""
    return [text.removeprefix(IMAGES_PREFIX)] if text.startswith(IMAGES_PREFIX) else paths_of_family(text)
