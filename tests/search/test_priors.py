"""Priors of a storage: who is one, how `--warm-start` chooses, and that a resumed search has the same ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from metasearch.errors import InputError, NotFoundError
from metasearch.records import EpochReport, TrialResult
from metasearch.search import priors
from metasearch.search.imported import import_priors
from metasearch.search.lease import Lease
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.priors import (
    WarmStart,
    choose_priors,
    known_priors,
    load_warm_start,
    prior_of_study,
    priors_in,
)
from metasearch.search.space import load_space, parse_space
from metasearch.search.store import CONTROLS, DESCRIPTION, LOST, create_study, description_of, load_study, open_storage
from metasearch.transfer.mapping import MappedPrior
from metasearch.transfer.priors_file import write_priors
from tests.fakes import copied, describe, finished_study, new_storage

pytestmark = pytest.mark.usefixtures("nothing_built_in")

OBJECTIVES = ("val_accuracy", "model_bytes")
SPACE = load_space("quick")


@pytest.fixture(scope="module")
def two_studies(tmp_path_factory: pytest.TempPathFactory) -> RDBStorage:
    """A storage with the finished studies `first` and `second`, of four trials each, one of them failed."""
    folder = tmp_path_factory.mktemp("two")
    url = f"sqlite:///{folder / 'studies.db'}"
    finished_study(url, "first", folder, trials=4)
    return finished_study(url, "second", folder, trials=4, fingerprint="2" * 64, task={"text": "usps"})


@pytest.fixture
def storage(two_studies: RDBStorage, tmp_path: Path) -> RDBStorage:
    """A test's own copy of two_studies."""
    return open_storage(copied(two_studies, tmp_path))


def names(chosen: list[MappedPrior]) -> list[str]:
    return [mapped.prior.name for mapped in chosen]


# Who is a prior


def test_a_study_says_its_task_versions_features_and_what_it_fixed(tmp_path: Path) -> None:
    storage = finished_study(
        f"sqlite:///{tmp_path / 's.db'}",
        "s",
        tmp_path,
        features={"balance": 1.0},
        versions={"torch": "2"},
        commit="abc",
    )
    prior = prior_of_study(load_study(storage, "s"))
    assert (prior.task, prior.fingerprint, prior.features) == ("digits", "0" * 64, {"balance": 1.0})
    assert prior.versions == {"torch": "2", "commit": "abc"}
    assert prior.fixed == SPACE.fixed
    assert len(prior.trials) == 10
    assert {frozenset(trial.metrics) for trial in prior.complete} == {
        frozenset({"val_accuracy", "model_bytes", "macs", "parameters"})
    }


def test_curves_of_complete_and_stopped_trials_are_kept_and_lost_trials_left_out(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 's.db'}")
    study = create_study(storage, "s", describe(tmp_path))
    ledger = Ledger(
        study,
        lambda trial: Proposal(SPACE.suggest(trial)),
        target=3,
        seed=0,
        objectives=("val_accuracy", "model_bytes"),
    )
    epochs = [EpochReport("distill", i + 1, 2, 1.0, 0.25 * (i + 1), 9, 0.1, 1.0, 0.5) for i in range(2)]
    metrics = {"val_accuracy": 0.5, "model_bytes": 9.0, "val_ece": float("nan")}
    numbers = [ledger.ask()[0] for _ in range(3)]
    ledger.tell_result(numbers[0], TrialResult({}, 0, metrics, curve=tuple(epochs)), {})
    ledger.tell_pruned(numbers[1], epochs[:1], {})
    ledger.tell_failure(numbers[2], LOST, "the machine went away", {})
    prior = prior_of_study(study)
    assert [(trial.state, trial.curve) for trial in prior.trials] == [("complete", (0.25, 0.5)), ("pruned", (0.25,))]
    assert prior.trials[0].metrics == {"val_accuracy": 0.5, "model_bytes": 9.0}  # what is not finite is not known


def test_a_study_whose_space_is_no_longer_read_is_still_a_prior(tmp_path: Path) -> None:
    storage = finished_study(f"sqlite:///{tmp_path / 's.db'}", "s", tmp_path)
    study = load_study(storage, "s")
    study.set_user_attr(DESCRIPTION, asdict(replace(description_of(study), space="objectives: [gone]")))
    assert prior_of_study(study).fixed == {}


def test_a_study_described_before_there_were_priors_loads(storage: RDBStorage) -> None:
    study = load_study(storage, "first")
    described = asdict(description_of(study))
    del described["warm_start"], described["features"]
    study.set_user_attr(DESCRIPTION, described)
    assert description_of(study).warm_start == []
    assert load_warm_start(storage, description_of(study), SPACE) == []


