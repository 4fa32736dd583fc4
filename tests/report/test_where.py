"""The language of `--where`, against brute force over pandas, and against anything that a user can type."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metasearch.errors import InputError
from metasearch.report.conditions import names_in
from metasearch.report.matching import check_names, distances, matches, misses
from metasearch.report.where import DEEPEST, MOST_WORDS, parse_all, parse_where

FRAME = pd.DataFrame(
    {
        "number": np.arange(6),
        "x": [0.0, 1.0, 2.5, np.nan, -3.0, 1e9],
        "student.width": [4.0, np.nan, 8.0, 16.0, 4.0, 2.0],
        "model_bytes": [1e3, 2e4, 5e4, 5e4 + 1, np.nan, 1e6],
        "latency_ms": [0.5, 1.0, 2.0, np.nan, 4.0, 2000.0],
        "val_accuracy": [0.1, 0.5, 0.9, 0.95, np.nan, 1.0],
        "duration": [1.0, 60.0, 90.0, 3600.0, np.nan, 5.0],
        "state": np.array(["COMPLETE", "FAIL", "COMPLETE", None, "PRUNED", "COMPLETE"], object),
        "family": np.array(["a", "b", None, "it's", 'say "x"', "a"], object),
        "augment": [True, False, True, True, False, False],
    }
)
COLUMNS = {str(name): FRAME[name].to_numpy() for name in FRAME}
NUMBERS = ("number", "x", "student.width", "model_bytes", "latency_ms", "val_accuracy", "duration")
TEXTS = ("state", "family")

QUANTITIES: dict[str, list[tuple[str, float]]] = {
    "model_bytes": [("50kB", 5e4), ("20000", 2e4), ("1MB", 1e6), ("0.001GB", 1e6), ("50001B", 50001), ("1k", 1e3)],
    "latency_ms": [("2ms", 2), ("0.001s", 1), ("2", 2), ("2s", 2000)],
    "duration": [("1m", 60), ("1.5m", 90), ("1h", 3600), ("5s", 5), ("1000ms", 1), ("90", 90)],
    "val_accuracy": [("90%", 0.9), ("0.5", 0.5), ("100%", 1), ("0", 0)],
}
PLAIN: list[tuple[str, float]] = [
    ("0", 0),
    ("1", 1),
    ("2.5", 2.5),
    ("-3", -3),
    ("1G", 1e9),
    ("50%", 0.5),
    ("8", 8),
    ("4", 4),
]
SIGNS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "=": "eq", "==": "eq", "!=": "ne"}

Both = tuple[str, pd.Series]
"""An expression, and which rows pandas says it keeps."""


def known(*series: Any) -> Any:
    return np.logical_and.reduce([pd.notna(each) for each in series])


def compared(name: str, sign: str, literal: tuple[str, Any]) -> Both:
    text, value = literal
    kept = getattr(operator, SIGNS[sign])(FRAME[name], value) & known(FRAME[name])
    return f"{name} {sign} {text}", kept


def names_compared(pair: tuple[str, str], sign: str) -> Both:
    a, b = (FRAME[name] for name in pair)
    return f"{pair[0]}{sign}{pair[1]}", getattr(operator, SIGNS[sign])(a, b) & known(a, b)


def reckoned(first: str, factor: float, second: str, sign: str, bound: int) -> Both:
    value = FRAME[first] * factor - FRAME[second] / 2
    return f"{first} * {factor} - {second} / 2 {sign} {bound}", getattr(operator, SIGNS[sign])(value, bound) & known(
        value
    )


def among(name: str, literals: list[tuple[str, Any]], negated: bool) -> Both:
    inside = FRAME[name].isin([value for _, value in literals]) & known(FRAME[name])
    text = f"{name} {'not in' if negated else 'in'} [{', '.join(text for text, _ in literals)}]"
    return text, (~inside & known(FRAME[name])) if negated else inside


def quoted(text: str) -> tuple[str, str]:
    return (f'"{text}"' if '"' not in text else f"'{text}'"), text


TEXT_LITERALS = st.sampled_from(["COMPLETE", "FAIL", "a", "b", "it's", 'say "x"', "none of them", ""]).map(quoted)


def literals(name: str) -> st.SearchStrategy[tuple[str, float]]:
    return st.sampled_from(QUANTITIES.get(name, PLAIN))


def leaves() -> st.SearchStrategy[Both]:
    signs = st.sampled_from(list(SIGNS))
    numeric = st.sampled_from(NUMBERS).flatmap(lambda name: st.builds(compared, st.just(name), signs, literals(name)))
    textual = st.builds(compared, st.sampled_from(TEXTS), st.sampled_from(["=", "!=", "=="]), TEXT_LITERALS)
    flags = st.sampled_from([("augment", FRAME["augment"]), ("augment = false", ~FRAME["augment"])])
    pairs = st.builds(
        names_compared, st.sampled_from([("x", "student.width"), ("state", "family")]), st.sampled_from(["=", "!="])
    )
    sums = st.builds(
        reckoned,
        st.sampled_from(["x", "number"]),
        st.sampled_from([2, 0.5]),
        st.sampled_from(["student.width", "number"]),
        signs,
        st.integers(-5, 5),
    )
    numbers_among = st.sampled_from(NUMBERS).flatmap(
        lambda name: st.builds(among, st.just(name), st.lists(literals(name), min_size=1, max_size=3), st.booleans())
    )
    texts_among = st.builds(
        among, st.sampled_from(TEXTS), st.lists(TEXT_LITERALS, min_size=1, max_size=3), st.booleans()
    )
    return st.one_of(numeric, textual, flags, pairs, sums, numbers_among, texts_among)


def joined(word: str, parts: list[Both]) -> Both:
    join = np.logical_and.reduce if word == "and" else np.logical_or.reduce
    return "(" + f" {word} ".join(text for text, _ in parts) + ")", join([kept for _, kept in parts])


def expressions() -> st.SearchStrategy[Both]:
    def larger(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
        several = st.builds(joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
        return several | inner.map(lambda both: (f"not ({both[0]})", ~both[1]))

    return st.recursive(leaves(), larger, max_leaves=8)


@settings(max_examples=100)
@given(expressions())
def test_an_expression_keeps_the_rows_that_pandas_keeps(both: Both) -> None:
    text, kept = both
    found = matches(parse_where(text), COLUMNS, len(FRAME))
    assert found.tolist() == list(map(bool, kept)), text


@settings(max_examples=100)
@given(expressions())
def test_a_trial_is_at_distance_zero_exactly_where_the_condition_holds(both: Both) -> None:
    condition = parse_where(both[0])
    holds, far = matches(condition, COLUMNS, len(FRAME)), distances(condition, COLUMNS, len(FRAME))
    assert (far[holds] == 0).all()
    assert not np.isnan(far).any()
    assert (far >= 0).all()
    for row in range(len(FRAME)):
        assert bool(misses(condition, COLUMNS, len(FRAME), row)) is not bool(holds[row])


SIGNS_AND_WORDS = "( ) [ ] , < <= = != + - * / and or not in x family model_bytes started true 1 50kB 2ms 5% 1e400"
WORDS = st.sampled_from([*SIGNS_AND_WORDS.split(" "), '"a"', "'b'", "`x`", "__import__('os')", "\n", "é", "\0"])


@settings(max_examples=200)
@given(st.text(max_size=40) | st.lists(WORDS, max_size=20).map(" ".join) | st.lists(WORDS, max_size=12).map("".join))
@example("(" * 10_000)
@example("not " * 10_000 + "x")
@example("-" * 400 + "1 < x")
@example("x" + " + 1" * 200 + " < 5")
@example(" or ".join(["x = 1"] * 100))
@example("x in [" + "1," * 240 + "1]")
@example("family = 'a=\n'")
def test_whatever_is_typed_gives_an_answer_or_one_line(text: str) -> None:
    try:
        condition = parse_where(text)
        check_names(condition, COLUMNS)
        found = matches(condition, COLUMNS, len(FRAME))
        distances(condition, COLUMNS, len(FRAME))
    except InputError as error:
        answer = str(error)
    else:
        answer = f"--where keeps {found.sum()} of {found.size}"
        assert found.shape == (len(FRAME),)
    assert answer.startswith("--where")
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_byte < 1", "--where: column 1: is no name here (did you mean model_bytes?);"),
        ("x < 1 and state = COMPLETE", "--where: column 19: is no name here"),
        ("x < ", "--where: column 5: must be a name, a number or a text in quotes, got 'the end'"),
        ("x < 1 x", "--where: column 7: must end here, or go on with and, or, got 'x'"),
        ("(x < 1", "--where: column 7: must be ) or an operator, got 'the end'"),
        ("1 < x < 3", "--where: column 7: cannot follow a comparison; join two with and, got '<'"),
        ("x + 1", "--where: column 1: must be a condition such as model_bytes <= 25kB, got 'x + 1'"),
        ("x in 3", "--where: column 6: must be a list such as [1, 2], got '3'"),
        ("x not 3", "--where: column 7: must be in, after not, got '3'"),
        ("x in [family]", "--where: column 7: must be a number, a text in quotes, true or false, got 'family'"),
        ("family = 'a", "--where: column 10: has no closing quote, got \"'\""),
        ("x ; 1", "--where: column 3: is no part of an expression, got ';'"),
        ("x = 'a'", "--where: column 1: cannot compare x, a number, with 'a', a text"),
        ("augment = 1", "--where: column 1: cannot compare augment, true or false, with 1, a number"),
        ("family < 'b'", "--where: column 1: can only be compared with = and !=, being a text, got 'family'"),
        ("family + 1 < 2", "--where: column 1: cannot reckon with a text, got 'family + 1'"),
        ("model_bytes < 3ms", "--where: column 1: model_bytes cannot be compared with a number of time, got '3ms'"),
        ("model_bytes < 3KB", "--where: column 1: has an unknown unit (did you mean kB?), got 'KB'"),
        ("val_accuracy > 90", "--where: column 1: val_accuracy must be in [0, 1] or a percentage, got '90'"),
        ("latency_ms < duration", "--where: column 1: cannot compare latency_ms in ms with duration in s"),
        ("model_bytes + latency_ms < 2", "--where: column 1: cannot reckon with B and ms together"),
        ("x < 1e999", "--where: column 1: must be a finite number, got '1e999'"),
        ("(x < 1) + 2 > 3", "--where: column 1: must be a value, not a condition"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_column(text: str, message: str) -> None:
    def ask() -> None:
        condition = parse_where(text)
        check_names(condition, COLUMNS)
        matches(condition, COLUMNS, len(FRAME))

    with pytest.raises(InputError) as caught:
        ask()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["(" * (DEEPEST + 1), "x<1" + " and x<1" * MOST_WORDS])
def test_expressions_beyond_use_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must not be nested deeper|must have at most"):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("started >= '2026-02-01'", [1]),
        ("started < '2026-01-01 00:30+01:00'", []),
        ("started <= '2026-01-01 01:00+01:00'", [0]),
        ("started != '2026-01-01'", [1]),
    ],
)
def test_times_are_compared_with_texts_in_utc(text: str, numbers: list[int]) -> None:
    columns = {"started": np.array(["2026-01-01", "2026-02-01", "NaT"], "datetime64[us]")}
    assert np.flatnonzero(matches(parse_where(text), columns, 3)).tolist() == numbers


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("v = 1", [0]),
        ("v = true", [3]),
        ("v = 'a'", [1]),
        ("v > 0", [0, 4]),
        ("v != 'a'", []),
        ("v in [1, 'a']", [0, 1]),
    ],
)
def test_values_of_several_kinds_are_compared_with_their_own_kind(text: str, rows: list[int]) -> None:
    columns = {"v": np.array([1, "a", None, True, 2.5], object)}
    assert np.flatnonzero(matches(parse_where(text), columns, 5)).tolist() == rows


def test_words_bind_as_in_python_and_in_either_case() -> None:
    columns = {name: np.array([bool(row >> bit & 1) for row in range(8)]) for bit, name in enumerate("abc")}
    a, b, c = columns.values()
    for text, kept in [
        ("a or b and c", a | (b & c)),
        ("(a or b) and c", (a | b) & c),
        ("not a and b", ~a & b),
        ("NOT (a AND b) OR c", ~(a & b) | c),
        ("a = true and c = false", a & ~c),
    ]:
        assert matches(parse_where(text), columns, 8).tolist() == kept.tolist(), text
    sums = {"x": np.array([7.0])}
    for text in ("1 + 2 * 3 = x", "10 - 2 - 1 = x", "-x = -7", "(1 + 2.5) * 2 = x", "28 / 2 / 2 = x"):
        assert matches(parse_where(text), sums, 1).tolist() == [True], text


def test_odd_names_stand_in_backquotes() -> None:
    columns = {"an odd-name": np.array([1.0, 2.0])}
    condition = parse_where("`an odd-name` > 1")
    assert list(names_in(condition)) == ["an odd-name"]
    assert matches(condition, columns, 2).tolist() == [False, True]


def test_several_expressions_must_all_hold() -> None:
    condition = parse_all(["x > 0", "x < 2"])
    assert condition is not None
    assert np.flatnonzero(matches(condition, COLUMNS, len(FRAME))).tolist() == [1]
    assert parse_all([]) is None


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        (
            "model_bytes<=5kB and augment",
            1,
            ["model_bytes=20000 misses model_bytes <= 5kB by 15000", "augment=False misses augment = true"],
        ),
        ("model_bytes<=5kB or latency_ms < 0.9", 1, ["latency_ms=1 misses latency_ms < 0.9 by 0.1"]),
        ("not x < 2", 1, ["x=1 misses x >= 2 by 1"]),
        ("family in ['b', \"c\"]", 0, ["family='a' misses family in ['b', \"c\"]"]),
        ("latency_ms <= 2ms", 3, ["latency_ms is not known, as latency_ms <= 2ms needs"]),
        ("x * 2 > 10", 2, ["x * 2=5 misses x * 2 > 10 by 5"]),
    ],
)  # fmt: skip
def test_a_miss_is_told_with_its_amount(text: str, row: int, words: list[str]) -> None:
    assert misses(parse_where(text), COLUMNS, len(FRAME), row) == words


@pytest.mark.filterwarnings("error")
def test_infinities_are_compared_without_a_warning() -> None:
    columns = {"x": np.array([np.inf, -np.inf, np.nan, 1.0]), "y": np.array([np.inf, 1.0, 1.0, 0.0])}
    condition = parse_where("x < y and x / y > 2")
    assert matches(condition, columns, 4).tolist() == [False] * 4
    assert not np.isnan(distances(condition, columns, 4)).any()


def test_a_missing_value_is_infinitely_far_and_relative_excess_counts() -> None:
    far = distances(parse_where("model_bytes <= 10kB and latency_ms <= 1"), COLUMNS, len(FRAME))
    assert far[:3].tolist() == pytest.approx([0, 1, 5])
    assert math.isinf(far[3])
    assert math.isinf(far[4])
