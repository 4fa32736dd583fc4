"""The exceptions of metasearch, and the exit code that each gives the command line.

MetasearchError            1   the search failed
+-- InputError             2   the user's input breaks a rule: place, rule, value
+-- NotFoundError          3   no such study, trial, task or file
+-- InfeasibleError        4   nothing satisfies the constraints
+-- StorageError           5   the storage is locked, unreachable or of another version
+-- TrialFailure           1   a configuration failed by its own doing (recorded, the search goes on)
"""

from __future__ import annotations

from typing import ClassVar


class MetasearchError(Exception):
    """The base of every error that metasearch raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(MetasearchError, ValueError):
    """Input that breaks a rule; its message names the place, the rule and the value."""

    exit_code = 2

    def __init__(self, place: str, rule: str, value: object = None) -> None:
        super().__init__(f"{place}: {rule}" + ("" if value is None else f", got {_shown(value)}"))
        self.place, self.rule, self.value = place, rule, value

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object]]:
        return InputError, (self.place, self.rule, self.value)


class NotFoundError(MetasearchError):
    """A study, trial, task or file that is not there."""

    exit_code = 3


class InfeasibleError(MetasearchError):
    """No finished trial satisfies the constraints."""

    exit_code = 4


class StorageError(MetasearchError):
    """The storage is locked, unreachable, unwritable or of another schema version."""

    exit_code = 5


class TrialFailure(MetasearchError):
    """A trial that its own configuration made fail: diverged, out of memory, a request that changed nothing.

    reason: one word for counting ("diverged", "out_of_memory", "no_effect").
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message

    def __reduce__(self) -> tuple[type[TrialFailure], tuple[str, str]]:
        return TrialFailure, (self.reason, self.message)


def _shown(value: object) -> str:
    return value if isinstance(value, str) and "=" in value else repr(value)
