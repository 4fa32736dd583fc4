"""A file of priors gives back what was written, and refuses in one line whatever breaks a rule."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.errors import InputError, NotFoundError
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.priors_file import METADATA_KEY, decode_priors, encode_priors, read_priors, write_priors

PRIOR = Prior(
    name="usps-1",
    directions={"val_accuracy": "maximize", "model_bytes": "minimize"},
    distributions={
        "rate": FloatDistribution(0.001, 1.0, log=True),
        "width": IntDistribution(4, 24, step=2),
        "optimizer": CategoricalDistribution(("sgd", "adamw")),
        "momentum": FloatDistribution(0.8, 0.9, step=0.05),
    },
    trials=(
        PriorTrial(
            {"rate": 0.01, "width": 8, "optimizer": "sgd", "momentum": 0.85},
            {"val_accuracy": 0.9, "model_bytes": 900.0, "macs": 7.0},
            curve=(0.5, 0.75),
        ),
        PriorTrial({"rate": 0.1, "width": 24, "optimizer": "adamw"}, {}, "pruned", (0.25,)),
        PriorTrial({"rate": 1.0, "width": 4, "optimizer": "adamw"}, {}, "fail"),
    ),
    task="usps",
    features={"classes": 10.0},
    versions={"metasearch": "0.1.0"},
    fixed={"alpha": 0.9, "augment": False, "loss": "kd"},
    fingerprint="ab" * 32,
)

Table = Any  # pyarrow has no types

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.0, 1.0, 0.5, "1", "true", "", "a:b", "é"])


@st.composite
def searched(draw: st.DrawFn) -> tuple[BaseDistribution, st.SearchStrategy[Any]]:
    """A distribution of any kind, and its values."""
    kind = draw(st.sampled_from(["float", "log", "step", "int", "int log", "choice"]))
    if kind == "choice":
        choices: list[Any] = draw(
            st.lists(scalars, min_size=1, max_size=5, unique_by=lambda value: (type(value), value))
        )
        return CategoricalDistribution(choices), st.sampled_from(choices)
    if kind == "step":
        first, step, count = draw(st.integers(-5, 5)), draw(st.sampled_from([0.1, 0.25, 2.0])), draw(st.integers(1, 30))
        last = round(first + step * count, 9)
        steps = st.integers(0, count).map(lambda k: min(first + k * step, last))
        return FloatDistribution(first, last, step=step), steps
    if kind.startswith("int"):
        start, width, by = draw(st.integers(1, 50)), draw(st.integers(0, 20)), draw(st.integers(1, 4))
        if kind == "int log":
            return IntDistribution(start, start + width, log=True), st.integers(start, start + width)
        ints = range(start, start + by * width + 1, by)
        return IntDistribution(start, start + by * width, step=by), st.sampled_from(ints)
    low, high = sorted((draw(st.floats(1e-6, 1e3)), draw(st.floats(1e-6, 1e3))))
    return FloatDistribution(low, high, log=kind == "log"), st.floats(low, high)


@st.composite
def priors(draw: st.DrawFn, name: str) -> Prior:
    """A prior with parameters of all kinds, each of which may be absent from a trial."""
    domains = draw(st.dictionaries(st.sampled_from(["a", "b", "c.d", "e:f"]), searched(), max_size=4))

    def trial() -> PriorTrial:
        params = {path: draw(values) for path, (_, values) in domains.items() if draw(st.booleans())}
        state = draw(st.sampled_from(["complete", "pruned", "fail"]))
        metrics = {"score": draw(numbers)} | ({"macs": draw(numbers)} if draw(st.booleans()) else {})
        curve = tuple(draw(st.lists(st.floats(0, 1, width=32), max_size=3)))
        return PriorTrial(params, metrics if state == "complete" else {}, state, curve)

    return Prior(
        name=name,
        directions={"score": draw(st.sampled_from(["minimize", "maximize"]))},
        distributions={path: distribution for path, (distribution, _) in domains.items()},
        trials=tuple(trial() for _ in range(draw(st.integers(0, 4)))),
        task=draw(st.text(max_size=5)),
        features=draw(st.dictionaries(st.text(max_size=3), numbers, max_size=2)),
        versions=draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)),
        fixed=draw(st.dictionaries(st.text(max_size=3), scalars, max_size=2)),
        fingerprint=draw(st.text(max_size=3)),
    )


def typed(prior: Prior) -> list[dict[str, tuple[type, Any]]]:
    return [{name: (type(value), value) for name, value in trial.params.items()} for trial in prior.trials]


@given(st.tuples(priors("one"), priors("two")))
def test_what_is_written_is_read_with_every_value_of_the_same_type(written: tuple[Prior, ...]) -> None:
    found = decode_priors(encode_priors(written, place="p"), place="p")
    assert found == written
    assert [typed(prior) for prior in found] == [typed(prior) for prior in written]
    for before, after in zip(written, found, strict=True):
        for name, distribution in before.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                again = after.distributions[name]
                assert isinstance(again, CategoricalDistribution)
                assert list(map(type, again.choices)) == list(map(type, distribution.choices))


def test_choices_that_are_equal_in_python_stay_apart() -> None:
    choices = (1, 1.0, True, "1", "true", None, 0, False)
    trials = tuple(PriorTrial({"x": choice}, {"score": 1.0}) for choice in choices)
    prior = Prior("p", {"score": "maximize"}, {"x": CategoricalDistribution(choices)}, trials)
    (found,) = decode_priors(encode_priors([prior], place="p"), place="p")
    assert [repr(trial.params["x"]) for trial in found.trials] == list(map(repr, choices))


def test_a_parameter_may_be_a_number_in_one_prior_and_a_choice_in_another() -> None:
    def prior(name: str, distribution: BaseDistribution, value: object) -> Prior:
        return Prior(name, {"s": "maximize"}, {"x": distribution}, (PriorTrial({"x": value}, {"s": 1.0}),))

    written = (
        prior("a", IntDistribution(1, 9), 3),
        prior("b", FloatDistribution(0, 1), 0.5),
        prior("c", CategoricalDistribution(("x", 2)), "x"),
    )
    assert decode_priors(encode_priors(written, place="p"), place="p") == written


def test_a_file_is_written_and_read_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "priors.parquet"
    write_priors(path, [PRIOR])
    write_priors(path, [replace(PRIOR, name="again")])
    assert [prior.name for prior in read_priors(path)] == ["again"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_curve_is_rounded_to_float32() -> None:
    trial = replace(PRIOR.trials[0], curve=(0.1,))
    (found,) = decode_priors(encode_priors([replace(PRIOR, trials=(trial,))], place="p"), place="p")
    assert found.trials[0].curve == (float(np.float32(0.1)),)


def big(names: int, trials: int) -> list[Prior]:
    """Return priors with 20 parameters, 6 metrics and curves of 14 epochs."""
    rng = np.random.default_rng(0)
    numeric: dict[str, BaseDistribution] = {f"float{i}": FloatDistribution(0, 1) for i in range(8)}
    numeric |= {f"int{i}": IntDistribution(0, 99) for i in range(6)}
    choices: dict[str, BaseDistribution] = {f"choice{i}": CategoricalDistribution(("a", "b", "c")) for i in range(6)}

    def trial() -> PriorTrial:
        floats, ints = rng.random(8).tolist(), rng.integers(0, 100, 6).tolist()
        params = dict(zip(numeric, [*floats, *ints], strict=True)) | dict.fromkeys(choices, "b")
        metrics = dict(zip(["score", "m1", "m2", "m3", "m4", "m5"], rng.random(6).tolist(), strict=True))
        return PriorTrial(params, metrics, curve=tuple(rng.random(14).tolist()))

    return [
        Prior(f"p{n}", {"score": "maximize"}, numeric | choices, tuple(trial() for _ in range(trials)))
        for n in range(names)
    ]


def test_eight_tasks_of_150_trials_take_less_than_a_megabyte() -> None:
    assert len(encode_priors(big(8, 150), place="p")) < 1_000_000


def test_files_are_read_at_far_more_than_a_thousand_trials_a_second() -> None:
    data = encode_priors(big(4, 500), place="p")
    started = time.process_time()
    decode_priors(data, place="p")
    assert time.process_time() - started < 2.0  # 2,000 trials, at 1,000 a second


# Refusals


def table_of(prior: Prior = PRIOR) -> Table:
    return pq.read_table(pa.BufferReader(encode_priors([prior], place="p")))


def refused(table: Table) -> str:
    """Return the one line with which a table is refused."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises(InputError) as caught:
        decode_priors(bytes(sink.getvalue()), place="p.parquet")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_values(column: str, values: list[Any], kind: Any = None) -> Table:
    table = table_of()
    position = table.column_names.index(column)
    return table.set_column(position, column, pa.array(values, kind or table.schema.field(column).type))


