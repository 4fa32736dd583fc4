"""The frame by SQL is that of Optuna's own classes, on SQLite and PostgreSQL, and reading disturbs nothing."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from metasearch.errors import NotFoundError, StorageError
from metasearch.records import EpochReport, StageResult, TrialResult
from metasearch.report.columns import as_array
from metasearch.report.database import open_database
from metasearch.report.frames import read_table
from metasearch.report.heads import study_head, study_heads
from metasearch.report.rows import Wanted
from metasearch.search.store import FAILURE, LOST, RESULT, RUN, create_study, load_study, open_storage
from tests.bench.large_study import make_study
from tests.fakes import describe, finished_study, new_storage
from tests.postgresql import new_database


def new_name() -> str:
    """Return a study name that no other test of the same server uses."""
    return f"study-{uuid.uuid4().hex[:8]}"


def both_ways(url: str, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a study's frame by SQL and by Optuna's classes, columns in alphabetical order."""
    database = open_database(url)
    slow = replace(database, known=False)
    frames = [read_table(way, study_head(way, name)).frame() for way in (database, slow)]
    by_sql, by_optuna = (frame.sort_index(axis=1) for frame in frames)
    return by_sql, by_optuna


def odd_study(url: str) -> str:
    """Make a study with every kind of distribution, value, state and attribute; return its name."""
    name = new_name()
    study = optuna.create_study(storage=new_storage(url), study_name=name, directions=["minimize"] * 2)
    for index, value in enumerate([1.5, float("inf"), -float("inf"), 2.0]):
        trial = study.ask()
        trial.suggest_float("f", 0, 1)
        trial.suggest_float("log", 1e-5, 1, log=True)
        trial.suggest_int("i", 1, 9, step=2)
        trial.suggest_categorical("c", ("a", 1, None, True, 2.5))
        trial.suggest_categorical("number", ("one", "two"))
        if index % 2:
            trial.suggest_int("sometimes", 1, 3)
        trial.set_user_attr("note", {"nested": [1, "ü", None]} if index else "text")
        trial.set_user_attr(RESULT, "not a result")
        trial.set_constraint("limit", float(index) - 1)
        if index == 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [value, float(index)])
    study.ask()
    return name


def test_the_frame_by_sql_is_that_of_optunas_classes(url: str, tmp_path: Path) -> None:
    name = new_name()
    finished_study(url, name, tmp_path, constraints=["macs<=50000"])
    by_sql, by_optuna = both_ways(url, name)
    assert len(by_sql) == 10
    pd.testing.assert_frame_equal(by_sql, by_optuna)


def test_odd_values_states_and_attributes_are_read_as_optuna_reads_them(url: str) -> None:
    by_sql, by_optuna = both_ways(url, odd_study(url))
    pd.testing.assert_frame_equal(by_sql, by_optuna)
    assert by_sql["value_0"].tolist()[:3] == [1.5, np.inf, -np.inf]
    assert by_sql["feasible"].tolist() == [True, True, False, False, False]
    assert by_sql["user.result"].tolist()[0] == "not a result"


def test_parameters_and_values_are_those_of_optunas_trials(url: str) -> None:
    name = odd_study(url)
    frame, _ = both_ways(url, name)
    for trial in load_study(open_storage(url), name).get_trials():
        row = frame[frame["number"] == trial.number].iloc[0]
        assert row["state"] == trial.state.name
        for parameter, value in trial.params.items():
            # a parameter that is called as a column is stands under another name
            got = row["parameters.number" if parameter == "number" else parameter]
            assert got == value or (value is None and pd.isna(got))


def result(**metrics: float) -> TrialResult:
    """Return a result with stages, a curve and text that looks like the marks it is cut off at."""
    stages = (StageResult("distill", 1.5, {"val_accuracy": 0.5}), StageResult("prune", 2.5, {"model_bytes": 9.0}))
    curve = tuple(EpochReport("distill", epoch, 3, 1.0, 0.5, 10, 0.1, 4.0, 0.5) for epoch in (1, 2, 3))
    trap = {', "stages": [': ', "curve": ', "n": '", "epochs": '}
    return TrialResult(
        {"trap": '", "curve": [', **trap}, 7, metrics, stages, curve, {"text": '"epochs": 4', "more": trap}
    )


def test_a_result_is_cut_off_where_its_stages_and_curve_begin(url: str, tmp_path: Path) -> None:
    name = new_name()
    study = create_study(new_storage(url), name, describe(tmp_path))
    trial = study.ask()
    told = result(val_accuracy=0.9, model_bytes=5.0)
    trial.set_user_attr(RESULT, told.to_json())
    study.tell(trial, [0.9, 5.0])
    database = open_database(url)
    for stages in (True, False):
        table = read_table(database, study_head(database, name), Wanted(stages=stages))
        assert {key: table.cells[key][0] for key in told.config} == told.config
        assert table.cells["val_accuracy"] == [0.9]
        assert ("prune.seconds" in table.cells) is stages
    whole = read_table(database, study_head(database, name)).cells
    assert (whole["epochs_run"], whole["distill.val_accuracy"], whole["prune.model_bytes"]) == ([3], [0.5], [9.0])


def test_the_study_of_the_benchmark_is_one_that_optuna_reads_alike(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'large.db'}"
    make_study(url, trials=120)
    by_sql, by_optuna = both_ways(url, "large")
    # the curve is the same text for all, and the frame counts it
    assert set(by_sql["epochs_run"].dropna()) == {10}
    pd.testing.assert_frame_equal(by_sql, by_optuna)
    assert (by_sql["state"] == "FAIL").sum() == 2


