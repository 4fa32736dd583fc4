"""Functions of the user's own, `package.module:function`: found, called with what they accept, errors in one line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metasearch.errors import InputError, MetasearchError, NotFoundError


def import_function(text: str, *, place: str) -> Callable[..., Any]:
    """Return what `package.module:function` names; modules of the working directory can be imported.

    place: how errors name it. Raises NotFoundError where there is no such module or function, InputError where the
    module itself fails.
    """
    module_name, _, function_name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script, unlike `python -m`, does not look there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NotFoundError(f"{place}: {error}") from error
    except Exception as error:  # whatever a user's module raises
        raise InputError(place, f"the module {module_name} cannot be imported ({first_line(error)})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise NotFoundError(f"{place}: the module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]  # whatever it returns, the caller checks


def call_with_accepted(
    function: Callable[..., Any],
    offered: Mapping[str, object],
    *,
    place: str,
    name: str,
    required: Sequence[str] = (),
    fill_others: bool = False,
) -> Any:
    """Return what the function makes of those of the offered keywords that it accepts.

    place, name: how errors name it. required: keywords that it must accept. fill_others: whether its `**others` get
    what has no parameter of its own; torchvision's functions hand them to a constructor that does not know our names.
    Raises InputError where it lacks a required keyword, needs one that is not offered, or fails.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:  # a builtin may have none
        raise InputError(place, f"{name} must be a function with a signature") from error
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [key for key, parameter in parameters.items() if parameter.kind in by_keyword]
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind not in variadic]
    if fill_others and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        named += [key for key in offered if key not in named]
    if missing := [key for key in required if key not in named]:
        raise InputError(place, f"{name} must accept the keyword {missing[0]}", ", ".join(parameters))
    if unknown := [key for key in needed if key not in named or key not in offered]:
        raise InputError(place, f"{name} may require only {', '.join(offered)}", unknown[0])
    try:
        return function(**{key: value for key, value in offered.items() if key in named})
    except (MetasearchError, MemoryError):
        raise
    except Exception as error:  # whatever a user's function raises
        raise InputError(place, f"{name} fails ({type(error).__name__}: {first_line(error)})") from error


def first_line(error: object) -> str:
    """Return the first line of an error's message that says something, its type where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
