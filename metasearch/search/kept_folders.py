"""Which artefact folders of a study's trials are kept, and the removal of the others."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from metasearch.search.artefacts import remove, trial_folder, trial_numbers


@dataclass(frozen=True)
class KeptFolders:
    """The artefact folders of a study's trials.

    root: the folder or URL that they are in, None where there are none. all_complete: whether every complete trial
    keeps its folder, rather than those of the feasible front alone.
    """

    root: str | None
    all_complete: bool

    def of(self, number: int) -> str | None:
        """Return the folder or URL of a trial's artefacts."""
        return None if self.root is None else trial_folder(self.root, number)

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove the folders of trials that are not on the front."""
        if self.root is not None and not self.all_complete:
            for number in numbers:
                remove(trial_folder(self.root, number))

    def drop_strays(self, *, front: Container[int], complete: Container[int]) -> None:
        """Remove what a dead driver left: folders of trials off the front, half of one that is run again."""
        if self.root is not None:
            kept = complete if self.all_complete else front
            for number in trial_numbers(self.root):
                if number not in kept:
                    remove(trial_folder(self.root, number))