def test_studies_are_described_alike_both_ways(url: str, tmp_path: Path) -> None:
    named, unnamed = new_name(), odd_study(url)
    finished_study(url, named, tmp_path)
    database = open_database(url)
    fast, slow = study_heads(database), study_heads(replace(database, known=False))
    assert fast == slow
    found = {head.name: head for head in fast}
    assert found[named].directions == {"val_accuracy": "maximize", "model_bytes": "minimize"}
    assert found[unnamed].directions == {"value_0": "minimize", "value_1": "minimize"}


@pytest.mark.parametrize(
    ("statement", "known"),
    [
        ("SELECT 1", True),
        ("UPDATE version_info SET schema_version = 13", False),
        ("UPDATE alembic_version SET version_num = 'v9.9.9.a'", False),
        ("DROP TABLE alembic_version", False),
    ],
)
def test_a_schema_of_another_version_is_not_read_by_sql(tmp_path: Path, statement: str, known: bool) -> None:
    path = tmp_path / "studies.db"
    finished_study(f"sqlite:///{path}", "ten", tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    assert open_database(f"sqlite:///{path}").known is known


def test_a_file_that_could_hold_no_studies_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, though as long as a header of one would be" * 20)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE studies (x)")
    for file, words in (("text.db", "file is not a database"), ("other.db", "holds no studies")):
        with pytest.raises(StorageError, match=words):
            open_database(f"sqlite:///{tmp_path / file}")


def test_a_database_into_which_a_launch_would_put_the_first_study_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    sqlite3.connect(tmp_path / "of_others.db").execute("CREATE TABLE t (x)")
    for file in ("none.db", "empty.db", "of_others.db"):
        with pytest.raises(NotFoundError, match=f"{file}: no studies here yet"):
            open_database(f"sqlite:///{tmp_path / file}")


def test_a_new_database_of_a_server_is_not_found_until_the_first_study(postgresql_url: str, tmp_path: Path) -> None:
    url = new_database(postgresql_url)
    with pytest.raises(NotFoundError, match="no studies here yet") as caught:
        open_database(url)
    assert "canary" not in str(caught.value)
    create_study(open_storage(url, create=True), "first", describe(tmp_path))
    assert [head.name for head in study_heads(open_database(url))] == ["first"]


def test_reading_cannot_write(url: str) -> None:
    odd_study(url)
    with pytest.raises(StorageError, match=r"read-?only"), open_database(url).snapshot() as select:
        select("DELETE FROM trials")


def test_a_database_is_shown_without_its_url(url: str) -> None:
    odd_study(url)
    assert url.rsplit("/", 1)[0] not in repr(open_database(url))
    assert "canary" not in repr(open_database(url))


def test_answers_of_one_snapshot_are_of_one_moment(url: str) -> None:
    name = odd_study(url)
    storage = open_storage(url)
    count = "SELECT count(*) FROM trials t JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = :name"
    with open_database(url).snapshot() as select:
        before = select(count, name=name)[0][0]
        load_study(storage, name).ask()
        assert select(count, name=name)[0][0] == before
    with open_database(url).snapshot() as select:
        assert select(count, name=name)[0][0] == before + 1


def test_readers_and_a_writer_do_not_lock_each_other_out(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = create_study(new_storage(url), "busy", describe(tmp_path))
    over, failures, counts = threading.Event(), list[Exception](), list[int]()

    def read() -> None:
        while not over.is_set():
            try:
                database = open_database(url)
                counts.append(len(read_table(database, study_head(database, "busy"))))
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 1.5
    told = 0
    while time.monotonic() < deadline or told < 3:
        trial = study.ask()
        trial.set_user_attr(RUN, {"seed": trial.number})
        study.tell(trial, [0.5, 10.0])
        told += 1
    over.set()
    for reader in readers:
        reader.join(timeout=30)
    assert failures == []
    assert len(counts) >= 4
    assert all(count <= told for count in counts)
    database = open_database(url)
    assert len(read_table(database, study_head(database, "busy"))) == told


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2, 3], "i"),
        ([1, None], "f"),
        ([1, 2.5], "f"),
        ([None, None], "f"),
        ([], "f"),
        ([True, False], "b"),
        ([True, None], "O"),
        (["a", None], "O"),
        ([1, "a"], "O"),
        ([[1, 2], [3, 4]], "O"),
        ([10**400, 1.0], "O"),
        ([2**70, 1], "f"),
    ],
)
def test_cells_become_the_narrowest_array_that_holds_them(cells: list[Any], kind: str) -> None:
    found = as_array(cells)
    assert (found.dtype.kind, found.shape) == (kind, (len(cells),))
    if kind == "O":
        assert found.tolist() == cells


def test_a_failed_trial_has_its_reason_and_keeps_its_place(url: str, tmp_path: Path) -> None:
    name = new_name()
    study = create_study(new_storage(url), name, describe(tmp_path))
    for reason in ("diverged", LOST):
        trial = study.ask()
        trial.set_user_attr(FAILURE, {"reason": reason, "message": "m"})
        study.tell(trial, state=TrialState.FAIL)
    database = open_database(url)
    assert read_table(database, study_head(database, name)).cells["failure"] == ["diverged", LOST]
    assert read_table(database, study_head(database, name)).cells["number"] == [0, 1]
