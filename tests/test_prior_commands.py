"""`metasearch priors` as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from metasearch.search import samplers
from tests.command_line import Run
from tests.fakes import copied, finished_study


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> RDBStorage:
    """A storage with a finished study `four`."""
    folder = tmp_path_factory.mktemp("four")
    return finished_study(
        f"sqlite:///{folder / 'studies.db'}", "four", folder, trials=4, versions={"metasearch": "0.1.0"}
    )


@pytest.fixture
def url(four: RDBStorage, tmp_path: Path) -> str:
    """The URL of a test's own copy of `four`."""
    return copied(four, tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """The URL of a storage that is not there yet."""
    return f"sqlite:///{tmp_path / 'other.db'}"


def exported(metasearch: Run, url: str, path: Path) -> str:
    assert metasearch("priors", "export", "--to", str(path), "--storage", url)[0] == 0
    return str(path)


def listed(metasearch: Run, url: str) -> dict[str, str]:
    """Return the sources of the priors by name, those of the package left out."""
    rows = json.loads(metasearch("priors", "--json", "--storage", url)[1])
    return {row["name"]: row["source"] for row in rows if row["source"] != "built-in"}


def test_priors_are_listed_with_the_documented_keys(metasearch: Run, url: str) -> None:
    code, out, _ = metasearch("priors", "--json", "--storage", url)
    assert code == 0
    assert [row for row in json.loads(out) if row["source"] != "built-in"] == [
        {
            "name": "four",
            "task": "digits",
            "trials": 4,
            "objectives": ["val_accuracy", "model_bytes"],
            "version": "0.1.0",
            "source": "store",
        }
    ]
    assert "four" in metasearch("priors", "--storage", url)[1]


def test_a_prior_goes_from_one_storage_to_another(metasearch: Run, url: str, other: str, tmp_path: Path) -> None:
    code, out, err = metasearch("priors", "export", "four", "--to", str(tmp_path / "p.parquet"), "--storage", url)
    assert (code, out) == (0, "")
    assert err.startswith("exported 1 priors, 4 trials")
    code, out, err = metasearch("priors", "import", str(tmp_path / "p.parquet"), "--storage", other)
    assert (code, out, err) == (0, "", "imported four, 4 trials\n")
    assert listed(metasearch, other) == {"four": "imported"}
    code, _, err = metasearch("priors", "import", str(tmp_path / "p.parquet"), "--storage", other)
    assert (code, err) == (0, "was there already: four, 4 trials\n")
    again = exported(metasearch, other, tmp_path / "again.parquet")
    assert Path(again).read_bytes() == (tmp_path / "p.parquet").read_bytes()


def test_an_imported_prior_is_no_study_and_can_be_deleted(
    metasearch: Run, url: str, other: str, tmp_path: Path
) -> None:
    metasearch("priors", "import", exported(metasearch, url, tmp_path / "p.parquet"), "--storage", other)
    assert json.loads(metasearch("studies", "--json", "--storage", other)[1]) == []
    code, _, err = metasearch("best", "four", "--storage", other)
    assert (code, err) == (
        2,
        "metasearch: study four: is an imported prior, without trials; see `metasearch priors`\n",
    )
    assert metasearch("delete", "four", "--yes", "--storage", other)[0] == 0
    assert listed(metasearch, other) == {}


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["export", "foru", "--to", "x.parquet"], 3, ["prior 'foru': there is no finished study", "four"]),
        (["export", "four", "--to", "nowhere/x.parquet"], 5, ["nowhere/x.parquet: cannot be written"]),
        (["import", "nowhere.parquet"], 3, ["nowhere.parquet: cannot be read: No such file"]),
        (["import", "studies.db"], 2, ["studies.db: must be a whole Parquet file"]),
    ],
)
def test_what_cannot_be_done_is_one_line(
    metasearch: Run,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = metasearch("priors", *arguments, "--storage", url)
    assert (got, out) == (code, "")
    assert err.startswith("metasearch: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_the_name_of_a_study_that_is_here_cannot_be_imported(metasearch: Run, url: str, tmp_path: Path) -> None:
    code, _, err = metasearch("priors", "import", exported(metasearch, url, tmp_path / "p.parquet"), "--storage", url)
    assert code == 2
    assert "p.parquet: prior four: has the name of a study that is here" in err


def test_a_storage_without_studies_has_nothing_to_export(metasearch: Run, url: str, tmp_path: Path) -> None:
    metasearch("delete", "four", "--yes", "--storage", url)
    code, _, err = metasearch("priors", "export", "--to", str(tmp_path / "p.parquet"), "--storage", url)
    assert (code, err) == (3, "metasearch: priors: the storage has no finished study\n")


def test_a_dry_run_shows_how_priors_map(metasearch: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samplers.SAMPLERS, "transfer", lambda seed: optuna.samplers.RandomSampler(seed=seed))
    launch = ["launch", "digits", "--space", "quick", "--sampler", "transfer", "--dry-run", "--storage", url]
    code, out, err = metasearch(*launch, "--warm-start", "four")
    assert code == 0
    assert json.loads(out)["warm_start"] == ["four"]
    assert err.startswith("prior four: 4 trials for val_accuracy, model_bytes; parameters ")
    assert err.count("\n") == 1
    code, out, err = metasearch(*launch, "--warm-start", "none")
    assert (code, json.loads(out)["warm_start"], err) == (0, [], "")


def test_named_priors_need_a_sampler_that_knows_them(metasearch: Run, url: str) -> None:
    launch = ["launch", "digits", "--space", "quick", "--sampler", "random", "--dry-run", "--storage", url]
    code, out, err = metasearch(*launch, "--warm-start", "four")
    assert (code, out) == (2, "")
    assert err == ("metasearch: --warm-start: needs --sampler transfer: random knows no priors, got 'four'\n")


@pytest.mark.slow
def test_listing_exporting_and_importing_load_neither_torch_nor_ray(url: str, other: str, tmp_path: Path) -> None:
    program = f"""
import sys
from metasearch.cli import app
for arguments in (
    ["priors", "--storage", {url!r}],
    ["priors", "export", "--to", {str(tmp_path / "p.parquet")!r}, "--storage", {url!r}],
    ["priors", "import", {str(tmp_path / "p.parquet")!r}, "--storage", {other!r}],
):
    app(arguments, standalone_mode=False)
sys.exit(str([name for name in ("torch", "ray") if name in sys.modules]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.stderr.splitlines()[-1] == "[]"


def test_priors_are_listed_before_there_is_a_study(metasearch: Run, other: str) -> None:
    assert listed(metasearch, other) == {}
    assert metasearch("priors", "--storage", other)[0] == 0
