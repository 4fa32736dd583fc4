"""Imported priors: kept whole in a storage, found again, and in nobody's way."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage

from metasearch.errors import InputError
from metasearch.report.database import open_database
from metasearch.report.queries import best, trials_table
from metasearch.report.standing import standing
from metasearch.report.studies import studies_frame
from metasearch.search import imported
from metasearch.search.garbage import collect
from metasearch.search.imported import import_priors, imported_prior
from metasearch.search.store import load_study
from metasearch.transfer.prior import Prior, PriorTrial
from tests.fakes import finished_study, new_storage

DIRECTIONS = {"val_accuracy": "maximize", "model_bytes": "minimize"}


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return new_storage(f"sqlite:///{tmp_path / 'studies.db'}")


def made(name: str = "usps", trials: int = 3) -> Prior:
    """Return a prior of complete trials of eight parameters, with curves."""
    distributions = {f"x{i}": FloatDistribution(0, 1) for i in range(8)}
    values = [(index + 0.5) / trials for index in range(trials)]
    measured = [{"val_accuracy": value, "model_bytes": 9.0} for value in values]
    return Prior(
        name,
        DIRECTIONS,
        distributions,
        tuple(
            PriorTrial(dict.fromkeys(distributions, value), metrics, curve=(0.25, 0.5))
            for value, metrics in zip(values, measured, strict=True)
        ),
        task="usps",
    )


def test_an_imported_prior_comes_back_as_it_was(storage: RDBStorage) -> None:
    assert import_priors(storage, [made(), made("other", 5)], place="p") == [("usps", True), ("other", True)]
    assert imported_prior(load_study(storage, "usps")) == made()
    assert imported_prior(load_study(storage, "other")) == made("other", 5)


def test_a_prior_in_many_pieces_comes_back_as_it_was(storage: RDBStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "PIECE", 700)
    import_priors(storage, [made(trials=50)], place="p")
    study = load_study(storage, "usps")
    assert study.user_attrs["prior"]["pieces"] > 3
    assert imported_prior(study) == made(trials=50)


def test_importing_again_changes_nothing_and_a_different_one_is_refused(storage: RDBStorage) -> None:
    import_priors(storage, [made()], place="p")
    assert import_priors(storage, [made(), made("new")], place="p") == [("usps", False), ("new", True)]
    with pytest.raises(InputError, match=r"p: prior usps: another prior .* `metasearch delete usps`"):
        import_priors(storage, [made("third"), replace(made(), task="other")], place="p")
    assert optuna.get_all_study_names(storage) == ["usps", "new"]  # nothing of a file that is refused


def test_the_name_of_a_study_is_refused(storage: RDBStorage, tmp_path: Path) -> None:
    finished_study(str(storage.url), "usps", tmp_path)
    with pytest.raises(InputError, match="p: prior usps: has the name of a study that is here"):
        import_priors(storage, [made()], place="p")


@pytest.mark.parametrize("name", ["auto", "none", "-a", "a/controls"])
def test_a_name_that_could_not_be_asked_for_is_refused(storage: RDBStorage, name: str) -> None:
    with pytest.raises(InputError, match="must not"):
        import_priors(storage, [made(name)], place="p")


def test_a_damaged_prior_is_one_line_with_the_way_out(storage: RDBStorage) -> None:
    import_priors(storage, [made()], place="p")
    study = load_study(storage, "usps")
    study.set_user_attr("prior.0", "abc")
    with pytest.raises(InputError, match="imported prior usps: must be whole: `metasearch delete` it") as caught:
        imported_prior(study)
    assert "\n" not in str(caught.value)


def test_a_study_of_any_other_kind_holds_no_imported_prior(storage: RDBStorage, tmp_path: Path) -> None:
    finished_study(str(storage.url), "ten", tmp_path)
    optuna.create_study(storage=storage, study_name="theirs")
    assert imported_prior(load_study(storage, "ten")) is None
    assert imported_prior(load_study(storage, "theirs")) is None


def test_questions_about_studies_are_not_confused_by_an_imported_prior(storage: RDBStorage, tmp_path: Path) -> None:
    finished_study(str(storage.url), "ten", tmp_path)
    import_priors(storage, [made()], place="p")
    database = open_database(storage.url)
    assert list(studies_frame(database)["name"]) == ["ten"]
    for ask in (
        lambda: trials_table(database, "usps").frame(),
        lambda: best(database, "usps").table.frame(),
        lambda: standing(database, "usps"),
    ):
        with pytest.raises(InputError, match="study usps: is an imported prior, without trials"):
            ask()
    assert list(collect(storage, remove=True)) == []
    assert imported_prior(load_study(storage, "usps")) == made()


def test_thousands_of_trials_are_imported_at_more_than_a_thousand_a_second(storage: RDBStorage) -> None:
    prior = made(trials=3000)
    started = time.process_time()
    import_priors(storage, [prior], place="p")
    assert time.process_time() - started < 3
    started = time.process_time()
    assert len((imported_prior(load_study(storage, "usps")) or made()).trials) == 3000
    assert time.process_time() - started < 3
