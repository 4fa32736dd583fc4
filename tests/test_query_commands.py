"""The reading commands as their users meet them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy.engine import make_url

from tests import postgresql
from tests.command_line import Run
from tests.fakes import finished_study

HEAVY = ("torch", "ray", "optuna", "sqlalchemy", "pandas")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with the studies `ten` and `other`, which no query changes."""
    folder = tmp_path_factory.mktemp("storage")
    url = f"sqlite:///{folder / 'studies.db'}"
    finished_study(url, "ten", folder, constraints=["macs<=80k"])
    finished_study(url, "other", folder, sampler="tpe")
    return url


QUERIES = [
    ["best", "ten", "--where", "model_bytes <= 5kB and not student.depth > 9", "--sort", "model_bytes"],
    ["best", "ten", "--all", "--top", "3"],
    ["trials", "ten", "--where", "state = 'FAIL' or seconds < 2s", "--sort", "-number"],
    ["studies"],
    ["compare", "ten", "other"],
    ["importance", "ten", "--objective", "model_bytes"],
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: " ".join(query[:3]))
def test_a_query_answers_as_table_json_csv_and_parquet(
    metasearch: Run, url: str, tmp_path: Path, query: list[str]
) -> None:
    code, table, err = metasearch(*query, "--storage", url)
    assert (code, err) == (0, "")
    assert len(table.splitlines()) > 3
    code, out, err = metasearch(*query, "--json", "--storage", url)
    assert (code, err) == (0, "")
    assert json.loads(out)
    code, out, err = metasearch(*query, "--csv", "--storage", url)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (0, "")
    file = tmp_path / "answer.parquet"
    assert metasearch(*query, "--parquet", str(file), "--storage", url) == (0, "", "")
    frame = pd.read_parquet(file)
    assert len(frame) == len(rows) > 0
    assert list(frame) == list(rows[0])


def test_best_counts_the_feasible_and_keeps_to_the_documented_keys(metasearch: Run, url: str) -> None:
    found = json.loads(metasearch("best", "ten", "--json", "--storage", url)[1])
    assert set(found) == {"study", "complete", "feasible", "trials"}
    assert (found["complete"], found["feasible"]) == (9, 8)
    assert {key for trial in found["trials"] for key in trial} == {"number", "params", "metrics"}
    assert isinstance(found["trials"][0]["params"]["student.depth"], int)
    assert "front of 8, 8 feasible of 9 complete trials" in metasearch("best", "ten", "--storage", url)[1]


def test_trials_as_json_say_all_that_is_known(metasearch: Run, url: str) -> None:
    arguments = ["--where", "number in [0, 9]", "--json", "--storage", url]
    first, last = json.loads(metasearch("trials", "ten", *arguments)[1])["trials"]
    assert (first["state"], first["feasible"], last["state"], last["failure"]) == ("COMPLETE", True, "FAIL", "diverged")
    assert first["started"].endswith("Z")
    assert first["metrics"]["model_bytes"] == 1000
    assert "student.family" in first["params"]


def test_no_trial_that_is_so_is_an_empty_list(metasearch: Run, url: str) -> None:
    query = ["trials", "ten", "--where", "number > 100", "--storage", url]
    assert json.loads(metasearch(*query, "--json")[1])["trials"] == []
    code, _, err = metasearch(*query)
    assert (code, err) == (0, "no trial of ten is so\n")


