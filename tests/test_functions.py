from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metasearch.errors import InputError, NotFoundError, TrialFailure
from metasearch.functions import call_with_accepted, first_line, import_function

OFFERED = {"a": 1, "b": 2}


def call(function: Any, **options: Any) -> Any:
    return call_with_accepted(function, OFFERED, place="here", name="it", **options)


def test_a_function_gets_the_keywords_that_it_names() -> None:
    assert call(lambda b: b) == 2
    assert call(lambda *, a=0, c=3: (a, c)) == (1, 3)
    assert call(lambda a, **others: (a, others)) == (1, {})
    assert call(lambda a, **others: (a, others), fill_others=True) == (1, {"b": 2})


@pytest.mark.parametrize(
    ("function", "options", "rule"),
    [
        (lambda a, c: a, {}, "here: it may require only a, b, got 'c'"),
        (lambda a, /: a, {}, "here: it may require only a, b, got 'a'"),
        (lambda a: a, {"required": ["b"]}, "here: it must accept the keyword b, got 'a'"),
        (lambda **others: others, {"required": ["b"]}, "here: it must accept the keyword b, got 'others'"),
        (lambda: [][1], {}, "here: it fails (IndexError: list index out of range)"),
        (lambda: int("\n"), {}, "here: it fails (ValueError: invalid literal for int() with base 10: '\\n')"),
    ],
)
def test_a_function_that_cannot_be_called_or_fails_is_one_line(function: Any, options: Any, rule: str) -> None:
    with pytest.raises(InputError) as refusal:
        call(function, **options)
    assert str(refusal.value) == rule


def test_what_metasearch_itself_raises_inside_a_function_stays_what_it_is() -> None:
    def fails() -> None:
        raise TrialFailure("diverged", "nan")

    with pytest.raises(TrialFailure, match="diverged: nan"):
        call(fails)


def test_a_module_that_fails_while_it_is_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_failing_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^here: the module a_failing_module cannot be imported \(division by zero\)$"
    ):
        import_function("a_failing_module:build", place="here")
    with pytest.raises(NotFoundError, match="here: the module math has no function pi"):
        import_function("math:pi", place="here")
    assert import_function("math:sqrt", place="here")(4) == 2


def test_the_first_line_of_an_error_is_the_first_that_says_something() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError(" \n")) == "ValueError"
