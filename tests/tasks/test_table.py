from __future__ import annotations

import gzip
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import InputError, NotFoundError
from metasearch.pipeline import run_pipeline
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.table import LABEL_COLUMNS, read_tables
from tests.data_files import read

TABLE = pd.DataFrame({"width": [1.5, 2.0, -3.25], "count": [1, 2, 3], "label": ["b", "a", "b"]})


def save(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table in the format that the file's name asks for."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def refusal_of(path: Path, *, label: str | None = None, test: Path | None = None) -> str:
    with pytest.raises(InputError) as refusal:
        read_tables([path] if test is None else [path, test], label)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(str(path if test is None else test))
    return message.removeprefix(str(path if test is None else test))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.parquet", "A.CSV"])
def test_every_format_gives_the_same_vectors_labels_and_names(tmp_path: Path, name: str) -> None:
    raw = read_tables([save(TABLE, tmp_path / name)], None)
    assert raw.train.inputs.dtype == np.float32
    assert raw.train.inputs.tolist() == [[1.5, 1], [2, 2], [-3.25, 3]]
    assert raw.train.labels.tolist() == [1, 0, 1]
    assert raw.class_names == ("a", "b")
    assert raw.notes == {"columns": ["width", "count"], "label_column": "label"}
    assert raw.test is None


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize(
    ("labels", "names", "encoded"),
    [
        ([10, 9, -1], ("-1", "9", "10"), [2, 1, 0]),
        ([2.0, 1.0, 2.0], ("1", "2"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["NA", "None", "nan"], ("NA", "None", "nan"), [0, 1, 2]),
    ],
)
def test_labels_are_integers_or_text(
    tmp_path: Path, name: str, labels: list[Any], names: tuple[str, ...], encoded: list[int]
) -> None:
    raw = read_tables([save(pd.DataFrame({"x": [1, 2, 3], "y": labels}), tmp_path / name)], None)
    assert raw.class_names == names
    assert raw.train.labels.tolist() == encoded


def test_booleans_decimals_categories_and_nullable_numbers_count_as_what_they_hold(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "flag": [True, False],
            "money": [Decimal("1.5"), Decimal("2.5")],
            "whole": pd.array([7, 8], dtype="Int64"),
            "class": pd.Categorical([5, 3]),
        }
    )
    raw = read_tables([save(frame, tmp_path / "a.parquet")], None)
    assert raw.train.inputs.tolist() == [[1, 1.5, 7], [0, 2.5, 8]]
    assert raw.class_names == ("3", "5")
    assert read_tables([save(frame, tmp_path / "a.csv")], None).train.inputs.tolist() == raw.train.inputs.tolist()


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-1000, 1000)), min_size=1
    )
)
def test_numbers_survive_a_csv_file(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int]]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    frame = pd.DataFrame(rows, columns=["x", "y"])
    raw = read_tables([save(frame, path)], None)
    assert raw.train.inputs[:, 0].tolist() == pytest.approx([x for x, _ in rows], rel=1e-6, abs=1e-44)
    assert [raw.class_names[label] for label in raw.train.labels] == [str(y) for _, y in rows]


def test_test_columns_may_lie_in_another_order(tmp_path: Path) -> None:
    train = save(TABLE, tmp_path / "a.csv")
    test = save(TABLE[["label", "count", "width"]].iloc[:2], tmp_path / "b.parquet")
    raw = read_tables([train, test], None)
    assert raw.test is not None
    assert raw.test.inputs.tolist() == [[1.5, 1], [2, 2]]
    assert raw.test.labels.tolist() == [1, 0]


def test_column_after_the_hash_is_the_label(tmp_path: Path) -> None:
    frame = TABLE.assign(label=[1, 2, 3], **{"what, exactly": ["u", "v", "u"]})
    save(frame, tmp_path / "a.csv")
    save(frame, tmp_path / "b.csv")
    raw = read("table:a.csv,b.csv#what, exactly", tmp_path)
    assert raw.class_names == ("u", "v")
    assert raw.notes["columns"] == ["width", "count", "label"]
    assert raw.test is not None
    assert "has no column 'wat' for the label, got ['width', 'count', 'label']" in refusal_of(
        save(TABLE, tmp_path / "c.csv"), label="wat"
    )


