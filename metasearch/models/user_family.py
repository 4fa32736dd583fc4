"""A user's own network as a family: `package.module:build`, a function by width and depth."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError
from metasearch.measure import eval_mode

PLACE = "student.family"
REQUIRED = ("width", "depth")


def build_user_network(family: str, *, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Module:
    """Return the network that the user's function builds, checked once with a batch of zeros.

    The function is called with width, depth, input_shape and classes, as far as it accepts them by keyword; the first
    two it must accept. Raises NotFoundError where there is no such module or function, InputError for a function that
    asks for something else, a result that is no nn.Module, or logits of another shape than (B, classes).
    """
    build = _function(family)
    offered = {"width": width, "depth": depth, "input_shape": input_shape, "classes": classes}
    model = build(**{name: offered[name] for name in _accepted(family, build, list(offered))})
    if not isinstance(model, nn.Module):
        raise InputError(PLACE, f"{family} must return a torch.nn.Module", type(model).__name__)
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(torch.zeros(2, *input_shape))
        except Exception as error:  # whatever a user's forward pass raises
            reason = (str(error).strip() or type(error).__name__).split("\n")[0]
            raise InputError(
                PLACE, f"the network of {family} must take inputs {(2, *input_shape)}: {reason}"
            ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise InputError(PLACE, f"{family} must map inputs {(2, *input_shape)} to logits {(2, classes)}", shape)
    return model


def _function(family: str) -> Callable[..., Any]:
    """Return the function that the text names; modules of the working directory can be imported."""
    module_name, _, name = family.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike `python -m`, does not look there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFoundError(f"{PLACE}: {family}: {error}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise NotFoundError(f"{PLACE}: {family}: the module {module_name} has no function {name}")
    return function


def _accepted(family: str, build: Callable[..., Any], offered: list[str]) -> list[str]:
    """Return those of the keywords that the function accepts."""
    parameters = inspect.signature(build).parameters
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [name for name, parameter in parameters.items() if parameter.kind in by_keyword]
    if missing := [name for name in REQUIRED if name not in named and not anything]:
        raise InputError(PLACE, f"{family} must accept the keyword {missing[0]}", ", ".join(parameters))
    unknown = [name for name in named if name not in offered and parameters[name].default is inspect.Parameter.empty]
    if unknown:
        raise InputError(PLACE, f"{family} may require only {', '.join(offered)}", unknown[0])
    return [name for name in offered if anything or name in named]
