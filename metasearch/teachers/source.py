"""What a teacher is made of, as the user spells it: members with their weights and shares, and how they are read.

A TEACHER is `[SHARE*]SOURCE`; SOURCE is a family spec (`convnet:width=24,depth=6`), `resnet18`, `googlenet`,
`vit:width=64,depth=4`, `package.module:function` (which builds a torch module), or a file: `FILE.pt2` (torch.export),
`FILE.onnx`, `FILE.npz` (logits or labels, no network).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metasearch.errors import InputError, NotFoundError
from metasearch.models import FAMILIES, NetworkSpec
from metasearch.teachers.networks import check_spelling, is_function

NETWORK_FILES = (".pt2", ".onnx")
LOGITS_FILE = ".npz"
WEIGHTS_FILES = (".safetensors", ".pt", ".pth")
OWN = "own"
"""In place of a weights file: the function returns a network that is trained already."""
NORMALISATIONS = ("task", "unit", "imagenet", "raw")
MEANS = ("probabilities", "logits")


@dataclass(frozen=True)
class TeacherMember:
    """One network (or file of logits) of a teacher.

    text: a SOURCE. weights: a file for it, `own`, or None: then our recipe trains it. share: of the mean, above 0;
    shares are divided by their sum.
    Raises InputError for another spelling, a share out of range, or weights where none belong.
    """

    text: str
    weights: str | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and self.share > 0):
            raise InputError("--teacher", "must have a share above 0", f"share={self.share}")
        if not self.is_file:
            check_spelling(self.text, place="--teacher")
        if self.weights == OWN:
            if not is_function(self.text):
                raise InputError("--teacher-weights", f"can be {OWN} for package.module:function only", self.text)
        elif self.weights is not None:
            if self.is_file:
                raise InputError("--teacher-weights", "must be - for a file, which holds its own", self.text)
            if Path(self.weights).suffix not in WEIGHTS_FILES:
                raise InputError("--teacher-weights", f"must end in {', '.join(WEIGHTS_FILES)}", self.weights)

    @classmethod
    def parse(cls, text: str, *, weights: str | None = None) -> TeacherMember:
        """Return the member that a text such as `0.5*resnet18` names."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\*(.+)", text)
        return cls(match[2], weights, float(match[1])) if match else cls(text, weights)

    @property
    def is_file(self) -> bool:
        """Whether the text names a file rather than an architecture."""
        return Path(self.text).suffix in (*NETWORK_FILES, LOGITS_FILE)

    @property
    def is_logits(self) -> bool:
        """Whether there are only logits, and no network."""
        return Path(self.text).suffix == LOGITS_FILE

    @property
    def is_trained_here(self) -> bool:
        """Whether our recipe has to train it."""
        return not self.is_file and self.weights is None

    @property
    def spec(self) -> NetworkSpec | None:
        """The network, if it is of one of our families."""
        return NetworkSpec.parse(self.text) if self.text.partition(":")[0] in FAMILIES else None

    @property
    def place(self) -> str:
        """How an error names this member."""
        return f"teacher {self.text}"

    def absolute(self) -> TeacherMember:
        """Return the same member with absolute paths. Raises NotFoundError for a file that is not there."""
        text = str(_existing(self.text)) if self.is_file else self.text
        weights = self.weights if self.weights in (None, OWN) else str(_existing(str(self.weights)))
        return replace(self, text=text, weights=weights)

    def __str__(self) -> str:
        return self.text if self.weights is None else f"{self.text} ({Path(self.weights).name})"