def test_a_long_table_ends_with_how_many_more_there_are(
    metasearch: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metasearch.query_commands.MOST_ROWS", 4)
    code, out, err = metasearch("trials", "ten", "--storage", url)
    assert (code, err) == (0, "and 6 more; --where and --top choose, --csv and --json show all\n")
    assert [line.split()[0] for line in out.splitlines() if "COMPLETE" in line] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        (["best", "ten", "--where", "model_bytes <"], 2, "--where: column 14: must be a name"),
        (["best", "ten", "--where", "__import__('os')"], 2, "--where: column 11: must end here"),
        (["best", "ten", "--where", "val_accuracy > 90"], 2, "must be in [0, 1] or a percentage"),
        (["best", "ten", "--where", "model_bytes < 1kB"], 4, "trial 0: model_bytes=1000 misses model_bytes < 1kB by 0"),
        (["best", "ten", "--sort", "val_acc"], 2, "did you mean val_accuracy?"),
        (["trials", "tan"], 3, "did you mean ten?"),
        (["compare", "ten", "nobody"], 3, "study 'nobody': there is none"),
        (["importance", "ten", "--evaluator", "guess"], 2, "ped-anova, fanova"),
        (["best", "ten", "--parquet", "/nowhere/at/all.parquet"], 3, "its folder is not there"),
    ],
)
def test_a_mistake_in_a_query_is_one_line(metasearch: Run, url: str, query: list[str], code: int, words: str) -> None:
    got, out, err = metasearch(*query, "--storage", url)
    assert (got, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1


def test_help_of_every_query_shows_an_example(metasearch: Run) -> None:
    for command in ("best", "trials", "studies", "compare", "importance"):
        assert f"Example: metasearch {command}" in metasearch(command, "--help")[1]


def loaded_by(*commands: list[str], storage: str) -> list[list[str]]:
    """Run commands one after the other in a process of their own; return the heavy modules that are there after each.

    What an earlier one loads hides that a later one loads it, too: those that may load least come first.
    """
    program = (
        "import sys\nfrom metasearch import cli\n"
        f"for words in {commands!r}:\n    sys.argv = ['metasearch', *words]\n    try:\n        cli.main()\n"
        "    except SystemExit as ended:\n        assert not ended.code\n"
        f"    print(*(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"METASEARCH_STORAGE": storage},
    )
    return [line.split() for line in run.stderr.splitlines()]


def test_queries_load_no_more_than_they_need(url: str) -> None:
    json_alone = [["best", "ten", "--where", "student.depth < 9", "--json"], ["status", "ten"]]
    frames = [["best", "ten"], ["importance", "ten"]]
    *nothing, table, importance = loaded_by(["--help"], *json_alone, *frames, storage=url)
    assert (nothing, table) == ([[], [], []], ["pandas"])
    assert not {"torch", "ray"} & set(importance)


@pytest.mark.slow
def test_the_password_of_a_storage_is_shown_nowhere(
    metasearch: Run, postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ten", "other"):
        finished_study(postgresql_url, name, tmp_path)
    server = make_url(postgresql_url)
    in_query = server.set(password=None).update_query_dict({"password": postgresql.PASSWORD})
    parquet = tmp_path / "canary.parquet"
    mistakes = [["best", "ten", "--where", "model_bytes < 1"], ["best", "tan"], ["trials", "ten", "--sort", "x"]]
    for url in (server, in_query):
        monkeypatch.setenv("METASEARCH_STORAGE", url.render_as_string(hide_password=False))
        for query in QUERIES:
            for output in ([], ["--json"], ["--csv"], ["--parquet", str(parquet)]):
                code, out, err = metasearch(*query, *output)
                assert (code, err) == (0, "")
                assert postgresql.PASSWORD not in out
        assert postgresql.PASSWORD.encode() not in parquet.read_bytes()
        for query in mistakes:
            code, out, err = metasearch(*query)
            assert (code in (2, 3, 4), out) == (True, "")
            assert postgresql.PASSWORD not in err
    for wrong in (server.set(port=9), in_query.set(port=9), server.set(username="nobody"), server.set(database="none")):
        monkeypatch.setenv("METASEARCH_STORAGE", wrong.render_as_string(hide_password=False))
        code, out, err = metasearch("best", "ten")
        assert (code, out) == (5, "")
        assert err.count("\n") == 1
        assert postgresql.PASSWORD not in err
