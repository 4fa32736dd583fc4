from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.study import Study

from metasearch.errors import InputError, NotFoundError
from metasearch.search.benchmarks import bring_back, known_latency, latency_of
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.priors import choose_priors, prior_of_study
from metasearch.search.space import load_space
from metasearch.search.store import description_of, load_study
from metasearch.tasks import TaskSource
from tests.fakes import describe, finished_study
from tests.latency.devices import networks, record

pytestmark = pytest.mark.usefixtures("nothing_built_in")

MEASURED = networks(6)
WORKS = [work.plain() for work in MEASURED[0].works]
SOURCE = TaskSource("digits", max_train=100, augment="none")


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    """A storage with the finished study `old`, whose trials say what their networks do."""
    return finished_study(f"sqlite:///{tmp_path / 'studies.db'}", "old", tmp_path, trials=4, details={"works": WORKS})


@pytest.fixture
def old(storage: RDBStorage) -> Study:
    """The study, with what the device `phone: a` has measured."""
    study = load_study(storage, "old")
    bring_back(study, "phone: a", [record(network) for network in MEASURED])
    return study


def prepared(storage: RDBStorage, **options: object) -> tuple[str, list[str]]:
    lines: list[str] = []
    asked = Options(source=SOURCE, space=load_space("quick"), trials=1, teacher="mlp:width=4,depth=1")
    _, name = prepare_study(storage, replace(asked, **options), tell=lines.append)  # type: ignore[arg-type]  # its fields
    return name, lines


def test_a_later_measurement_of_a_network_takes_the_place_of_the_earlier(old: Study) -> None:
    slower = replace(MEASURED[0], ms=2 * MEASURED[0].ms)
    kept, _ = bring_back(old, "phone: a", [record(slower)])
    assert {network.digest: network.ms for network in kept} == {
        network.digest: network.ms for network in (slower, *MEASURED[1:])
    }


def test_devices_are_kept_apart(old: Study, storage: RDBStorage) -> None:
    assert len(bring_back(old, "board", [record(MEASURED[0])])[0]) == 1
    with pytest.raises(InputError, match=r"--latency-from: must name a device: old:board, old:phone: a, got 'old'"):
        known_latency(storage, "old")
    known = known_latency(storage, "old:phone: a")
    assert (known.study, known.device, known.fit.networks) == ("old", "phone: a", 6)


def test_reports_that_are_brought_back_at_the_same_time_lose_nothing(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has read the study, and has yet to write to it, when another comes and goes."""
    one, other = load_study(storage, "old"), load_study(storage, "old")

    def set_later(name: str, value: object) -> None:
        bring_back(other, "board", [record(network) for network in MEASURED[3:]])
        Study.set_user_attr(one, name, value)

    monkeypatch.setattr(one, "set_user_attr", set_later)
    bring_back(one, "board", [record(network) for network in MEASURED[:3]])
    assert known_latency(storage, "old").fit.networks == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("old:watch", "must name a device that measured: phone: a, got 'watch'"),
        ("other", "no device has measured networks for it: metasearch bench BUNDLE... --into other"),
    ],
)
def test_what_cannot_be_predicted_from_is_refused(old: Study, storage: RDBStorage, text: str, message: str) -> None:
    finished_study(str(storage.url), "other", Path("/nonexistent"), trials=1)
    with pytest.raises(InputError) as caught:
        known_latency(storage, text)
    assert message in str(caught.value)


def test_a_study_that_is_not_there_is_not_found(storage: RDBStorage) -> None:
    with pytest.raises(NotFoundError):
        known_latency(storage, "old-2:phone: a")


def test_two_networks_are_too_few(storage: RDBStorage) -> None:
    bring_back(load_study(storage, "old"), "board", [record(network) for network in MEASURED[:2]])
    with pytest.raises(InputError, match="needs the measurements of 3 networks on board: metasearch bench"):
        known_latency(storage, "old")


def test_the_model_comes_back_from_the_description(old: Study, storage: RDBStorage) -> None:
    known = known_latency(storage, "old")
    kept = json.loads(json.dumps(asdict(replace(describe(Path()), latency=asdict(known)))))
    again = latency_of(type(describe(Path()))(**kept))
    assert again is not None
    assert str(again) == str(known)
    assert [again.model.predict(each.works) for each in MEASURED] == [known.model.predict(e.works) for e in MEASURED]


def test_latency_as_an_objective_needs_measurements(storage: RDBStorage) -> None:
    with pytest.raises(InputError) as caught:
        prepared(storage, objectives=("val_accuracy", "latency_ms"))
    assert str(caught.value) == (
        "--objective: latency_ms is predicted during a search, from what a device has measured: "
        "metasearch bench BUNDLE... --into STUDY, then --latency-from STUDY"
    )


def test_a_study_for_latency_keeps_its_model_and_says_how_good_it_is(old: Study, storage: RDBStorage) -> None:
    name, lines = prepared(storage, objectives=("val_accuracy", "latency_ms"), latency_from="old")
    kept = latency_of(description_of(load_study(storage, name)))
    assert kept == known_latency(storage, "old")
    assert lines[0].startswith("latency_ms: predicted for phone: a, from 6 networks; of one left out it is off by ")
    assert lines[1].startswith("prior old: 4 trials for val_accuracy, latency_ms; ")


def test_a_prior_knows_the_latencies_of_its_trials_by_the_model(old: Study, storage: RDBStorage) -> None:
    known = known_latency(storage, "old")
    prior = prior_of_study(old, latency=known)
    expected = known.model.predict(MEASURED[0].works)
    assert [trial.metrics["latency_ms"] for trial in prior.complete] == pytest.approx([expected] * 3)
    assert all("latency_ms" not in trial.metrics for trial in prior_of_study(old).complete)


def test_a_prior_that_says_nothing_of_its_networks_still_tells_of_accuracy(old: Study, storage: RDBStorage) -> None:
    finished_study(str(storage.url), "ancient", Path("/nonexistent"), trials=3)
    known, objectives = known_latency(storage, "old"), ["val_accuracy", "latency_ms"]
    mapped = choose_priors(storage, "old,ancient", load_space("quick"), objectives, latency=known)
    assert [list(each.prior.directions) for each in mapped] == [objectives, ["val_accuracy"]]


def test_another_devices_latencies_give_way_to_those_of_the_model(old: Study, storage: RDBStorage) -> None:
    """The old study's own objective may be the latency on a device that is of no interest now."""
    known = known_latency(storage, "old")
    prior = prior_of_study(old, latency=known)
    slower = replace(known.fit.model, coefficients={"any": (1.0, 0.0, 0.0), "input": (0.0, 0.0, 0.0)})
    there = replace(known, fit=replace(known.fit, model=slower))
    layers = len(WORKS) - 1
    assert [trial.metrics["latency_ms"] for trial in prior_of_study(old, latency=there).complete] == [layers] * 3
    assert prior.complete[0].metrics["latency_ms"] < 1