def described(change: Callable[[dict[str, Any]], object]) -> Table:
    table = table_of()
    description = json.loads(table.schema.metadata[METADATA_KEY])
    change(description)
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(description).encode()})


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -20])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.parquet"
    path.write_bytes(encode_priors([PRIOR], place="p")[:keep])
    with pytest.raises(InputError, match=r"cut\.parquet: must be a whole Parquet file") as caught:
        read_priors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no Parquet at all", b"PK\x03\x04", b"\x80\x04\x95pickle", b"PAR1" + b"\0" * 40])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="must be a whole Parquet file"):
        read_priors(tmp_path / "x")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.parquet: cannot be read: No such file"):
        read_priors(tmp_path / "none.parquet")
    with pytest.raises(NotFoundError, match="cannot be read: Is a directory"):
        read_priors(tmp_path)


def test_a_damaged_file_is_refused_or_read_never_anything_else() -> None:
    data, rng = encode_priors([PRIOR], place="p"), np.random.default_rng(0)
    for position in rng.integers(0, len(data), 200).tolist():
        damaged = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        try:
            decode_priors(damaged, place="p")
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - some damage is not seen: there is no checksum of the pages


def test_parquet_without_a_description_is_refused() -> None:
    assert "its metadata describe none" in refused(table_of().replace_schema_metadata({}))
    table = table_of().replace_schema_metadata({METADATA_KEY: b"{"})
    assert "metadata: must be JSON with the keys format and priors" in refused(table)