def test_studies_without_complete_trials_controls_and_driven_ones_are_no_priors(
    storage: RDBStorage, tmp_path: Path
) -> None:
    create_study(storage, "empty", describe(tmp_path))
    companion = create_study(storage, "first" + CONTROLS, describe(tmp_path, trials=0))
    companion.add_trial(optuna.trial.create_trial(state=TrialState.COMPLETE, values=[0.5, 9.0]))
    assert [known.prior.name for known in priors_in(storage)] == ["first", "second"]
    lease = Lease(load_study(storage, "second"), on_stop=lambda reason: None)
    lease.acquire()
    try:
        assert [known.prior.name for known in priors_in(storage)] == ["first"]
    finally:
        lease.release()


def test_a_study_of_another_program_is_a_prior_where_it_shares_names(storage: RDBStorage) -> None:
    for name, parameter in (("theirs", "student.width"), ("foreign", "speed")):
        study = optuna.create_study(storage=storage, study_name=name, directions=["maximize"])
        study.set_metric_names(["val_accuracy"])
        trial = study.ask()
        trial.suggest_int(parameter, 1, 8)
        study.tell(trial, 0.5)
    lines: list[str] = []
    chosen = choose_priors(storage, "auto", SPACE, OBJECTIVES, tell=lines.append)
    assert names(chosen) == ["first", "second", "theirs"]
    assert chosen[-1].prior.directions == {"val_accuracy": "maximize"}
    assert lines[-1] == "prior foreign: not used: it shares no parameter"


# Choosing


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("auto", WarmStart(every=True)),
        ("none", WarmStart()),
        ("a, b,a", WarmStart(names=("a", "b"))),
        ("auto,-a,-b", WarmStart(every=True, without=("a", "b"))),
    ],
)
def test_warm_start_is_read(text: str, meaning: WarmStart) -> None:
    assert WarmStart.parse(text) == meaning


@pytest.mark.parametrize("text", ["", ",", "auto,a", "none,a", "none,auto", "-a", "auto,-", "a,,b"])
def test_a_warm_start_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--warm-start: must be auto, none or NAME"):
        WarmStart.parse(text)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("npz:a,b-1", WarmStart(names=("npz:a,b-1",))),
        ("x,npz:a,b-1,npz:a", WarmStart(names=("x", "npz:a,b-1", "npz:a"))),
        ("auto,-npz:a,b-1,-x", WarmStart(every=True, without=("npz:a,b-1", "x"))),
        ("npz:a,b-2", WarmStart(names=("npz:a", "b-2"))),
    ],
)
def test_a_known_name_may_have_commas(text: str, meaning: WarmStart) -> None:
    assert WarmStart.parse(text, ["npz:a,b-1", "x"]) == meaning


def test_auto_takes_all_none_none_and_names_those_in_their_order(storage: RDBStorage) -> None:
    def chosen(text: str) -> list[str]:
        return names(choose_priors(storage, text, SPACE, OBJECTIVES))

    assert chosen("auto") == ["first", "second"]
    assert chosen("none") == []
    assert chosen("second,first") == ["second", "first"]
    assert chosen("auto,-first") == ["second"]


def test_a_study_of_a_task_of_two_files_is_chosen_by_its_name(storage: RDBStorage, tmp_path: Path) -> None:
    name = "npz:a.npz,b.npz-quick-1"
    finished_study(str(storage.url), name, tmp_path, trials=2)
    assert names(choose_priors(storage, f"second,{name}", SPACE, OBJECTIVES)) == ["second", name]
    assert names(choose_priors(storage, f"auto,-{name}", SPACE, OBJECTIVES)) == ["first", "second"]


@pytest.mark.parametrize("task", ["usps", "2" * 64])
def test_priors_of_one_task_can_be_left_out(storage: RDBStorage, task: str) -> None:
    assert names(choose_priors(storage, "auto", SPACE, OBJECTIVES, exclude_task=task)) == ["first"]


@pytest.mark.parametrize("text", ["frist", "first,frist", "auto,-frist"])
def test_a_prior_that_is_not_there_is_not_found_and_the_nearest_is_named(storage: RDBStorage, text: str) -> None:
    with pytest.raises(NotFoundError, match=r"prior 'frist': there is no .*did you mean first\?"):
        choose_priors(storage, text, SPACE, OBJECTIVES)


def test_a_named_prior_that_is_of_no_use_is_refused_with_the_reason_and_auto_passes_it_by(storage: RDBStorage) -> None:
    with pytest.raises(InputError, match="--warm-start: prior first cannot be used: it measured none of val_ece"):
        choose_priors(storage, "first", SPACE, ["val_ece"])
    assert choose_priors(storage, "auto", SPACE, ["val_ece"]) == []


def test_auto_passes_by_a_prior_that_tried_none_of_the_choices_which_can_be_named(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="large", directions=["maximize", "minimize"])
    study.set_metric_names(list(OBJECTIVES))
    batches = CategoricalDistribution((64, 128))
    for batch in batches.choices:
        found = create_trial(params={"batch_size": batch}, distributions={"batch_size": batches}, values=[0.5, 900.0])
        study.add_trial(found)
    small, both = (
        parse_space(SPACE.text.replace("batch_size: 64", f"batch_size: {{choices: {choices}}}"), place="s.yaml")
        for choices in ([10, 25], [10, 64])
    )
    lines: list[str] = []
    assert "large" not in names(choose_priors(storage, "auto", small, OBJECTIVES, tell=lines.append))
    assert "prior large: not used: it tried none of the choices of batch_size" in lines
    assert names(choose_priors(storage, "large", small, OBJECTIVES)) == ["large"]
    assert "large" in names(choose_priors(storage, "auto", both, OBJECTIVES))


