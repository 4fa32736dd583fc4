"""Event files as TensorBoard itself reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from metasearch.errors import InputError, NotFoundError
from metasearch.records import EpochReport, TrialResult
from metasearch.report.database import Database, open_database
from metasearch.report.event_files import folder_name, write_event_files
from metasearch.report.trial_logs import trial_logs
from metasearch.search.names import CURVE, RESULT
from metasearch.search.store import create_study, open_storage
from tests.command_line import Run
from tests.fakes import describe, new_storage
from tests.report.studies import reported_study


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(found, tmp_path, trials=6)
    return found


@pytest.fixture
def database(url: str) -> Database:
    return open_database(url)


def read(folder: Path) -> Any:
    """Return what TensorBoard has loaded of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_reads_each_epoch_and_result_as_they_are_stored(
    database: Database, url: str, tmp_path: Path
) -> None:
    assert write_event_files(database, ["ten"], tmp_path / "events") == {"ten": 6}
    trial = optuna.load_study(storage=url, study_name="ten").trials[2]
    result = TrialResult.from_json(trial.user_attrs[RESULT])
    found = read(tmp_path / "events" / "ten" / "trial-0002")
    for name in ("val_accuracy", "train_loss", "learning_rate", "temperature", "macs"):
        events = found.Scalars(name)
        assert [event.step for event in events] == [report.epoch for report in result.curve]
        assert [event.value for event in events] == pytest.approx([getattr(report, name) for report in result.curve])
    first, second = found.Scalars("val_accuracy")
    assert second.wall_time - first.wall_time == pytest.approx(result.curve[1].seconds)
    for name, value in result.metrics.items():
        assert found.Scalars(f"result/{name}")[0].value == pytest.approx(value)


def test_the_hparams_tab_has_every_parameter_with_its_value(database: Database, url: str, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    write_event_files(database, ["ten"], tmp_path)
    result = TrialResult.from_json(optuna.load_study(storage=url, study_name="ten").trials[0].user_attrs[RESULT])
    content = read(tmp_path / "ten" / "trial-0000").SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    told = parse_session_start_info_plugin_data(content).hparams
    known = {name: getattr(value, value.WhichOneof("kind")) for name, value in told.items()}
    assert known == pytest.approx(result.config)


def test_writing_again_adds_new_trials_alone(database: Database, url: str, tmp_path: Path) -> None:
    write_event_files(database, ["ten"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ten").rglob("*")}
    study = optuna.load_study(storage=url, study_name="ten")
    study.add_trial(create_trial(state=TrialState.RUNNING))
    assert write_event_files(database, ["ten"], tmp_path) == {"ten": 0}
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert write_event_files(database, ["ten"], tmp_path) == {"ten": 1}
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "ten").rglob("*")}
    new = after.keys() - before.keys()
    assert {path.name for path in new if path.is_dir()} == {"trial-0007"}
    assert {path: after[path] for path in before if path.is_file()} == {
        path: when for path, when in before.items() if path.is_file()
    }


def test_a_trial_that_was_stopped_early_has_the_epochs_it_had(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = create_study(new_storage(url), "early", describe(tmp_path))
    curve = [EpochReport("distill", 1, 9, 2.0, 0.25, 100, 0.01, 4.0, 0.5)]
    stored = {CURVE: [vars(report) for report in curve]}
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=stored))
    (log,) = trial_logs(open_database(url), "early")
    assert (log.state, log.curve, log.metrics) == ("PRUNED", curve, {})


def test_the_logs_by_sql_are_those_of_optunas_own_classes(database: Database) -> None:
    assert list(trial_logs(replace(database, known=False), "ten")) == list(trial_logs(database, "ten"))


def test_a_study_of_another_program_has_its_values_and_parameters(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(storage=url, study_name="../theirs")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert write_event_files(open_database(url), ["../theirs"], tmp_path / "events") == {"../theirs": 1}
    (folder,) = (tmp_path / "events").iterdir()  # not beside it
    assert read(folder / "trial-0000").Scalars("result/value")[0].value == pytest.approx(study.best_value)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc", "a b", "ü%2F", ".hidden"])
def test_a_study_has_one_folder_of_its_own_whatever_its_name(name: str, tmp_path: Path) -> None:
    assert (tmp_path / folder_name(name)).resolve().parent == tmp_path.resolve()
    assert not folder_name(name).startswith(".")
    assert folder_name(name) != folder_name(name + "x")


def test_a_study_without_trials_or_a_folder_that_is_a_file_is_one_line(database: Database, tmp_path: Path) -> None:
    create_study(open_storage(database.url), "new", describe(tmp_path))
    with pytest.raises(NotFoundError, match="study new: no trial has ended yet"):
        write_event_files(database, ["new"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--tensorboard: must be a folder that can be written"):
        write_event_files(database, ["ten"], tmp_path / "file")


def test_the_command_says_what_it_wrote_and_how_to_see_it(metasearch: Run, url: str, tmp_path: Path) -> None:
    code, out, err = metasearch("report", "ten", "--tensorboard", str(tmp_path / "events"), "--storage", url)
    assert (code, out) == (0, f"{tmp_path / 'events' / 'ten'}\n")
    assert err == f"ten: 6 new trials; `tensorboard --logdir {tmp_path / 'events'}` shows them\n"