@pytest.mark.parametrize("number", [2, 0, "1"])
def test_another_format_is_refused(number: object) -> None:
    message = refused(described(lambda d: d.update(format=number)))
    assert message == f"p.parquet: format: must be 1, which this version reads, got {number!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(name=""), "priors[0]: must be a mapping with a name"),
        (lambda p: p.update(task=3), "priors[0] (usps-1): task: must be a text, got 3"),
        (lambda p: p.pop("fixed"), "priors[0] (usps-1): fixed: must be a mapping"),
        (lambda p: p.update(directions={}), "directions: must name an objective"),
        (lambda p: p["directions"].update(model_bytes="down"), "directions.model_bytes: must be minimize or maximize"),
        (lambda p: p["features"].update(classes=math.nan), "features.classes: must be a finite number, got nan"),
        (lambda p: p["features"].update(classes=True), "features.classes: must be a finite number, got True"),
        (lambda p: p["versions"].update(torch=2), "versions.torch: must be a text, got 2"),
        (lambda p: p["fixed"].update(alpha=[1]), "fixed.alpha: must be a text, a number or a bool"),
        (lambda p: p["distributions"].update(rate={"name": "Odd"}), "distributions.rate: must be one of Optuna's"),
        (lambda p: p["distributions"].update(rate=[]), "distributions.rate: must be one of Optuna's"),
        (lambda p: p["distributions"].pop("rate"), "column float:rate: must be empty: the prior did not search it"),
        (lambda p: p["distributions"].update(z=p["distributions"]["rate"]), "column float:z: is missing"),
        (
            lambda p: p["directions"].update(speed="minimize"),
            "prior usps-1, row 0, column metric:speed: must be there: the trial is complete",
        ),
    ],
)
def test_a_description_that_breaks_a_rule_is_refused(change: Callable[[Any], object], message: str) -> None:
    assert message in refused(described(lambda d: change(d["priors"][0])))


