"""What an expression of `--where` says, as a tree: values, and conditions on them. at: a node's column, from 1."""

from __future__ import annotations

from dataclasses import dataclass

COMPARISONS = ("<=", ">=", "==", "!=", "<", ">", "=")


@dataclass(frozen=True)
class Quantity:
    """A number with an optional unit, as written."""

    text: str
    at: int


@dataclass(frozen=True)
class Word:
    """A text in quotes, or true or false. value: str or bool. text: as written."""

    value: str | bool
    text: str
    at: int


@dataclass(frozen=True)
class Name:
    """What a trial may have: a metric, a parameter, a stage's result, an attribute, its state or a time."""

    name: str
    text: str
    at: int


@dataclass(frozen=True)
class Arithmetic:
    """operator: + - * /. left: None for a sign."""

    operator: str
    left: Value | None
    right: Value
    at: int

    @property
    def text(self) -> str:
        """The expression as it is read."""
        right = f"({self.right.text})" if isinstance(self.right, Arithmetic) else self.right.text
        if self.left is None:
            return f"{self.operator}{right}"
        left = f"({self.left.text})" if isinstance(self.left, Arithmetic) else self.left.text
        return f"{left} {self.operator} {right}"


Value = Quantity | Word | Name | Arithmetic


@dataclass(frozen=True)
class Comparison:
    """operator: one of COMPARISONS, with = for ==."""

    operator: str
    left: Value
    right: Value
    at: int

    @property
    def text(self) -> str:
        """The comparison as it is read."""
        return f"{self.left.text} {self.operator} {self.right.text}"


@dataclass(frozen=True)
class Among:
    """Whether a value is one of some (not one of them, if negated)."""

    value: Value
    choices: tuple[Quantity | Word, ...]
    negated: bool
    at: int

    @property
    def text(self) -> str:
        """The condition as it is read."""
        choices = ", ".join(choice.text for choice in self.choices)
        return f"{self.value.text} {'not in' if self.negated else 'in'} [{choices}]"


@dataclass(frozen=True)
class Not:
    """True where the part is not."""

    part: Condition
    at: int


@dataclass(frozen=True)
class Every:
    """True where all parts are (and)."""

    parts: tuple[Condition, ...]
    at: int


@dataclass(frozen=True)
class Some:
    """True where any part is (or)."""

    parts: tuple[Condition, ...]
    at: int


Condition = Comparison | Among | Not | Every | Some


def conjuncts(condition: Condition) -> tuple[Condition, ...]:
    """Return the conditions that all must hold for this one to hold."""
    return condition.parts if isinstance(condition, Every) else (condition,)


def names_in(node: Condition | Value) -> dict[str, Name]:
    """Return the names that a condition speaks of, each where it is spoken of first."""
    if isinstance(node, Name):
        return {node.name: node}
    if isinstance(node, (Quantity, Word)):
        return {}
    inner: tuple[Condition | Value | None, ...]
    if isinstance(node, (Comparison, Arithmetic)):
        inner = (node.left, node.right)
    elif isinstance(node, Among):
        inner = (node.value,)
    else:
        inner = (node.part,) if isinstance(node, Not) else node.parts
    found: dict[str, Name] = {}
    for part in inner:
        if part is not None:
            found = names_in(part) | found
    return dict(sorted(found.items(), key=lambda item: item[1].at))
