"""The language of `--where`: text to a condition (`conditions.py`), for `matching.py` to look which trials satisfy it.

    model_bytes <= 50kB and (latency_ms < 2ms or not augment)
    student.family in ["convnet", "resnet"] and distill.seconds / epochs_run < 3s and started >= "2026-11-01"

Loosest first: or, and, not, one comparison (< <= > >= = == != in, not in), + -, * /, a sign. A name is a dotted path,
in backquotes if it holds anything but letters, digits, _ and dots. Numbers take the units of constraints. Never
evaluated as Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metasearch.errors import InputError
from metasearch.report.conditions import (
    COMPARISONS,
    Among,
    Arithmetic,
    Comparison,
    Condition,
    Every,
    Name,
    Not,
    Quantity,
    Some,
    Value,
    Word,
)

MOST_WORDS, DEEPEST = 500, 50
"""Words of an expression, and parentheses and signs inside one another: far beyond use, below Python's recursion."""

WORDS = ("and", "or", "not", "in", "true", "false")

TOKEN = re.compile(
    r"""(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?[A-Za-z%]*)
      | (?P<quoted>"[^"\x00-\x1f]*"|'[^'\x00-\x1f]*')
      | (?P<name>[A-Za-z_]\w*(?:\.\w+)*|`[^`\x00-\x1f]+`)
      | (?P<sign><=|>=|==|!=|[-+*/<>=()\[\],])""",
    re.VERBOSE | re.ASCII,
)


def parse_where(text: str, *, place: str = "--where") -> Condition:
    """Return the condition that a text says. Raises InputError naming the column of what cannot be read."""
    return _Parser(_tokens(text, place), place).whole()


def parse_all(texts: Sequence[str], *, place: str = "--where") -> Condition | None:
    """Return the condition that all texts hold, None if there is none."""
    parts = tuple(parse_where(text, place=place) for text in texts)
    return parts[0] if len(parts) == 1 else Every(parts, 1) if parts else None


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str, place: str) -> list[_Token]:
    found, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = TOKEN.match(text, position)
        if match is None:
            rule = "has no closing quote" if text[position] in "\"'`" else "is no part of an expression"
            raise InputError(f"{place}: column {position + 1}", rule, text[position])
        kind, word = str(match.lastgroup), match.group()
        if kind == "name" and (word.islower() or word.isupper()) and word.lower() in WORDS:
            kind, word = "word", word.lower()
        found.append(_Token(kind, word, position + 1))
        position = match.end()
    if len(found) > MOST_WORDS:
        raise InputError(place, f"must have at most {MOST_WORDS} words", len(found))
    for before, after in pairwise(found):
        if before.kind == after.kind == "number":
            raise InputError(f"{place}: column {after.at}", "must be parted from the number before it", after.text)
    return [*found, _Token("end", "", len(text) + 1)]


