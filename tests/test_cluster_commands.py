"""Every command line of metasearch that cluster/ shows or runs is one that the program takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from metasearch import cli
from tests.command_texts import commands_in_markdown, commands_in_script

CLUSTER = Path(__file__).parent.parent / "cluster"


def test_commands_of_the_guide_and_scripts_are_parsed_by_the_program() -> None:
    found = all_commands()
    for words in found:
        assert refusal(words) == "", words
    assert {"launch", "resume", "status", "stop", "doctor"} <= {words[0] for words in found if words}


@pytest.mark.parametrize(
    "wrong", [["launch", "digits", "--wokers", "3"], ["lunch", "digits"], ["launch"], ["resume", "a", "--seed", "1"]]
)
def test_a_wrong_command_line_is_refused(wrong: list[str]) -> None:
    assert refusal(wrong) != ""


def test_command_lines_are_found_in_blocks_backticks_quotes_and_after_operators() -> None:
    text = (
        "Say `run a` or:\n\n    run b --c 'd e' | less\n    if run f; then ssh g 'run h \\\n      i'; fi\n\nrun nothing"
    )
    assert list(commands_in_markdown(text, "run")) == [["b", "--c", "d e"], ["f"], ["h", "i"], ["a"]]


def all_commands() -> list[list[str]]:
    """Return the command lines of metasearch in cluster/, those that start_or_resume.sh makes of its own included."""
    calls = list(commands_in_markdown((CLUSTER / "README.md").read_text(encoding="utf-8"), "metasearch"))
    wrapped = list(commands_in_markdown((CLUSTER / "README.md").read_text(encoding="utf-8"), "start_or_resume.sh"))
    for script in CLUSTER.glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        calls += [in_words(words) for words in commands_in_script(text, "metasearch")]
    job = yaml.safe_load((CLUSTER / "kuberay" / "job" / "rayjob.yaml").read_text(encoding="utf-8"))
    wrapped += commands_in_script(job["spec"]["entrypoint"], "start_or_resume.sh")
    wrapped += [words[1:] for words in commands_in_markdown((CLUSTER / "README.md").read_text("utf-8"), "sbatch")]
    for study, *words in (words for words in wrapped if "--" in words):
        at = words.index("--")
        calls += [["resume", study, *words[:at]], ["launch", *words[at + 1 :], "--name", study, *words[:at]]]
    assert len(calls) > 15
    return calls


def in_words(words: list[str]) -> list[str]:
    """Return a script's words with its lists of further arguments left out, and of launch the TASK put in."""
    kept = [word for word in words if "@" not in word]
    return ["launch", "TASK", *kept[1:]] if kept[0] == "launch" else kept


def refusal(words: list[str]) -> str:
    """Return what the program has against a command line, "" if nothing; the command is not run."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("metasearch", [], resilient_parsing=True)
    words = list(words)
    try:
        while hasattr(command, "commands"):
            name = words.pop(0)
            if name not in command.commands:
                return f"no command {name}"
            command = command.commands[name]
        command.make_context(name, words, parent=context)
    except typer.Exit:
        return ""
    except Exception as error:  # Typer's usage errors have a base class that it does not name
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return ""
