"""A network as a function of its parameters, and what BatchNorm is inside an episode.

Running statistics mean nothing while weights are adapted to one small task, and batch statistics of the query set would
let each of its answers depend on the others. So a BatchNorm here takes its mean and variance from the *support* set,
with the weights of the moment, for support and query alike: both go through the network at once, and only the support
rows enter the statistics. That is differentiable, changes no buffer, and is what a student is whose running statistics
were recalibrated on the support set (`student_weights` writes them). With the query batch's own statistics, as in Finn
et al. (2017), an accuracy is *transductive*, and named so.

Symbols: B batch, S support rows, R query rows, D features before the classifier, K classes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metasearch.errors import InputError

Parameters = dict[str, Tensor]
"""The weights of a network, or a method's meta-parameters, by name."""


class EpisodeNorm(nn.Module):
    """BatchNorm by the statistics of the first `rows` rows of a batch, of all where None; nothing is remembered.

    The variance is the biased one, as in BatchNorm's training mode.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.rows: int | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, C, ...), normalised per channel C."""
        # torch's batch_norm would do where all rows count, were its second derivative not wrong by up to some percent
        # under vmap, once each episode has adapted its own weights (torch 2.15; no error is raised)
        mean, variance = moments(inputs if self.rows is None else inputs[: self.rows])
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        return inputs * scale.reshape(shape) + shift.reshape(shape)


def moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) each. inputs: (B, C, ...)."""
    variance, mean = torch.var_mean(inputs, dim=(0, *range(2, inputs.ndim)), correction=0)
    return mean, variance


@dataclass(frozen=True, eq=False)
class FunctionalNetwork:
    """A network to be called with any parameters. Make one with `of`.

    module: as it was built; it is never changed. head: the name of its last linear layer, or "" where it has none.
    """

    module: nn.Module
    head: str
    body: nn.Module
    trunk: nn.Module

    @classmethod
    def of(cls, module: nn.Module) -> FunctionalNetwork:
        """Return the network of a module. Its head is its last nn.Linear, whose output must be the network's."""
        body = copy.deepcopy(module)
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm):
                body = _with(body, name, EpisodeNorm(body.get_submodule(name)))  # type: ignore[arg-type]  # it is one
        linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        head = linear[-1] if linear else ""
        return cls(module, head, body, _with(copy.deepcopy(body), head, nn.Identity()) if head else body)

    def parameters(self) -> Parameters:
        """Return a copy of the module's parameters, that needs no gradient."""
        return {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}

    def __call__(self, parameters: Parameters, inputs: Tensor, *, rows: int | None = None) -> Tensor:
        """Return the outputs (B, ...) for inputs (B, ...). rows: how many of them give the statistics; None: all."""
        return _call(self.body, parameters, inputs, rows)

    def embed(self, parameters: Parameters, inputs: Tensor, *, rows: int | None = None) -> Tensor:
        """Return the features (B, D) that the head would read; parameters of the head are left alone."""
        return _call(self.trunk, self.without_head(parameters), inputs, rows)

    def query_outputs(
        self, parameters: Parameters, support_inputs: Tensor, query_inputs: Tensor, *, transductive: bool = False
    ) -> Tensor:
        """Return the outputs (R, ...) on the query set, with statistics of the support set.

        transductive: with those of the query set itself.
        """
        if transductive or not any(isinstance(layer, EpisodeNorm) for layer in self.body.modules()):
            return self(parameters, query_inputs)
        rows = len(support_inputs)
        return self(parameters, torch.cat([support_inputs, query_inputs]), rows=rows)[rows:]

    def head_names(self) -> tuple[str, str]:
        """Return the names of the head's weight and bias. Raises InputError where the network has no such layer."""
        if not self.head or self.module.get_submodule(self.head).bias is None:
            raise InputError("network", "must end in a linear layer with a bias")
        return f"{self.head}.weight", f"{self.head}.bias"

    def without_head(self, parameters: Parameters) -> Parameters:
        """Return the parameters of the trunk alone."""
        head = self.head_names()
        return {name: value for name, value in parameters.items() if name not in head}


def student_weights(network: FunctionalNetwork, parameters: Parameters, support_inputs: Tensor) -> Parameters:
    """Return the state_dict of an ordinary module with these parameters, its running statistics those of the support.

    In eval mode it then gives a query set what `query_outputs` gives it. The head may have any number K of classes:
    a module of the same family built for K takes the weights. support_inputs: (S, ...), normalised.
    """
    module = copy.deepcopy(network.module).eval()
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    hooks = [
        layer.register_forward_pre_hook(_take_statistics)
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    with torch.no_grad():
        functional_call(module, values, support_inputs)
    for hook in hooks:
        hook.remove()
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    return state | {name: value.clone() for name, value in values.items()}


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give a BatchNorm in eval mode the statistics of the batch that it is about to normalise."""
    mean, variance = moments(inputs[0])
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _with(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Return the module with the layer of a name replaced, in place; the layer itself where the name is ""."""
    if not name:
        return layer
    owner, _, key = name.rpartition(".")
    setattr(module.get_submodule(owner), key, layer)
    return module


def _call(module: nn.Module, parameters: Parameters, inputs: Tensor, rows: int | None) -> Tensor:
    for layer in module.modules():
        if isinstance(layer, EpisodeNorm):
            layer.rows = rows
    outputs: Tensor = functional_call(module, parameters, inputs)
    return outputs