def test_the_mapped_trials_are_configurations_of_the_new_space(storage: RDBStorage) -> None:
    text = SPACE.text.replace("quick", "other")
    space = parse_space(text, place="other.yaml")
    (mapped, _) = choose_priors(storage, "auto", space, OBJECTIVES)
    for trial in mapped.prior.trials:
        space.check_parameters(trial.params, "trial")
    assert mapped.clipped == {}
    assert mapped.dropped == ()


def test_a_prior_maps_to_a_space_that_fixes_what_it_searched(storage: RDBStorage) -> None:
    text = SPACE.text.replace("student.width: {low: 2, high: 12}", "student.width: 8")
    space = parse_space(text, place="fixed.yaml")
    assert space.fixed["student.width"] == 8
    mapped, _ = choose_priors(storage, "auto", space, OBJECTIVES)
    assert mapped.dropped == ("student.width",)
    assert all("student.width" not in trial.params for trial in mapped.prior.trials)


def test_what_conditions_of_the_new_space_rule_out_is_taken_out(tmp_path: Path) -> None:
    space = load_space("distill_compress")
    storage = finished_study(f"sqlite:///{tmp_path / 's.db'}", "s", tmp_path)
    (mapped,) = choose_priors(storage, "auto", space, OBJECTIVES)
    assert mapped.prior.trials
    for trial in mapped.prior.trials:
        space.check_parameters(trial.params, "trial")  # raises for a parameter that is not active


# The package's own


def test_priors_of_the_package_are_known_and_can_be_left_out_by_name(
    storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = [replace(prior_of_study(load_study(storage, "first")), name=name) for name in ("first", "shipped")]
    monkeypatch.setattr(priors, "BUILT_IN_FILE", tmp_path / "builtin.parquet")
    assert priors.builtin_priors() == ()
    write_priors(tmp_path / "builtin.parquet", shipped)
    sources = {name: known.source for name, known in known_priors(storage).items()}
    assert sources == {"first": "store", "shipped": "built-in", "second": "store"}  # the storage's own comes first
    assert sorted(names(choose_priors(storage, "auto,-shipped", SPACE, OBJECTIVES))) == ["first", "second"]


def test_the_package_ships_priors_of_eight_tasks_that_fit_its_default_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shipped = priors.builtin_priors()
    assert len({prior.fingerprint for prior in shipped}) >= 8
    pools = [[trial.params for trial in prior.trials] for prior in shipped]
    assert len(pools[0]) >= 150
    assert all(pool == pools[0] for pool in pools)  # the same configurations on every task
    space = priors.builtin_space()
    for prior in shipped:
        assert prior.distributions == space.distributions()
        assert prior.features.keys() >= {"linear_probe_accuracy", "one_nn_accuracy", "teacher_accuracy"}
        assert prior.versions["metasearch"]
        assert all(len(trial.curve) >= 10 for trial in prior.complete)
    assert priors.BUILT_IN_FILE.stat().st_size < 3e6


def test_the_packages_priors_count_as_started_at_random_in_the_default_space(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    names = [prior.name for prior in priors.builtin_priors()]
    space = load_space("distill_compress")
    for mapped in choose_priors(storage, ",".join(names), space, ["val_accuracy", "model_bytes"]):
        assert mapped.filled == {"student.init": "random"}
        convolutional = [t.params for t in mapped.prior.trials if t.params["student.family"] != "mlp"]
        assert {params["student.init"] for params in convolutional} == {"random"}
        assert not any("student.init" in t.params for t in mapped.prior.trials if t.params["student.family"] == "mlp")


# Going on


def test_a_resumed_search_has_the_priors_it_was_started_from(storage: RDBStorage, tmp_path: Path) -> None:
    description = describe(tmp_path, warm_start=["second", "gone", "first"])
    finished_study(str(storage.url), "later", tmp_path, trials=2)
    lines: list[str] = []
    loaded = load_warm_start(storage, description, SPACE, tell=lines.append)
    assert [prior.name for prior in loaded] == ["second", "first"]
    assert lines == ["prior gone: is no more in this storage; the search goes on without it"]
    chosen = choose_priors(storage, "second,first", SPACE, OBJECTIVES)
    assert loaded == [mapped.prior for mapped in chosen]


def test_an_imported_prior_is_found_by_auto(storage: RDBStorage, tmp_path: Path) -> None:
    other = new_storage(f"sqlite:///{tmp_path / 'other.db'}")
    import_priors(other, [known.prior for known in priors_in(storage)], place="x.parquet")
    assert names(choose_priors(other, "auto", SPACE, OBJECTIVES)) == ["first", "second"]
    assert {known.source for known in priors_in(other)} == {"imported"}