@dataclass(frozen=True)
class TeacherSource:
    """What a teacher is made from; JSON-ready, so that a search can be resumed.

    normalisation: of the members' inputs: task, unit ([0, 1]), imagenet, raw (0..255) or MEAN,.../STD,... over [0, 1]
    pixels. mean: of an ensemble, over probabilities or logits. labels_only: whether students learn only which class
    the teacher predicts. features: the names of the values that are the features of its one network, from the first to
    the last; empty for those found in its layers.
    Raises InputError for a field that breaks a rule.
    """

    members: tuple[TeacherMember, ...]
    normalisation: str = "task"
    mean: str = "probabilities"
    labels_only: bool = False
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise InputError("--teacher", "must name at least one network")
        if self.mean not in MEANS:
            raise InputError("--teacher-mean", f"must be one of {', '.join(MEANS)}", self.mean)
        if self.normalisation not in NORMALISATIONS:
            pixel_statistics(self.normalisation)
        if self.features:
            self._check_features()

    @classmethod
    def of(cls, value: TeacherSource | NetworkSpec | str | Mapping[str, Any]) -> TeacherSource:
        """Return the source that a text, a spec or what `plain` returned stands for."""
        if isinstance(value, TeacherSource):
            return value
        if isinstance(value, Mapping):
            members = tuple(TeacherMember(**member) for member in value["members"])
            return cls(**{**value, "members": members, "features": tuple(value.get("features", ()))})
        return cls((TeacherMember.parse(str(value)),))

    def plain(self) -> str | dict[str, Any]:
        """Return what JSON can hold and `of` understands: the text alone where it says everything."""
        text = self.members[0].text
        return text if self == TeacherSource((TeacherMember(text),)) else asdict(self)

    @property
    def open_member(self) -> TeacherMember | None:
        """The first member whose weights a student can start from; None where only labels are to be seen."""
        return None if self.labels_only else next((member for member in self.members if member.spec), None)

    def absolute(self) -> TeacherSource:
        """Return the same source with absolute paths. Raises NotFoundError for a file that is not there."""
        return replace(self, members=tuple(member.absolute() for member in self.members))

    def __str__(self) -> str:
        if len(self.members) == 1:
            return str(self.members[0])
        return " + ".join(str(m) if m.share == 1 else f"{m.share:g}*{m}" for m in self.members)

    def _check_features(self) -> None:
        if not all(self.features) or len(set(self.features)) < len(self.features):
            raise InputError(
                "--teacher-features", "must be NAME,NAME,... with every name once", ",".join(self.features)
            )
        if len(self.members) > 1:
            raise InputError(
                "--teacher-features", "can be given for one --teacher only", f"teachers={len(self.members)}"
            )
        if self.members[0].is_logits:
            raise InputError("--teacher-features", "cannot be given for a file of logits", self.members[0].text)
        if self.labels_only:
            raise InputError("--teacher-features", "cannot be given with --teacher-labels-only, which hides features")


def teacher_from_flags(
    texts: Sequence[str],
    *,
    weights: Sequence[str] = (),
    normalisation: str = "task",
    mean: str = "probabilities",
    labels_only: bool = False,
    features: str | None = None,
) -> TeacherSource | None:
    """Return the teacher of the command line's flags, None where none is named.

    texts: one TEACHER a member. weights: a file for each in the same order, - for none; or no weights at all.
    features: NAME,NAME,... of the values that are the teacher's features.
    Raises InputError where the flags do not go together.
    """
    if not texts:
        if weights or labels_only or features is not None or (normalisation, mean) != ("task", "probabilities"):
            raise InputError("--teacher", "must be given with the other flags about the teacher")
        return None
    if weights and len(weights) != len(texts):
        raise InputError("--teacher-weights", f"must be given {len(texts)} times, - for none", len(weights))
    files = [None if file == "-" else file for file in weights] or [None] * len(texts)
    members = tuple(TeacherMember.parse(text, weights=file) for text, file in zip(texts, files, strict=True))
    names = () if features is None else tuple(name.strip() for name in features.split(","))
    return TeacherSource(members, normalisation, mean, labels_only, names)


def pixel_statistics(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations, one a channel, of MEAN,.../STD,...

    Raises InputError for another spelling, unequal counts, or a deviation that is not above 0.
    """
    rule = f"must be one of {', '.join(NORMALISATIONS)} or MEAN,.../STD,... with a number a channel"
    try:
        means, deviations = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError as error:
        raise InputError("--teacher-normalisation", rule, text) from error
    if len(means) != len(deviations) or not all(map(math.isfinite, (*means, *deviations))) or min(deviations) <= 0:
        raise InputError("--teacher-normalisation", rule, text)
    return means, deviations


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise NotFoundError(f"teacher {text}: there is no such file; looked at {Path.cwd() / path}")
    return path.resolve()
