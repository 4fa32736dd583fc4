"""What a student starts from: the most important channels of a trained network of its family.

A teacher, the best student of an earlier study or a meta-learned network is cut to the student layer by layer. Blocks
are matched by stage and by their place in it, so that a shallower student takes the first blocks of every stage: each
layer but the one behind a gap then reads the very channels that it was trained on, where blocks taken evenly spaced
would put a gap before almost every layer. Of each layer the channels of the largest L2 norm stay (those that pruning
by `l2` would keep, see `prune.py`), over producing and consuming layers alike. What the source lacks stays random, and
what was taken over does not read it at first: a student wider than the source begins as the same function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.models import FAMILIES, NetworkSpec
from metasearch.models.channels import ChannelGroup, channel_groups, weighted_layer
from metasearch.models.stages import blocks_per_stage
from metasearch.models.weights import META, describe_weights, load_weights, read_meta
from metasearch.parameters import META_INITS, POLICY_METHOD
from metasearch.prune import channel_importance
from metasearch.tasks import Normalisation, Task

PLACE = "student.init"
TEACHER_SLICE, PRIOR_STUDENT = "teacher_slice", "prior_student"

MISSING = {
    TEACHER_SLICE: f"needs a teacher whose weights are open: a network of {', '.join(FAMILIES)}",
    PRIOR_STUDENT: "needs --init-from STUDY or FILE",
    **dict.fromkeys(META_INITS, "needs a --meta FILE of this method, which `metasearch meta-train` makes"),
}
"""What an initialisation needs, where it is not there."""


@dataclass(frozen=True)
class SourceNetwork:
    """A trained network, on the CPU, that students of its family can start from.

    class_names: of its logits; empty where any task with as many classes may take its head. normalisation: of its
    inputs, None where each task's own takes its place.
    """

    spec: NetworkSpec
    model: nn.Module
    class_names: tuple[str, ...] = ()
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class _Layout:
    """Where a family's blocks lie: modules before them, in each, and between stages; blocks by stage, from depth."""

    before: int
    block: int
    between: int
    stages: Callable[[int], list[int]]

    def places(self, depth: int) -> dict[tuple[int, int, int], int]:
        """Return the index of each module up to the last block by its stage, block and place in the block."""
        found = {(-1, 0, index): index for index in range(self.before)}
        index = self.before
        for stage, blocks in enumerate(self.stages(depth)):
            index += self.between if stage > 0 else 0
            for block in range(blocks):
                found |= {(stage, block, part): index + part for part in range(self.block)}
                index += self.block
        return found


