"""A study is not gone on with as another one, nor with what computes other numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.study import Study

from metasearch.errors import InputError
from metasearch.records import Config
from metasearch.search import launch, prepare
from metasearch.search.differences import differences, queued_first
from metasearch.search.launch import Outcome, run_study
from metasearch.search.prepare import Options, check_distinct, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import load_space, parse_space
from metasearch.search.store import StudyDescription, create_study, load_study, study_names
from metasearch.tasks import TaskSource
from tests.fakes import describe, new_storage


def test_the_same_description_differs_in_nothing(tmp_path: Path) -> None:
    assert differences(describe(tmp_path), describe(tmp_path, trials=99, created="later")) == []


def test_each_difference_is_told_with_both_values(tmp_path: Path) -> None:
    old = describe(tmp_path)
    space = parse_space(old.space.replace("epochs: 12", "epochs: 13"), place="here")
    assert space.digest != old.space_digest
    new = describe(tmp_path, task={"text": "usps"}, seed=3, space=space.text, space_digest=space.digest)
    assert differences(old, new) == ["task.text digits, now usps", "seed 0, now 3", "epochs 12, now 13"]


def test_a_launch_by_the_name_of_another_study_is_refused_with_what_differs(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    options = Options(
        TaskSource("digits"), load_space("quick"), 4, "s", sampler="random", artefacts=str(tmp_path / "a")
    )
    prepare_study(storage, options)
    with pytest.raises(InputError, match="a study of this name exists: `metasearch resume s`"):
        prepare_study(storage, options)
    with pytest.raises(InputError, match=r"searches something else \(seed 0, now 5; sampler random, now tpe\)"):
        prepare_study(storage, replace(options, seed=5, sampler="tpe"))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"initial": {"maml": {"place": "/copy", "digest": "1" * 64}}}, []),
        ({"initial": {"maml": {"place": "/a", "digest": "2" * 64}}}, ["initial.maml 111111111111, now 222222222222"]),
        ({"initial": {}}, ["initial.maml 111111111111, now none"]),
        ({"early_stopping": True}, ["early_stopping False, now True"]),
        ({"warm_start_asked": "none"}, ["warm_start auto, now none"]),
        ({"warm_start": ["a study made since"]}, []),
        ({"trial_timeout_s": 5.0}, ["trial_timeout_s none, now 5.0"]),
        ({"latency": {"study": "s", "device": "pi", "fit": {"error": 0.1}}}, []),
        (
            {"latency": {"study": "s", "device": "phone", "fit": {"error": 0.2}}},
            ["latency.device pi, now phone", "latency.fit 19e85bffd6f9, now ceec776c0cca"],
        ),
    ],
)
def test_another_start_limit_or_latency_makes_another_study(
    changes: dict[str, Any], difference: list[str], tmp_path: Path
) -> None:
    latency = {"study": "s", "device": "pi", "fit": {"error": 0.1}}
    old = describe(tmp_path, initial={"maml": {"place": "/a", "digest": "1" * 64}}, latency=latency)
    assert differences(old, replace(old, **changes)) == difference


@pytest.mark.usefixtures("nothing_built_in")
def test_a_name_that_another_launch_takes_meanwhile_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")

    def create(storage: RDBStorage, name: str, description: StudyDescription) -> Study:
        if not study_names(storage):
            create_study(storage, name, description)  # the other's
        return create_study(storage, name, description)

    monkeypatch.setattr(prepare, "create_study", create)
    options = Options(TaskSource("digits"), load_space("quick"), 4, artefacts=str(tmp_path / "a"))
    _, name = prepare_study(storage, options)
    assert (name, study_names(storage)) == ("digits-quick-2", ["digits-quick-1", "digits-quick-2"])


@pytest.mark.usefixtures("nothing_built_in")
def test_a_driver_queues_what_is_missing_of_the_configurations_to_run_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    queue: tuple[Config, ...] = ({"student.width": 8}, {"student.width": 9}, {"student.width": 10})
    options = Options(TaskSource("digits"), load_space("quick"), 4, "s", artefacts=str(tmp_path / "a"), enqueue=queue)
    prepare_study(storage, options)
    study = load_study(storage, "s")
    study.enqueue_trial(queue[0])  # by a driver that died then
    monkeypatch.setattr(launch._Search, "run", lambda self, *, final: Outcome(self.study))
    for _ in range(2):
        run_study(storage, "s", resources=Resources())
        assert queued_first(study) == list(queue)


@pytest.mark.usefixtures("nothing_built_in")
def test_a_launch_that_would_run_other_configurations_first_is_told_so(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    queue: tuple[Config, ...] = ({"student.width": 8}, {"student.width": 9})
    options = Options(TaskSource("digits"), load_space("quick"), 4, "s", artefacts=str(tmp_path / "a"), enqueue=queue)
    prepare_study(storage, options)
    for other, difference in (
        (queue, "exists: `metasearch resume s`"),
        (queue[:1], r"something else \(enqueue of 2 configurations, now of 1\)"),
        ((queue[0], {"student.width": 5}), r"something else \(enqueue\[1\]\.student\.width 9, now 5\)"),
    ):
        with pytest.raises(InputError, match=difference):
            prepare_study(storage, replace(options, enqueue=other))


def test_a_study_of_another_torch_is_not_resumed_unasked(tmp_path: Path) -> None:
    storage = new_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    create_study(storage, "s", describe(tmp_path, versions={"torch": "1.13.1"}))
    with pytest.raises(InputError, match=r"study s: was made by other versions.*--accept-versions.*torch 1\.13\.1"):
        run_study(storage, "s", resources=Resources())


def test_a_configuration_that_is_queued_twice_is_refused() -> None:
    check_distinct([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "--enqueue")
    with pytest.raises(InputError, match=r"--enqueue: \[2\]: is the same as an earlier one"):
        check_distinct([{"a": 1, "b": 2}, {"a": 2}, {"b": 2, "a": 1}], "--enqueue")
