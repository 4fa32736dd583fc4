"""A user's own network as a family: `package.module:build`, a function by width and depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasearch.errors import InputError
from metasearch.functions import call_with_accepted, first_line, import_function
from metasearch.measure import eval_mode

PLACE = "student.family"
REQUIRED = ("width", "depth")


def build_user_network(family: str, *, input_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Module:
    """Return the network that the user's function builds, checked once with a batch of zeros.

    The function is called with width, depth, input_shape and classes, as far as it accepts them by keyword; the first
    two it must accept. Raises NotFoundError where there is no such module or function, InputError for a function that
    asks for something else or fails, a result that is no nn.Module, or logits of another shape than (B, classes).
    """
    build = import_function(family, place=f"{PLACE}: {family}")
    offered = {"width": width, "depth": depth, "input_shape": input_shape, "classes": classes}
    model = call_with_accepted(build, offered, place=PLACE, name=family, required=REQUIRED, fill_others=True)
    if not isinstance(model, nn.Module):
        raise InputError(PLACE, f"{family} must return a torch.nn.Module", type(model).__name__)
    with eval_mode(model), torch.no_grad():
        try:
            logits = model(torch.zeros(2, *input_shape))
        except Exception as error:  # whatever a user's forward pass raises
            rule = f"the network of {family} must take inputs {(2, *input_shape)}: {first_line(error)}"
            raise InputError(PLACE, rule) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise InputError(PLACE, f"{family} must map inputs {(2, *input_shape)} to logits {(2, classes)}", shape)
    return model