def test_two_priors_of_one_name_are_refused() -> None:
    twice = described(lambda d: d["priors"].append(d["priors"][0]))
    assert refused(twice) == "p.parquet: priors[1].name: is there twice, got 'usps-1'"
    with pytest.raises(InputError, match="is there twice"):
        encode_priors([PRIOR, PRIOR], place="p")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("prior", ["usps-1", "usps-1", "mnist"], "row 2, column prior: must be a prior that the file describes"),
        ("state", ["complete", "pruned", "done"], "row 2, column state: must be one of complete, pruned, fail"),
        ("float:rate", [0.01, 2.0, 1.0], "prior usps-1, row 1, column float:rate: must be in [0.001, 1], got 2.0"),
        ("float:rate", [math.nan, 0.1, 1.0], "row 0, column float:rate: must be in [0.001, 1], got nan"),
        ("float:momentum", [0.86, None, None], "must be in [0.8, 0.9] in steps of 0.05, got 0.86"),
        ("int:width", [8, 24, 5], "row 2, column int:width: must be in [4, 24] in steps of 2, got 5"),
        ("choice:optimizer", ['"sgd"', '"lamb"', '"sgd"'], 'must be one of "sgd", "adamw", got \'"lamb"\''),
        ("choice:optimizer", ["sgd", '"sgd"', '"sgd"'], "row 0, column choice:optimizer: must be one of"),
        ("metric:macs", [math.inf, None, None], "row 0, column metric:macs: must be a finite number, got inf"),
        ("metric:val_accuracy", [None, None, None], "column metric:val_accuracy: must be there"),
        ("curve", [[0.5, math.nan], [], []], "row 0, column curve: must hold finite numbers"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_with_its_place(column: str, values: list[Any], message: str) -> None:
    assert message in refused(with_values(column, values))


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("float:rate", ["a", "b", "c"], pa.string()),
        ("int:width", [8.0, 24.0, 4.0], pa.float64()),
        ("choice:optimizer", [0, 1, 1], pa.int64()),
        ("metric:macs", [1, 2, 3], pa.int64()),
        ("curve", [0.1, 0.2, 0.3], pa.float32()),
        ("prior", [1, 2, 3], pa.int64()),
    ],
)
def test_a_column_of_another_type_is_refused(column: str, values: list[Any], kind: object) -> None:
    assert f"p.parquet: column {column}: must be of the type" in refused(with_values(column, values, kind))


@pytest.mark.parametrize("column", ["prior", "state", "curve", "float:rate"])
def test_a_missing_column_is_refused(column: str) -> None:
    assert refused(table_of().drop_columns([column])) == f"p.parquet: column {column}: is missing"


def test_a_column_of_no_kind_is_refused() -> None:
    table = table_of().append_column("weights", pa.array([1, 2, 3]))
    assert refused(table) == "p.parquet: column weights: is no column of format 1"


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    bad = replace(PRIOR, trials=(PriorTrial({"rate": 7.0}, {}, "fail"),))
    with pytest.raises(InputError, match=r"column float:rate: must be in \[0.001, 1\]"):
        write_priors(tmp_path / "x.parquet", [bad])
    with pytest.raises(InputError, match="must hold values of their distributions' types"):
        write_priors(tmp_path / "x.parquet", [replace(PRIOR, trials=(PriorTrial({"width": "wide"}, {}, "fail"),))])
    with pytest.raises(InputError, match="speed: has no distribution"):
        write_priors(tmp_path / "x.parquet", [replace(PRIOR, trials=(PriorTrial({"speed": 1}, {}, "fail"),))])
    assert list(tmp_path.iterdir()) == []