LAYOUTS = {
    "convnet": _Layout(before=0, block=3, between=1, stages=blocks_per_stage),
    "mlp": _Layout(before=1, block=3, between=0, stages=lambda depth: [depth]),
    "resnet": _Layout(before=3, block=1, between=0, stages=lambda depth: blocks_per_stage((depth + 1) // 2)),
    "mobilenet": _Layout(before=3, block=6, between=0, stages=blocks_per_stage),
}


def load_source(init: str, path: Path, task: Task) -> SourceNetwork:
    """Return the network in a weights file that an initialisation starts from.

    init: prior_student, or one of META_INITS, which the file must be of; its head fits any task of as many classes.
    Raises as `load_weights` does; InputError for another method or, of META_INITS, another input shape.
    """
    described = describe_weights(path)
    model = load_weights(path)
    spec = NetworkSpec.parse(described["spec"], place=str(path))
    if init == PRIOR_STUDENT:
        return SourceNetwork(spec, model, tuple(described.get("class_names", ())))
    if described[META].get("method") != init:
        raise InputError(str(path), f"must be meta-learned by {init}", described[META].get("method", "none"))
    if tuple(described["input_shape"]) != task.input_shape:
        raise InputError(str(path), f"must take the task's inputs {task.input_shape}", str(described["input_shape"]))
    return SourceNetwork(spec, model)


def meta_files(paths: list[Path]) -> dict[str, Path]:
    """Return meta-learned files, of weights or of a policy network, by their methods.

    Raises InputError for another file, or two of a method.
    """
    found: dict[str, Path] = {}
    for path in paths:
        method = read_meta(path).get("method", "none")
        if method not in (*META_INITS, POLICY_METHOD):
            rule = f"must be meta-learned by one of {', '.join((*META_INITS, POLICY_METHOD))}"
            raise InputError(f"--meta {path}", rule, method)
        if method in found:
            raise InputError(f"--meta {path}", f"must be the only one of {method}, beside {found[method]}")
        found[str(method)] = path
    return found


def find_source(init: str, *, teacher: SourceNetwork | None, files: Mapping[str, Path], task: Task) -> SourceNetwork:
    """Return the network that an initialisation other than `random` starts from.

    teacher: its network, where that is open. files: weights by the name of the initialisation. Raises InputError saying
    what is missing, and as `load_source` does.
    """
    if init == TEACHER_SLICE and teacher is not None:
        return teacher
    if init not in files:
        raise InputError(PLACE, MISSING[init], init)
    return load_source(init, files[init], task)


@torch.no_grad()
def initial_weights(model: nn.Module, source: SourceNetwork, *, spec: NetworkSpec, task: Task) -> float:
    """Set a student's weights and statistics, in place, to those of the source as far as they go.

    model: on the CPU, of `spec`, drawn at random for `task`. A first layer for other input channels, and a head for
    other classes or behind a gap, stay as they are. Returns the share of the student's parameters that were taken over.
    Raises InputError for a student of another family, or a family of the user's own.
    """
    if spec.family != source.spec.family or spec.family not in LAYOUTS:
        raise InputError(
            PLACE, f"starts from a network of family {source.spec.family}, and needs its like", spec.family
        )
    student, origin = _Network(model), _Network(_normalised_as(task.normalisation, source))
    namesake = _namesakes(spec, source.spec, model, source.model)
    taken = 0
    for name in student.layers:
        old = namesake(name)
        if old is None:
            continue
        if name not in student.made:  # the head
            before = {namesake(maker) for maker in student.makers_read_by(name)}
            if source.class_names not in ((), task.class_names) or before.isdisjoint(origin.makers_read_by(old)):
                continue
        taken += _take_layer(student, name, origin, old)
    return taken / sum(parameter.numel() for parameter in model.parameters())


class _Network:
    """A network with its channel groups by the layers that make and read them."""

    def __init__(self, model: nn.Module) -> None:
        groups = channel_groups(model)
        self.model = model
        self.layers = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        self.made = {name: group for group in groups for name in group.producers}
        self.read = {name: group for group in groups for name in group.consumers}
        self._importance = {group: channel_importance(model, group) for group in groups}

    def makers_read_by(self, name: str) -> set[str]:
        """Return the layers that make what a layer reads, none for the network's input."""
        return set(self.read[name].producers) if name in self.read else set()

    def strongest(self, group: ChannelGroup, count: int) -> Tensor:
        """Return the sorted indices of the `count` most important channels of a group, of all if it has fewer."""
        return self._importance[group].topk(min(count, group.size)).indices.sort().values

    def norms_behind(self, name: str) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
        """Return the normalisations that scale what a layer makes."""
        names = self.made[name].producers[name] if name in self.made else []
        return [self.model.get_submodule(norm) for norm in names]  # type: ignore[misc]  # groups hold no other


def _namesakes(
    spec: NetworkSpec, old_spec: NetworkSpec, model: nn.Module, old: nn.Module
) -> Callable[[str], str | None]:
    """Return the function from a student's layer to the source's layer in its place, None where there is none."""
    layout = LAYOUTS[spec.family]
    there = layout.places(old_spec.depth)
    index = {str(i): str(there[place]) for place, i in layout.places(spec.depth).items() if place in there}
    index[_last(model)] = _last(old)

    def namesake(name: str) -> str | None:
        first, point, rest = name.partition(".")
        return f"{index[first]}{point}{rest}" if first in index else None

    return namesake


def _last(model: nn.Module) -> str:
    return list(dict(model.named_children()))[-1]


def _take_layer(student: _Network, name: str, origin: _Network, old: str) -> int:
    """Take one layer over with the normalisations behind it; return how many parameters that set, 0 if none fits."""
    mine, theirs = weighted_layer(student.model, name), weighted_layer(origin.model, old)
    rows, columns = torch.arange(len(theirs.weight)), torch.arange(theirs.weight.shape[1])
    if old in origin.made:
        rows = origin.strongest(origin.made[old], len(mine.weight))
    elif len(mine.weight) != len(theirs.weight):  # logits of other classes
        return 0
    if old in origin.read:
        columns = origin.strongest(origin.read[old], mine.weight.shape[1])
    elif mine.weight.shape[1] != theirs.weight.shape[1]:  # inputs of other channels
        return 0
    if mine.weight.shape[2:] != theirs.weight.shape[2:]:
        return 0
    count = len(rows)
    mine.weight[:count] = 0  # what is new is not read at first
    mine.weight[:count, : len(columns)] = theirs.weight[rows][:, columns]
    taken = count * len(columns) * mine.weight[0, 0].numel()
    if mine.bias is not None and theirs.bias is not None:
        mine.bias[:count] = theirs.bias[rows]
        taken += count
    for into, out in zip(student.norms_behind(name), origin.norms_behind(old), strict=True):
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(into, part)[:count] = getattr(out, part)[rows]
        taken += 2 * count
    return taken


def _normalised_as(normalisation: Normalisation, source: SourceNetwork) -> nn.Module:
    """Return the source's network for inputs of another normalisation, folded into its first layer.

    With u = x * scale + shift for the student and u' = r * u + q for the source, W u' = (W r) u + W q, whose constant
    goes into the running mean behind. Exact but for the border of padded images, which is 0 in u and not in u'.
    """
    if source.normalisation in (None, normalisation):
        return source.model
    model = copy.deepcopy(source.model)
    network = _Network(model)
    name = next(name for name in network.layers if name not in network.read)
    layer, (norm, *_) = weighted_layer(model, name), network.norms_behind(name)
    theirs, ours = source.normalisation, normalisation
    scales = [t / o for t, o in zip(theirs.scale, ours.scale, strict=True)]
    shifts = [t - o * r for t, o, r in zip(theirs.shift, ours.shift, scales, strict=True)]
    repeat = layer.weight.shape[1] // len(scales)  # of a flattened image
    ratio, constant = (torch.tensor(values).repeat_interleave(repeat) for values in (scales, shifts))
    shape = (1, -1) + (1,) * (layer.weight.ndim - 2)
    assert norm.running_mean is not None
    norm.running_mean -= (layer.weight * constant.reshape(shape)).flatten(1).sum(dim=1)
    layer.weight *= ratio.reshape(shape)
    return model