class _Parser:
    """Recursive descent, one method a level of binding, loosest first."""

    def __init__(self, tokens: list[_Token], place: str) -> None:
        self._tokens, self._place, self._next, self._depth = tokens, place, 0, 0

    def whole(self) -> Condition:
        found = self._condition(self._either())
        if self._here.kind != "end":
            raise self._wrong("must end here, or go on with and, or")
        return found

    @property
    def _here(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        """Step over the next token if it is one of these words or signs."""
        here = self._here
        if here.kind not in ("word", "sign") or here.text not in texts:
            return None
        self._next += 1
        return here

    def _wrong(self, rule: str) -> InputError:
        here = self._here
        place = f"{self._place}: column {here.at}"
        return InputError(place, rule, "the end" if here.kind == "end" else here.text)

    def _condition(self, node: Condition | Value) -> Condition:
        """Take a node as a condition: a name alone, or true, stands for `NAME = true`."""
        if isinstance(node, Name) or (isinstance(node, Word) and isinstance(node.value, bool)):
            return Comparison("=", node, Word(True, "true", node.at), node.at)
        if isinstance(node, (Quantity, Word, Arithmetic)):
            rule = "must be a condition such as model_bytes <= 25kB"
            raise InputError(f"{self._place}: column {node.at}", rule, node.text)
        return node

    def _value(self, node: Condition | Value, at: int) -> Value:
        if isinstance(node, (Quantity, Word, Name, Arithmetic)):
            return node
        raise InputError(f"{self._place}: column {at}", "must be a value, not a condition")

    def _either(self) -> Condition | Value:
        first = self._both()
        if self._here.text != "or" or self._here.kind != "word":
            return first
        parts = [self._condition(first)]
        while self._take("or"):
            parts.append(self._condition(self._both()))
        return Some(tuple(parts), parts[0].at)

    def _both(self) -> Condition | Value:
        first = self._inverted()
        if self._here.text != "and" or self._here.kind != "word":
            return first
        parts = [self._condition(first)]
        while self._take("and"):
            parts.append(self._condition(self._inverted()))
        return Every(tuple(parts), parts[0].at)

    def _inverted(self) -> Condition | Value:
        token = self._take("not")
        if token is None:
            return self._compared()
        self._deeper()
        part = self._condition(self._inverted())
        self._depth -= 1
        return Not(part, token.at)

    def _compared(self) -> Condition | Value:
        at = self._here.at
        left = self._sum()
        if token := self._take(*COMPARISONS):
            right_at = self._here.at
            right = self._value(self._sum(), right_at)
            if self._here.kind == "sign" and self._here.text in COMPARISONS:
                raise self._wrong("cannot follow a comparison; join two with and")
            return Comparison("=" if token.text == "==" else token.text, self._value(left, at), right, at)
        negated = self._take("not") is not None
        if self._take("in"):
            return Among(self._value(left, at), self._choices(), negated, at)
        if negated:
            raise self._wrong("must be in, after not")
        return left

    def _choices(self) -> tuple[Quantity | Word, ...]:
        if not self._take("["):
            raise self._wrong("must be a list such as [1, 2]")
        choices: list[Quantity | Word] = []
        while not choices or self._take(","):
            sign, choice = self._take("-"), self._primary()
            if not isinstance(choice, (Quantity, Word)) or (sign and isinstance(choice, Word)):
                self._next -= 1
                raise self._wrong("must be a number, a text in quotes, true or false")
            choices.append(Quantity(f"-{choice.text}", sign.at) if sign else choice)
        if not self._take("]"):
            raise self._wrong("must be , or ]")
        return tuple(choices)

    def _sum(self) -> Condition | Value:
        at = self._here.at
        left = self._product()
        while token := self._take("+", "-"):
            right_at = self._here.at
            left = Arithmetic(token.text, self._value(left, at), self._value(self._product(), right_at), at)
        return left

    def _product(self) -> Condition | Value:
        at = self._here.at
        left = self._signed()
        while token := self._take("*", "/"):
            right_at = self._here.at
            left = Arithmetic(token.text, self._value(left, at), self._value(self._signed(), right_at), at)
        return left

    def _signed(self) -> Condition | Value:
        token = self._take("-", "+")
        if token is None:
            return self._primary()
        self._deeper()
        at = self._here.at
        operand = self._value(self._signed(), at)
        self._depth -= 1
        return (
            Quantity(f"{token.text}{operand.text}", token.at)
            if _unsigned(operand)
            else Arithmetic(token.text, None, operand, token.at)
        )

    def _primary(self) -> Condition | Value:
        here = self._here
        if self._take("("):
            self._deeper()
            inner = self._either()
            self._depth -= 1
            if not self._take(")"):
                raise self._wrong("must be ) or an operator")
            return inner
        operators = here.kind == "word" and here.text in ("and", "or", "not", "in")
        if operators or here.kind in ("end", "sign"):
            raise self._wrong("must be a name, a number or a text in quotes")
        self._next += 1
        if here.kind == "number":
            return Quantity(here.text, here.at)
        if here.kind == "quoted":
            return Word(here.text[1:-1], here.text, here.at)
        if here.kind == "word":
            return Word(here.text == "true", here.text, here.at)
        return Name(here.text.strip("`"), here.text, here.at)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"must not be nested deeper than {DEEPEST}")


def _unsigned(node: Value) -> bool:
    return isinstance(node, Quantity) and node.text[0] not in "+-"