@pytest.mark.parametrize("names", [["x", "z"], ["x", "y", "target"]])
def test_label_column_that_is_absent_or_ambiguous_is_told_the_way_out(tmp_path: Path, names: list[str]) -> None:
    message = refusal_of(save(pd.DataFrame([[1] * len(names)], columns=names), tmp_path / "a.csv"))
    assert "exactly one of the columns label, labels, class, target, y" in message
    assert "table:FILE#COLUMN" in message
    assert message.endswith(f"got {names}")
    assert len(LABEL_COLUMNS) == 5


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("x", ["1", "2", "old"], "column 'x' must hold numbers only, got row=3, value=old"),
        ("x", [1.0, None, None], "column 'x' has missing values: 2 of 3, the first in row 2"),
        ("x", [1.0, 2.0, np.inf], "column 'x' must be finite in float32, got row=3, value=inf"),
        ("x", [1.0, -1e39, 0.0], "column 'x' must be finite in float32, got row=2, value=-1e+39"),
        ("x", ["2020-01-01"] * 3, "column 'x' must hold numbers only, got row=1, value=2020-01-01"),
        ("y", ["a", None, "b"], "column 'y' has missing values: 1 of 3, the first in row 2"),
        ("y", [1.0, 2.5, 3.0], "column 'y': a label must be an integer or text, got row=2, value=2.5"),
    ],
)
def test_bad_value_is_named_by_file_column_and_row(
    tmp_path: Path, name: str, column: str, values: list[Any], said: str
) -> None:
    frame = pd.DataFrame({"w": [0, 1, 2], "x": [0, 1, 2], "y": [0, 1, 0]}).assign(**{column: values})
    assert said in refusal_of(save(frame, tmp_path / name))


def test_dates_and_complex_numbers_are_no_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": pd.to_datetime(["2020-01-01"]), "y": [1]})
    assert "column 'x' must hold numbers only, got row=1, value=2020-01-01" in refusal_of(
        save(frame, tmp_path / "a.parquet")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as a table"),
        ("x,y\n", "holds no rows"),
        ("y\n1\n", "needs a column beside 'y'"),
        ("x,x,y\n1,2,3\n", "has two columns of one name, got 'x'"),
        (",x,y\n0,1,2\n", "column 1 of 3 has no name; if it is an index"),
        (
            "x,y\n1,2,3\n4,5,6\n",
            "cannot be read as a table (Error tokenizing data. C error: Expected 2 fields in line 2, saw 3",
        ),
        ("x,y\n1,2\n4,5,6\n", "cannot be read as a table"),
        ("x,y\n1,2\n4\n", "column 'y' has missing values: 1 of 2, the first in row 2"),
        ('x,y\n1,"2\n', "cannot be read as a table"),
        ("5.1,3.5,0\n4.9,3.0,1\n", "exactly one of the columns"),
        ("x;y\n1;2\n", "exactly one of the columns"),
    ],
)
def test_csv_file_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert said in refusal_of(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00junk", b"PAR1", gzip.compress(b"x,y\n1,2\n", mtime=0)[:-9], b"\0" * 20]
)
def test_file_of_another_format_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.match(": (cannot be read as a|must have exactly one of the columns)", refusal_of(tmp_path / name))


def test_file_of_another_ending_or_none_is_refused(tmp_path: Path) -> None:
    for name in ("a.xlsx", "a", "a.gz"):
        (tmp_path / name).write_text("x,y\n1,2\n")
        assert "must end in .csv, .tsv, .parquet, .pq" in refusal_of(tmp_path / name)


def test_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx,y\n1,2\n1,3\n")
    assert read_tables([tmp_path / "a.csv"], None).notes["columns"] == ["x"]


def test_train_and_test_of_different_columns_or_labels_are_refused(tmp_path: Path) -> None:
    train = save(TABLE, tmp_path / "a.csv")
    renamed = save(TABLE.rename(columns={"width": "breadth"}), tmp_path / "b.csv")
    assert "must have the columns of a.csv, in any order; those in one of the two only, got ['breadth', 'width']" in (
        refusal_of(train, test=renamed)
    )
    numbered = save(TABLE.assign(label=[1, 2, 3]), tmp_path / "c.csv")
    assert "must both be numbers or both be text" in refusal_of(train, test=numbered)
    unknown = save(TABLE.assign(label=["a", "b", "c"]), tmp_path / "d.csv")
    assert "the train split has no example of a label, got ['c']" in refusal_of(train, test=unknown)


def test_spelling_with_too_many_files_or_a_missing_one_is_refused(tmp_path: Path) -> None:
    save(TABLE, tmp_path / "a.csv")
    with pytest.raises(InputError, match="takes 1 or 2 files"):
        read("table:a.csv,a.csv,a.csv", tmp_path)
    with pytest.raises(NotFoundError, match=r"b\.csv: there is no such file"):
        read("table:a.csv,b.csv#label", tmp_path)


def test_table_is_a_task_from_anywhere_and_an_mlp_learns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(240, 4)), columns=list("abcd"))
    save(frame.assign(kind=np.where(frame["a"] > 0, "up", "down")), tmp_path / "t.csv")
    monkeypatch.chdir(tmp_path)
    source = TaskSource("table:t.csv#kind").absolute()
    monkeypatch.chdir("/")
    assert source.text == f"table:{(tmp_path / 't.csv').resolve()}#kind"
    task = load_task(source)
    assert task.input_shape == (4,)
    assert task.class_names == ("down", "up")
    assert task.provenance["notes"] == {"columns": list("abcd"), "label_column": "kind"}
    config: dict[str, Any] = {
        "student.family": "mlp",
        "student.width": 8,
        "student.depth": 2,
        "alpha": 0.0,
        "epochs": 12,
        "batch_size": 20,
        "learning_rate.kind": "one_cycle",
        "learning_rate.peak": 0.03,
    }
    assert run_pipeline(task, config).metrics["val_accuracy"] > 0.8
