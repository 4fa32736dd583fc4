"""A teacher's network, opened: from inputs at rest to logits, whatever it was written with.

Symbols: B batch; K classes; inputs at rest as in `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.measure import count_parameters, eval_mode
from metasearch.records import EpochReport
from metasearch.taps import Features
from metasearch.tasks import Normalisation, Task
from metasearch.teachers.cache import cache_key, cache_path, read_cache, write_cache
from metasearch.teachers.checkpoints import load_checkpoint
from metasearch.teachers.exported import node_names, node_values, open_exported
from metasearch.teachers.features import Show, check_names, found_features, layer_features, value_features
from metasearch.teachers.networks import build_teacher
from metasearch.teachers.onnx_file import count_onnx, open_onnx
from metasearch.teachers.recipe import train_teacher
from metasearch.teachers.source import OWN, TeacherMember, pixel_statistics

IMAGENET = "0.485,0.456,0.406/0.229,0.224,0.225"
"""Mean and deviation of ImageNet's channels, as torchvision's networks are trained with."""


@dataclass(frozen=True)
class TeacherNetwork:
    """An opened network.

    module: for those who look inside, None for ONNX; it takes what `prepare` returns. run: the same function, whatever
    computes it. batch: how many inputs it takes at once, None for any number. macs: of one input; parameters and macs
    are None where they cannot be counted. show: the features of what `prepare` returns, None where it shows none.
    """

    place: str
    module: nn.Module | None
    prepare: Callable[[Tensor], Tensor]
    run: Callable[[Tensor], object]
    device: torch.device
    batch: int | None = None
    parameters: int | None = None
    macs: int | None = None
    show: Show | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """Return (B, K) float32 on the device for inputs at rest, in batches of its own size where that is fixed.

        Raises InputError if what the network returns is not of that shape.
        """
        prepared = self.prepare(inputs.to(self.device))
        parts = [prepared] if self.batch is None else list(torch.split(prepared, self.batch))
        return torch.cat([self._part(part) for part in parts])

    def features(self, inputs: Tensor) -> Features:
        """Return the features (B, ...) of inputs at rest, at most `batch` of them; none where the network shows none.

        Raises InputError for a named value that cannot be a feature.
        """
        if self.show is None:
            return Features()
        count, shown = len(inputs), self.show(self._padded(self.prepare(inputs.to(self.device))))
        embedding = None if shown.embedding is None else shown.embedding[:count]
        return Features({name: values[:count] for name, values in shown.maps.items()}, embedding)

    def _padded(self, prepared: Tensor) -> Tensor:
        missing = 0 if self.batch is None else self.batch - len(prepared)
        return torch.cat([prepared, prepared[-1:].expand(missing, *prepared.shape[1:])]) if missing else prepared

    def _part(self, prepared: Tensor) -> Tensor:
        padded = self._padded(prepared)
        output = self.run(padded)
        if not isinstance(output, Tensor):
            raise InputError(self.place, "must return one tensor of logits", type(output).__name__)
        if output.ndim != 2 or len(output) != len(padded):
            raise InputError(
                self.place, f"must return logits of shape ({len(padded)}, K)", f"shape={tuple(output.shape)}"
            )
        return output[: len(prepared)].to(self.device, torch.float32)


def open_teacher(
    member: TeacherMember,
    task: Task,
    *,
    normalisation: str = "task",
    seed: int = 0,
    device: torch.device | str = "cpu",
    train: bool = True,
    features: Sequence[str] = (),
    progress: Callable[[EpochReport], None] | None = None,
) -> TeacherNetwork:
    """Return a member's network, in eval mode and tried on one input.

    seed: of its training, if our recipe trains it (once: the weights are cached). train: False leaves such a network as
    it was initialised, for a check of its shapes. features: the names of the values that are its features; empty for
    those found in its layers. progress: called after every training epoch.
    Raises InputError if the network does not fit the task, its file breaks a rule or a name is none of a feature;
    NotFoundError if it is not there.
    """
    device = torch.device(device)
    task = replace(task, normalisation=normalisation_for(normalisation, task))
    path = Path(member.text)
    if path.suffix == ".onnx":
        onnx = open_onnx(path, place=member.place, shown=features)
        prepare = _prepare(task, onnx.dtype, normalisation, member.place)
        show = value_features(onnx.values, features) if features else None
        network = TeacherNetwork(member.place, None, prepare, onnx, device, onnx.batch, show=show)
        _probe(network, task, features)
        parameters, macs = count_onnx(path)
        return replace(network, parameters=parameters, macs=macs)
    if path.suffix == ".pt2":
        exported = open_exported(path, place=member.place, device=device)
        program = exported.module
        check_names(features, node_names(program), what=f"a node of {member.place}")
        show = value_features(partial(node_values, program, features), features) if features else None
        prepare = _prepare(task, exported.dtype, normalisation, member.place)
        network = TeacherNetwork(member.place, program, prepare, program, device, exported.batch, show=show)
    else:
        module = _module(member, task, seed=seed, device=device, train=train, progress=progress)
        if features:
            show = layer_features(module, features, place=member.place, input_shape=task.input_shape)
        else:
            show = found_features(module, task.input_shape)
        network = TeacherNetwork(member.place, module, task.normalisation, module, device, show=show)
    assert network.module is not None
    _probe(network, task, features)
    return replace(network, parameters=count_parameters(network.module), macs=_count_macs(network, task))


def normalisation_for(text: str, task: Task) -> Normalisation:
    """Return the map from inputs at rest that a --teacher-normalisation stands for.

    Raises InputError for one of pixels where the inputs are vectors, or another number of channels.
    """
    channels = task.input_shape[0]
    if text == "task":
        return task.normalisation
    if text == "raw":
        return Normalisation((1.0,) * channels, (0.0,) * channels)
    if not task.is_image:
        raise InputError("--teacher-normalisation", "must be task or raw for vectors", text)
    if text == "unit":
        return Normalisation((1 / 255,) * channels, (0.0,) * channels)
    means, deviations = pixel_statistics(IMAGENET if text == "imagenet" else text)
    if len(means) != channels:
        raise InputError("--teacher-normalisation", f"must have a number for each of {channels} channels", text)
    scale = tuple(1 / (255 * deviation) for deviation in deviations)
    return Normalisation(scale, tuple(-mean / std for mean, std in zip(means, deviations, strict=True)))


def _module(
    member: TeacherMember,
    task: Task,
    *,
    seed: int,
    device: torch.device,
    train: bool,
    progress: Callable[[EpochReport], None] | None,
) -> nn.Module:
    module = build_teacher(member.text, input_shape=task.input_shape, classes=task.classes, seed=seed)
    if member.is_trained_here and train:
        path = cache_path(cache_key(task, member, seed=seed), part="weights")
        kept = read_cache(path)
        if kept is None or _shapes(kept[0]) != _shapes(module.state_dict()):
            module = train_teacher(task, member.text, seed=seed, device=device, progress=progress)
            write_cache(path, module.state_dict(), {})
            return module.eval()
        module.load_state_dict(kept[0])
    elif member.weights not in (None, OWN):
        load_checkpoint(module, Path(str(member.weights)))
    return module.to(device).eval()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _prepare(task: Task, dtype: torch.dtype, normalisation: str, place: str) -> Callable[[Tensor], Tensor]:
    """Return the map from inputs at rest to what a file takes. Raises InputError for bytes asked to be normalised."""
    if dtype == torch.uint8:
        if normalisation != "raw" or not task.is_image:
            raise InputError(place, "takes bytes: needs --teacher-normalisation raw, and images", normalisation)
        return lambda inputs: inputs
    return lambda inputs: task.normalisation(inputs).to(dtype)


def _probe(network: TeacherNetwork, task: Task, features: Sequence[str]) -> None:
    """Raise InputError unless the network maps one input of the task to K logits, and each named value is a feature."""
    shape = task.input_shape
    try:
        with torch.inference_mode():
            logits = network.logits(task.train.inputs[:1])
    except InputError:
        raise
    except Exception as error:  # a network of the user's own raises whatever it likes on a shape it was not made for
        raise InputError(network.place, f"does not take inputs of shape {shape} ({first_line(error)})") from error
    if logits.shape[1] != task.classes:
        raise InputError(network.place, f"must have the task's {task.classes} classes", logits.shape[1])
    if features:
        with torch.inference_mode():  # of two inputs: a value that is the same for every batch has another length
            network.features(task.train.inputs[: network.batch or 2])


def _count_macs(network: TeacherNetwork, task: Task) -> int:
    """Return the MACs of one input, recurrent and attention layers included.

    torch's counter sees what reaches the dispatcher: the fused kernels of oneDNN and cuDNN for LSTMs and those of the
    transformer's fast path hide their products from it, so they are off while it counts.
    """
    assert network.module is not None
    batch = network.batch or 1
    example = network.prepare(task.train.inputs[:1].to(network.device)).expand(batch, *task.input_shape)
    with _unfused(), eval_mode(network.module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.module(example)
    return int(counter.get_total_flops()) // 2 // batch


@contextmanager
def _unfused() -> Iterator[None]:
    backends: Any = torch.backends  # torch types these properties as their descriptors
    before = backends.mkldnn.enabled, backends.cudnn.enabled, backends.mha.get_fastpath_enabled()
    # not mkldnn.flags(): it sets TF32, too, and warns of that on every CPU (torch 2.15)
    backends.mkldnn.enabled = backends.cudnn.enabled = False
    backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        backends.mkldnn.enabled, backends.cudnn.enabled = before[:2]
        backends.mha.set_fastpath_enabled(before[2])
