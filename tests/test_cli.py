"""The command line as its users meet it: output, one-line errors and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from optuna.storages import RDBStorage

from tests.command_line import Run
from tests.data_files import save_images
from tests.fakes import copied, finished_study

pytestmark = pytest.mark.usefixtures("nothing_built_in")  # reading the package's priors is tested elsewhere


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> RDBStorage:
    """A storage with a finished study `ten` of ten trials."""
    folder = tmp_path_factory.mktemp("ten")
    return finished_study(f"sqlite:///{folder / 'studies.db'}", "ten", folder)


@pytest.fixture
def study(ten: RDBStorage, tmp_path: Path) -> str:
    """The name of a finished study of ten trials in the storage at `url`."""
    copied(ten, tmp_path)
    return "ten"


COMMANDS = ["launch", "run", "resume", "stop", "status", "tasks", "spaces", "priors", "delete", "gc", "meta-train"]
COMMANDS += ["best", "trials", "studies", "compare", "importance", "transfer", "report", "doctor", "watch", "dashboard"]
COMMANDS += ["logs", "export", "verify", "predict", "bench", "serve"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(metasearch: Run, command: str) -> None:
    code, out, _ = metasearch(command, "--help")
    assert code == 0
    assert command in out


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["launch", "digitz"], 2, ["task: must be one of", "did you mean digits?", "'digitz'"]),
        (["launch", "digits", "--space", "quik"], 3, ["quik", "quick"]),
        (["launch", "digits", "--trials", "0"], 2, ["--trials: must be at least 1, got 0"]),
        (["launch", "digits", "--sampler", "tpee"], 2, ["--sampler: must be one of", "tpe"]),
        (["launch", "digits", "--objective", "speed"], 2, ["speed"]),
        (["launch", "digits", "--constraint", "model_bytes<=25kg"], 2, ["--constraint: has an unknown unit", "'kg'"]),
        (["launch", "digits", "--teacher", "resnet"], 2, ["--teacher", "resnet"]),
        (["launch", "digits", "--teacher", "vgg:width=3,depth=4"], 2, ["vgg"]),
        (["launch", "digits", "--teacher", "nowhere.onnx"], 3, ["nowhere.onnx: there is no such file"]),
        (["launch", "digits", "--teacher-mean", "logits"], 2, ["--teacher: must be given with the other flags"]),
        (["launch", "digits", "--timeout", "soon"], 2, ["--timeout", "soon"]),
        (["launch", "digits", "--timeout", "0s"], 2, ["--timeout: must be above 0"]),
        (["launch", "digits", "--trial-timeout", "0m"], 2, ["--trial-timeout: must be above 0"]),
        (["launch", "digits", "--gpu-hours", "0", "--gpus-per-trial", "1"], 2, ["--gpu-hours: must be above 0"]),
        (["launch", "digits", "--timeout", "100000h"], 2, ["--timeout: must be at most"]),
        (["launch", "digits", "--gpu-hours", "1"], 2, ["--gpu-hours: needs --gpus-per-trial"]),
        (["launch", "digits", "--gpus-per-trial", "1.5"], 2, ["--gpus-per-trial: must be 0, a share from 0.0001 to 1"]),
        (["launch", "digits", "--gpus-per-trial", "99"], 2, ["--gpus-per-trial: no trial fits this machine's GPUs"]),
        (["launch", "fashion_mnist", "--data-root", "nowhere"], 3, ["nowhere", "--download"]),
        (["launch", "digits", "--storage", "postgresql://u:canary@host/db"], 2, ["--storage", "METASEARCH_STORAGE"]),
        (["launch", "digits", "--storage", "redis://host"], 2, ["sqlite://"]),
        (["best", "nothing"], 3, ["metasearch launch"]),
        (["run", "digits", "--config", "nowhere.yaml"], 3, ["nowhere.yaml: no such file"]),
        (["run", "digits", "--config", "/"], 3, ["/: cannot be read: Is a directory"]),
        (["run", "digits", "--config", sys.executable], 2, ["must be text in UTF-8"]),
        (["spaces", "check", "nowhere.yaml"], 3, ["nowhere.yaml"]),
        (["spaces", "check", "s" * 300], 3, ["is neither a file nor a preset"]),
        (["tasks", "check", "digitz"], 2, ["did you mean digits?"]),
        (["tasks", "check", "table:nowhere.csv"], 3, ["nowhere.csv: there is no such file"]),
        (["launch", "digits", "--init-from", "nothing"], 3, ["study 'nothing': there is none"]),
        (["launch", "digits", "--init-from", "a.safetensors"], 3, ["--init-from a.safetensors: ", "no such file"]),
        (["launch", "digits", "--meta", "a.safetensors"], 3, ["a.safetensors: no such file"]),
        (["launch", "digits", "--fix-structure", "nothing"], 3, ["study 'nothing': there is none"]),
        (["launch", "digits", "--source", "digits"], 2, ["--source: needs a space that gives source_weight a value"]),
        (["launch", "digits", "--source", "digitz"], 2, ["task: must be one of", "did you mean digits?"]),
        (["launch", "digits", "--unlabelled", "rest"], 2, ["unlabelled: nothing is left out without max_train"]),
        (["launch", "digits", "--unlabelled", "images:nowhere"], 3, ["nowhere: there is no such file or folder"]),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    metasearch: Run, arguments: list[str], code: int, parts: list[str]
) -> None:
    got, out, err = metasearch(*arguments)
    assert got == code
    assert out == ""
    assert err.startswith("metasearch: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert "canary" not in err


def test_an_address_of_rays_client_is_refused_before_a_study_is_made(metasearch: Run, tmp_path: Path) -> None:
    storage = tmp_path / "studies.db"
    code, _, err = metasearch("launch", "digits", "--address", "ray://head:10001", "--storage", f"sqlite:///{storage}")
    rule = "must be auto or HOST:PORT; outside the cluster's nodes use --submit"
    assert (code, err) == (2, f"metasearch: --address: {rule}, got 'ray://head:10001'\n")
    assert not storage.exists()


def test_a_bad_configuration_names_file_and_key(metasearch: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("student.width: 0\n")
    code, _, err = metasearch("run", "digits", "--config", str(file))
    assert code == 2
    assert err == f"metasearch: {file}: student.width: must be in [1, 1024], got 0\n"


def test_a_dry_run_says_what_would_run_and_makes_no_study(metasearch: Run, url: str) -> None:
    code, out, _ = metasearch("launch", "digits", "--space", "quick", "--trials", "5", "--dry-run", "--storage", url)
    assert code == 0
    described = json.loads(out)
    assert described["name"] == "digits-quick-1"
    assert described["trials"] == 5
    assert "student.width" in described["searched"]
    assert json.loads(metasearch("studies", "--json", "--storage", url)[1]) == []


def test_what_earlier_studies_decide_is_told_and_kept_with_the_study(metasearch: Run, url: str, study: str) -> None:
    launch = ["launch", "digits", "--space", "quick", "--warm-start", "none", "--dry-run", "--storage", url]
    code, out, err = metasearch(*launch, "--fix-structure", study)
    assert (code, err.split(":")[0]) == (0, f"--fix-structure {study}")
    assert set(json.loads(out)["searched"]).isdisjoint({"student.width", "student.depth"})
    code, out, _ = metasearch(*launch, "--fix-strategy", study)
    assert json.loads(out)["searched"] == ["student.depth", "student.width"]


def test_a_run_starts_from_a_file_that_another_run_wrote(metasearch: Run, tmp_path: Path) -> None:
    config = {"epochs": 1, "fine_tune_epochs": 0, "alpha": 0.0, "student.width": 4, "quantize": "none"}
    (tmp_path / "first.yaml").write_text(json.dumps(config))
    (tmp_path / "second.yaml").write_text(json.dumps(config | {"student.init": "prior_student", "source_weight": 0.1}))
    run = ["run", "digits", "--max-train", "100", "--to", str(tmp_path), "--config"]
    assert metasearch(*run, str(tmp_path / "first.yaml"))[0] == 0
    start = ["--init-from", str(tmp_path / "student.safetensors"), "--source", "digits"]
    code, out, _ = metasearch(*run, str(tmp_path / "second.yaml"), *start)
    assert (code, json.loads(out)["details"]["initialised"]) == (0, 1.0)


def test_the_flags_about_the_teacher_are_kept_with_the_study(metasearch: Run, url: str) -> None:
    launch = ["launch", "digits", "--space", "quick", "--dry-run", "--storage", url]
    _, out, _ = metasearch(*launch, "--teacher", "mlp:width=4,depth=1")
    assert json.loads(out)["teacher"] == "mlp:width=4,depth=1"
    flags = ["--teacher-mean", "logits", "--teacher-normalisation", "unit", "--teacher-labels-only"]
    _, out, _ = metasearch(*launch, "--teacher", "mlp:width=4,depth=1", "--teacher", "3*mlp:width=8,depth=1", *flags)
    assert json.loads(out)["teacher"] == {
        "members": [
            {"text": "mlp:width=4,depth=1", "weights": None, "share": 1.0},
            {"text": "mlp:width=8,depth=1", "weights": None, "share": 3.0},
        ],
        "normalisation": "unit",
        "mean": "logits",
        "labels_only": True,
        "features": [],
    }
    _, out, _ = metasearch(*launch, "--teacher", "convnet:width=4,depth=2", "--teacher-features", "2, 8")
    assert json.loads(out)["teacher"]["features"] == ["2", "8"]


def test_studies_are_listed_with_the_documented_keys(metasearch: Run, url: str, study: str) -> None:
    code, out, _ = metasearch("studies", "--json", "--storage", url)
    assert code == 0
    assert json.loads(out) == [
        {
            "name": study,
            "task": "digits",
            "objectives": ["val_accuracy", "model_bytes"],
            "finished": 10,
            "running": 0,
            "created": "2026-01-02T03:04:05+00:00",
            "complete": 9,
            "feasible": 9,
        }
    ]


def test_best_prints_the_front_as_json(metasearch: Run, url: str, study: str) -> None:
    code, out, _ = metasearch("best", study, "--json", "--storage", url)
    found = json.loads(out)
    assert code == 0
    assert found["study"] == study
    assert [trial["number"] for trial in found["trials"]] == list(range(8, -1, -1))
    assert found["trials"][0]["metrics"]["model_bytes"] == 9000
    assert found["trials"][0]["params"]["student.family"] == "convnet"


def test_best_keeps_limits_order_and_number(metasearch: Run, url: str, study: str) -> None:
    arguments = ["--where", "model_bytes<=5kB", "--sort", "model_bytes", "--top", "2"]
    _, out, _ = metasearch("best", study, "--json", "--storage", url, *arguments)
    assert [trial["number"] for trial in json.loads(out)["trials"]] == [0, 1]


def test_best_exits_with_4_and_shows_the_nearest_where_nothing_is_feasible(
    metasearch: Run, url: str, study: str
) -> None:
    code, out, err = metasearch("best", study, "--where", "model_bytes<=500", "--storage", url)
    assert (code, out) == (4, "")
    assert "trial 0: model_bytes=1000 misses model_bytes <= 500 by 500" in err


def test_best_writes_csv_and_parquet(metasearch: Run, url: str, study: str, tmp_path: Path) -> None:
    import pandas as pd

    _, out, _ = metasearch("best", study, "--csv", "--storage", url)
    assert out.startswith("number,state,val_accuracy")
    assert len(out.splitlines()) == 10
    metasearch("best", study, "--parquet", str(tmp_path / "front.parquet"), "--storage", url)
    assert len(pd.read_parquet(tmp_path / "front.parquet")) == 9


def test_the_table_of_the_front_names_student_and_metrics(metasearch: Run, url: str, study: str) -> None:
    _, out, _ = metasearch("best", study, "--storage", url)
    assert "ten: front of 9" in out
    assert "9 kB" in out
    assert "convnet w" in out


def test_status_counts_trials_and_failures(metasearch: Run, url: str, study: str) -> None:
    _, out, _ = metasearch("status", study, "--json", "--storage", url)
    found = json.loads(out)
    assert (found["finished"], found["running"], found["failures"]) == (10, 0, {"diverged": 1})
    assert found["driver"] is None


def test_a_misspelt_study_gets_a_suggestion(metasearch: Run, url: str, study: str) -> None:
    code, _, err = metasearch("status", "tan", "--storage", url)
    assert code == 3
    assert "did you mean ten?" in err


def test_stop_without_a_driver_is_not_found(metasearch: Run, url: str, study: str) -> None:
    code, _, err = metasearch("stop", study, "--storage", url)
    assert code == 3
    assert "no driver is running" in err


def test_a_study_of_the_same_name_is_refused_with_a_way_on(metasearch: Run, url: str, study: str) -> None:
    code, _, err = metasearch("launch", "digits", "--name", study, "--storage", url)
    assert code == 2
    assert "metasearch resume ten" in err


@pytest.mark.parametrize(
    ("wrong", "code", "part"),
    [
        (["--sampler", "tpee"], 2, "--sampler: must be one of"),
        (["--trials", "0"], 2, "--trials: must be at least 1"),
        (["--objective", "speed"], 2, "--objective"),
        (["--constraint", "model_bytes<=25kg"], 2, "--constraint: has an unknown unit"),
        (["--warm-start", "nothing"], 3, "nothing"),
        (["--name", "ten"], 2, "--name: a study of this name exists"),
    ],
)
def test_what_no_file_can_mend_is_refused_before_one_is_meta_trained(
    metasearch: Run, url: str, study: str, monkeypatch: pytest.MonkeyPatch, wrong: list[str], code: int, part: str
) -> None:
    def trained(*_: object, **__: object) -> tuple[str, ...]:
        raise AssertionError("hours of meta-training")

    monkeypatch.setattr("metasearch.search.meta_artefacts.completed_files", trained)
    family = ["--space", "few_shot", "--meta-family", "digits@classes:3"]
    got, _, err = metasearch("launch", "digits", *family, "--storage", url, *wrong)
    assert (got, err.count("\n")) == (code, 1)
    assert part in err


def test_delete_removes_study_and_artefacts(metasearch: Run, url: str, tmp_path: Path) -> None:
    finished_study(url, "four", tmp_path, trials=4)
    folder = tmp_path / "artefacts" / "four" / "trial-00001"
    folder.mkdir(parents=True)
    assert metasearch("delete", "four", "--yes", "--storage", url)[0] == 0
    assert not folder.exists()
    assert json.loads(metasearch("studies", "--json", "--storage", url)[1]) == []


def test_tasks_and_spaces_are_listed(metasearch: Run) -> None:
    assert "fashion_mnist" in metasearch("tasks")[1]
    assert "distill_compress" in metasearch("spaces")[1]


def save_archive(path: Path, *, leak: bool) -> str:
    """Write 60 train and 12 test images, of which one is also in train where `leak`; return the TASK text."""
    images = np.random.default_rng(0).integers(0, 256, (72, 8, 8), np.uint8)
    images[60] = images[0] if leak else images[60]
    for name, part in (("train", slice(0, 60)), ("test", slice(60, 72))):
        np.savez(path / f"{name}.npz", images=images[part], labels=np.arange(72)[part] % 3)
    return f"npz:{path}/train.npz,{path}/test.npz"


def test_a_clean_task_is_checked_with_exit_code_0(metasearch: Run, tmp_path: Path) -> None:
    code, out, err = metasearch("tasks", "check", save_archive(tmp_path, leak=False))
    assert (code, err) == (0, "")
    assert "nothing wrong found" in out
    assert "all" in out


def test_a_task_that_leaks_is_told_so_with_exit_code_1(metasearch: Run, tmp_path: Path) -> None:
    text = save_archive(tmp_path, leak=True)
    code, out, err = metasearch("tasks", "check", text)
    assert (code, err) == (1, "")
    assert "- 1 test image is also in " in out
    code, out, err = metasearch("tasks", "check", text, "--json", "--max-train", "30", "--unlabelled", "rest:5")
    found = json.loads(out)
    assert (code, err, found["unlabelled"]) == (1, "", 5)
    assert sum(found["counts"]["train"].values()) == 30


def test_corrupt_images_are_reported_without_a_flag(metasearch: Run, tmp_path: Path) -> None:
    save_images(tmp_path / "d", {f"{name}/{i:02d}.png": (8, 8) for name in "ab" for i in range(12)})
    (tmp_path / "d" / "b" / "00.png").write_bytes(b"junk")
    code, out, _ = metasearch("tasks", "check", f"folder:{tmp_path}/d", "--json")
    assert (code, json.loads(out)["corrupt"]) == (1, ["b/00.png"])


def test_unlabelled_images_are_part_of_a_study(metasearch: Run, url: str) -> None:
    arguments = ["launch", "digits", "--space", "quick", "--max-train", "200", "--unlabelled", "rest:50", "--dry-run"]
    code, out, _ = metasearch(*arguments, "--storage", url)
    assert code == 0
    assert json.loads(out)["task"]["unlabelled"] == "rest:50"


def test_a_space_can_be_checked(metasearch: Run, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("objectives: [val_accuracy]\npolicies: {temperature: {low: 8, high: 4}}\n")
    code, _, err = metasearch("spaces", "check", str(file))
    assert code == 2
    assert err == f"metasearch: {file}: policies.temperature.low: must be below high, got low=8, high=4\n"


def test_a_study_whose_making_was_cut_short_can_be_deleted(metasearch: Run, url: str, study: str) -> None:
    import optuna

    optuna.create_study(study_name="half", storage=url)
    assert metasearch("delete", "half", "--yes", "--storage", url)[0] == 0
    assert [row["name"] for row in json.loads(metasearch("studies", "--json", "--storage", url)[1])] == [study]


def test_a_storage_that_breaks_after_it_was_opened_is_one_line(
    metasearch: Run, url: str, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy

    def locked(*arguments: object, **options: object) -> None:
        raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("database is locked"))

    monkeypatch.setattr("metasearch.report.queries.best", locked)
    code, out, err = metasearch("best", study, "--storage", url)
    assert (code, out, err) == (5, "", "metasearch: the storage: database is locked\n")
