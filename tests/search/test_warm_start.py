"""A new search and its priors: chosen when the study is made, kept with it, and shown before anything runs."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from metasearch.errors import InputError, NotFoundError
from metasearch.search import samplers
from metasearch.search.launch import Watcher, _Search
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import load_space
from metasearch.search.stopping import StopFlag
from metasearch.search.store import description_of, load_study
from metasearch.tasks import TaskSource, load_task
from tests.fakes import finished_study

pytestmark = pytest.mark.usefixtures("nothing_built_in")

SOURCE = TaskSource("digits", max_train=100, augment="none")
NETWORK = "mlp:width=4,depth=1"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RDBStorage:
    """A storage with the finished study `first`, and a sampler called transfer."""
    monkeypatch.setitem(samplers.SAMPLERS, "transfer", lambda seed: optuna.samplers.RandomSampler(seed=seed))
    return finished_study(f"sqlite:///{tmp_path / 'studies.db'}", "first", tmp_path, trials=4)


def prepare(storage: RDBStorage, **options: str) -> tuple[list[str], list[str]]:
    """Make a study; return the names of its priors as they are kept, and the lines that were told."""
    lines: list[str] = []
    asked = Options(source=SOURCE, space=load_space("quick"), trials=1, teacher=NETWORK, **options)  # type: ignore[arg-type]  # only texts
    _, name = prepare_study(storage, asked, tell=lines.append)
    return description_of(load_study(storage, name)).warm_start, lines


def test_a_new_study_keeps_the_priors_it_starts_from_and_says_how_they_map(storage: RDBStorage) -> None:
    kept, lines = prepare(storage, sampler="transfer")
    assert kept == ["first"]
    (line,) = lines
    assert line.startswith("prior first: 4 trials for val_accuracy, model_bytes; parameters ")
    assert " kept" in line


def test_none_asks_for_no_priors(storage: RDBStorage) -> None:
    assert prepare(storage, sampler="transfer", warm_start="none") == ([], [])


def test_auto_says_that_it_found_none(storage: RDBStorage) -> None:
    kept, lines = prepare(storage, sampler="transfer", warm_start="auto,-first")
    assert (kept, lines) == ([], ["no prior fits: the search starts from nothing"])


def test_a_sampler_that_knows_no_priors_gets_none_and_refuses_those_that_are_named(storage: RDBStorage) -> None:
    assert prepare(storage, sampler="tpe") == ([], [])
    assert prepare(storage, sampler="tpe", warm_start="none") == ([], [])
    with pytest.raises(InputError, match="--warm-start: needs --sampler transfer: tpe knows no priors, got 'first'"):
        prepare(storage, sampler="tpe", warm_start="first")
    with pytest.raises(InputError, match="--warm-start: must be auto"):
        prepare(storage, sampler="tpe", warm_start="auto,none")


def test_a_misspelt_prior_makes_no_study(storage: RDBStorage) -> None:
    with pytest.raises(NotFoundError, match="did you mean first"):
        prepare(storage, sampler="transfer", warm_start="frist")
    assert optuna.get_all_study_names(storage) == ["first"]


def test_the_driver_keeps_the_features_of_the_task_with_the_study(storage: RDBStorage) -> None:
    asked = Options(source=SOURCE, space=load_space("quick"), trials=1, teacher=NETWORK)
    _, name = prepare_study(storage, asked)
    study = load_study(storage, name)
    assert description_of(study).features == {}
    search = _Search(storage, study, description_of(study), Resources(), Watcher(), StopFlag())
    task = load_task(SOURCE)
    teacher = search._teacher(task, search.description.parsed_space())
    kept = description_of(load_study(storage, name)).features
    assert kept == search.description.features
    assert kept["teacher_accuracy"] == teacher.metrics["val_accuracy"]
    assert kept["log_examples"] == pytest.approx(4.615, abs=0.01)  # log(1 + 100)
