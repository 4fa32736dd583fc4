"""Class folders of image files: which files there are, in which split and of which class.

DIR/<class>/**/image.png                 unsplit
DIR/{train,val,test}/<class>/**/image    split; val may also be spelled valid or validation
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from metasearch.errors import InputError, NotFoundError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
"""Files of other names are not images; they are counted in the notes and left alone, as hidden files are."""

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Listing:
    """The image files of a folder. splits: split name -> (file, class) pairs, sorted; class indexes class_names.

    prefix: what the folder was asked for as, for messages.
    """

    root: Path
    splits: dict[str, tuple[tuple[Path, int], ...]]
    class_names: tuple[str, ...]
    other_files: int
    prefix: str = "folder"

    @property
    def place(self) -> str:
        """The folder as a TASK would spell it."""
        return f"{self.prefix}:{self.root}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All image files, train first."""
        return tuple(path for pairs in self.splits.values() for path, _ in pairs)


def list_images(root: Path) -> Listing:
    """Return the image files below `root`, by split and class.

    Folders are splits where a folder `train` holds folders only; else they are classes. Classes are the folders of
    train, sorted by name. Raises NotFoundError where there is no such folder; InputError for fewer than two classes,
    a train class without images, a split without images or with a class that train has not.
    """
    if not root.is_dir():
        raise NotFoundError(f"folder:{root}: there is no such folder")
    folders = _split_folders(root)
    class_names = tuple(_subfolders(folders["train"]))
    if len(class_names) < 2:
        found = ", ".join(class_names) or "none"
        rule = f"needs at least two class folders with images in them, found {found}"
        raise InputError(f"folder:{folders['train']}", rule)
    splits, other_files = {}, 0
    for split, folder in folders.items():
        unknown = sorted(set(_subfolders(folder)) - set(class_names))
        if unknown:
            raise InputError(f"folder:{folder}", "the train split has no folder for a class", unknown[:5])
        pairs: list[tuple[Path, int]] = []
        for label, name in enumerate(class_names):
            images, others = image_files_below(folder / name)
            if not images and split == "train":
                raise InputError(f"folder:{folder / name}", "the class folder holds no image files")
            pairs.extend((path, label) for path in images)
            other_files += others
        if not pairs:
            raise InputError(f"folder:{folder}", "the split holds no image files in class folders")
        splits[split] = tuple(pairs)
    return Listing(root, splits, class_names, other_files)


def list_unlabelled(root: Path) -> Listing:
    """Return all image files below `root`, at any depth, as the train split of one nameless class.

    Raises NotFoundError where there is no such folder, InputError where it holds no image files.
    """
    if not root.is_dir():
        raise NotFoundError(f"images:{root}: there is no such folder")
    images, others = image_files_below(root)
    if not images:
        raise InputError(f"images:{root}", "the folder holds no image files")
    return Listing(root, {"train": tuple((path, 0) for path in images)}, ("",), others, prefix="images")


def image_files_below(folder: Path) -> tuple[list[Path], int]:
    """Return the image files below a folder at any depth, sorted, and how many other visible files there are."""
    images: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = sorted(name for name in files if not name.startswith("."))
        images.extend(Path(place, name) for name in visible if _is_image(name))
        others += sum(not _is_image(name) for name in visible)
    return images, others


def _split_folders(root: Path) -> dict[str, Path]:
    names = _subfolders(root)
    train = root / "train"
    if "train" not in names or not _subfolders(train) or any(_is_image(entry.name) for entry in os.scandir(train)):
        return {"train": root}
    folders = {}
    for split, spellings in SPLIT_FOLDERS.items():
        present = [name for name in spellings if name in names]
        if len(present) > 1:
            raise InputError(f"folder:{root}", f"has more than one {split} folder", present)
        if present:
            folders[split] = root / present[0]
    return folders


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
