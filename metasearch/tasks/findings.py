"""The record of a task's data that `check_task` makes, with JSON both ways.

A position is that of an example in its split, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Place = tuple[str, int, str]
"""Split, position and class name of an example."""


@dataclass(frozen=True)
class Repeats:
    """Examples of `split` whose inputs are also in the split `of`; where they are one, also at an earlier position.

    example: the position of one in `split`, and of its like in `of`.
    """

    split: str
    of: str
    count: int
    example: tuple[int, int]


@dataclass(frozen=True)
class Conflicts:
    """Inputs that bear more than one label. example: the places of two examples of one such input."""

    count: int
    example: tuple[Place, Place]


@dataclass(frozen=True)
class Constants:
    """Images of a split in which no channel varies. example: the position of one."""

    split: str
    count: int
    example: int


@dataclass(frozen=True)
class TaskCheck:
    """What `check_task` found. counts: split -> class name -> examples. imbalance: of train, largest class by smallest.

    channel_mean, channel_std: of the train images, in [0, 1]; empty for vectors. constant_features: of vectors, by
    name or position. corrupt: names of unreadable files, at most 100; corrupt_count: of all. unlabelled: how many.
    """

    task: str
    input_shape: tuple[int, ...]
    counts: Mapping[str, Mapping[str, int]]
    imbalance: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    constant_features: tuple[str, ...]
    constants: tuple[Constants, ...]
    repeats: tuple[Repeats, ...]
    conflicts: Conflicts | None
    corrupt: tuple[str, ...]
    corrupt_count: int
    unlabelled: int
    advice: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Whether an example of one split is also in another."""
        return any(found.split != found.of for found in self.repeats)

    @property
    def is_clean(self) -> bool:
        """Whether nothing leaks from split to split and every file can be read."""
        return not self.leaks and self.corrupt_count == 0

    def to_json(self) -> str:
        """Return the record as one line of JSON; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TaskCheck:
        """Return the record that `to_json` wrote."""
        data = json.loads(text)
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        nested: dict[str, Any] = {
            "repeats": tuple(Repeats(**found | {"example": tuple(found["example"])}) for found in data["repeats"]),
            "constants": tuple(Constants(**found) for found in data["constants"]),
        }
        if (conflicts := data["conflicts"]) is not None:
            first, second = conflicts["example"]
            nested["conflicts"] = Conflicts(conflicts["count"], (tuple(first), tuple(second)))
        return cls(**plain | nested)
