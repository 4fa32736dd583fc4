"""`metasearch transfer` as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from metasearch.search.space import load_space
from metasearch.search.store import FAILURE, LOST, create_study, load_study
from metasearch.transfer import saved
from metasearch.transfer.encoding import Axis
from tests.command_line import Run
from tests.fakes import describe, new_storage

DISTRIBUTIONS = load_space("quick").distributions()


def random_study(
    storage: RDBStorage, name: str, folder: Path, *, peak: float, count: int, seed: int, **changes: object
) -> None:
    """Make a study of random configurations, whose accuracy is best at a learning rate and grows with the width."""
    rng = np.random.default_rng(seed)
    study = create_study(storage, name, describe(folder, **changes))
    for _ in range(count):
        params = {path: Axis(path, domain).draw(rng) for path, domain in DISTRIBUTIONS.items()}
        off = np.log10(params["learning_rate.peak"] / peak)
        accuracy = 0.8 - 0.3 * off**2 + 0.01 * params["student.width"]
        values = [accuracy, 100.0 * params["student.width"]]
        study.add_trial(create_trial(params=params, distributions=DISTRIBUTIONS, values=values))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a storage with two prior studies, one of them like `new`; `new`; and searches without priors."""
    folder = tmp_path_factory.mktemp("storage")
    found = f"sqlite:///{folder / 'studies.db'}"
    storage = new_storage(found)
    random_study(storage, "like", folder, peak=0.01, count=30, seed=1)
    random_study(storage, "unlike", folder, peak=0.09, count=30, seed=2)
    random_study(storage, "new", folder, peak=0.01, count=16, seed=3, warm_start=["like", "unlike"])
    random_study(storage, "cold", folder, peak=0.01, count=12, seed=4)
    random_study(storage, "orphan", folder, peak=0.01, count=3, seed=5, warm_start=["gone"])
    random_study(storage, "empty", folder, peak=0.01, count=0, seed=6)
    random_study(storage, "elsewhere", folder, peak=0.01, count=1, seed=7, fingerprint="1" * 64)
    return found


def test_all_four_questions_are_answered_in_json(metasearch: Run, url: str) -> None:
    code, out, err = metasearch("transfer", "new", "--against", "cold", "--json", "--storage", url)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["study"], found["trials"], found["against"]) == ("new", 16, "cold")
    assert found["priors"] == [{"name": name, "task": "digits", "trials": 30} for name in ("like", "unlike")]
    assert [weights["trials"] for weights in found["weights"]] == list(range(1, 17))
    assert found["weights"][-1]["shares"].keys() == {"val_accuracy", "model_bytes"}
    agreements = {(a["prior"], a["objective"]): a["correlation"] for a in found["agreements"]}
    assert agreements["like", "val_accuracy"] > agreements["unlike", "val_accuracy"]
    assert {regions["parameter"] for regions in found["regions"]} == set(DISTRIBUTIONS)
    assert [s["trials"] for s in found["saved"]] == [1, 2, 4, 8, 16]
    assert all(len(s["cold"]) == 1 and s["limit"] == 12 for s in found["saved"])


def test_the_tables_fit_a_hundred_columns(metasearch: Run, url: str) -> None:
    code, out, err = metasearch("transfer", "new", "--against", "cold", "--storage", url)
    assert (code, err) == (0, "")
    assert out.startswith("new: 16 finished trials, started from 2 prior studies\n")
    for part in ("belief in the prior studies", "like", "unlike", "in cold", "may be chance"):
        assert part in out
    assert max(map(len, out.splitlines())) <= 100
    assert "simulated" not in out


def test_of_a_parameter_that_differs_the_farthest_priors_are_named(metasearch: Run, url: str) -> None:
    _, out, _ = metasearch("transfer", "new", "--against", "cold", "--storage", url)
    (at,) = (index for index, line in enumerate(out.splitlines()) if line.startswith(" learning_rate.peak"))
    first, second = out.splitlines()[at : at + 2]
    assert "(like)" in first
    assert first.rstrip().endswith("differs")
    assert "(unlike)" in second


def test_a_study_without_priors_shows_its_regions_and_says_what_is_missing(metasearch: Run, url: str) -> None:
    code, out, _ = metasearch("transfer", "like", "--storage", url)
    assert code == 0
    assert out.startswith("like: 30 finished trials, started without prior studies\n")
    assert "learning_rate.peak" in out
    assert "belief" not in out
    assert out.endswith("trials saved: nothing to compare with; metasearch transfer like --against STUDY\n")


def test_a_prior_study_that_is_gone_is_named(metasearch: Run, url: str) -> None:
    code, out, err = metasearch("transfer", "orphan", "--json", "--storage", url)
    assert code == 0
    assert err.startswith("prior gone: is no more in this storage")
    found = json.loads(out)
    assert (found["priors"], found["weights"], found["agreements"], found["saved"]) == ([], [], [], [])


def test_without_a_study_to_compare_with_the_saving_is_said_to_be_simulated(
    metasearch: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "SEEDS", 2)
    monkeypatch.setattr(saved, "PROPOSALS", 20)
    code, out, _ = metasearch("transfer", "new", "--storage", url)
    assert code == 0
    assert "without priors, median of 2 (range)" in out
    assert "simulated, for both sides" in out


def test_trials_that_a_machine_lost_do_not_count(metasearch: Run, url: str, tmp_path: Path) -> None:
    here = f"sqlite:///{tmp_path / 'here.db'}"
    storage = new_storage(here)
    random_study(storage, "some", tmp_path, peak=0.01, count=3, seed=8)
    study = load_study(storage, "some")
    for reason in (LOST, "diverged"):
        failure = {FAILURE: {"reason": reason, "message": ""}}
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=failure))
    assert json.loads(metasearch("transfer", "some", "--json", "--storage", here)[1])["trials"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nwe"], 3, "study 'nwe': there is none"),
        (["empty"], 3, "study empty: no trial is complete yet"),
        (["new", "--against", "cald"], 3, "study 'cald': there is none"),
        (["new", "--against", "orphan"], 2, "--against: must be a study that was started without prior studies"),
        (["new", "--against", "elsewhere"], 2, "--against: must be a study of the same task and objectives"),
        (["new", "--against", "empty"], 2, "--against: must be a study with a complete trial"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    metasearch: Run, url: str, arguments: list[str], code: int, part: str
) -> None:
    got, out, err = metasearch("transfer", *arguments, "--storage", url)
    assert (got, out) == (code, "")
    assert err.startswith(f"metasearch: {part}")
    assert err.count("\n") == 1


def test_the_command_explains_itself(metasearch: Run) -> None:
    assert "--against" in metasearch("transfer", "--help")[1]


@pytest.mark.slow
def test_the_command_loads_neither_torch_nor_ray(url: str) -> None:
    program = f"""
import sys
from metasearch.cli import app
app(["transfer", "new", "--against", "cold", "--storage", {url!r}], standalone_mode=False)
sys.exit(str([name for name in ("torch", "ray") if name in sys.modules]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert run.stderr.splitlines()[-1] == "[]"
