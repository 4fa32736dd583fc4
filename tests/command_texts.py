"""The command lines of a program that occur in documents and scripts, as lists of words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

BEFORE_A_COMMAND = {"if", "then", "else", "do", "until", "while", "!", "exec", "waited_for", "CMD"}
"""Words after which a command still begins. waited_for: a function of start_or_resume.sh."""


def commands_in_markdown(text: str, program: str) -> Iterator[list[str]]:
    """Yield what stands after `program` in the text's indented blocks and between its backticks."""
    indented = [line[4:] if line.startswith("    ") else "" for line in text.splitlines()]
    yield from commands_in_script("\n".join(indented), program)
    for code in re.findall(r"`([^`]+)`", re.sub(r"(?m)^    .*$", "", text)):
        yield from commands_in_script(code, program)


def commands_in_script(text: str, program: str) -> Iterator[list[str]]:
    """Yield what stands after `program` wherever it is called: as a command, or inside a quoted one."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in _whole_lines(joined):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from _calls(command, program)
                command = []
            else:
                command.append(word)


def _whole_lines(text: str) -> Iterator[str]:
    """Yield the lines, those that a quoted text spans as one."""
    waiting = ""
    for line in text.splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        try:
            shlex.split(waiting, comments=True)
        except ValueError:  # a quote is open: the text goes on
            continue
        yield waiting
        waiting = ""
    assert not waiting, f"a quote is never closed: {waiting}"


def _calls(command: list[str], program: str) -> Iterator[list[str]]:
    words = list(command)
    while words and (words[0] in BEFORE_A_COMMAND or re.fullmatch(r"\w+=.*", words[0])):
        words.pop(0)
    if words and words[0].rsplit("/", 1)[-1] == program:
        yield words[1:]
    else:
        for word in words:
            if f"{program} " in word:
                yield from commands_in_script(word, program)
