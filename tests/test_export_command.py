from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from metasearch.bundle.contents import CARD, MODEL, read_bundle
from metasearch.records import TrialResult
from metasearch.search.artefacts import trial_folder
from tests.bundles import study_of
from tests.command_line import Run

CONFIGS: list[dict[str, Any]] = [
    {"epochs": 8, "student.width": 8, "learning_rate.kind": "one_cycle", "learning_rate.peak": 0.03},
    {"student.width": 2, "quantize": "none", "epochs": 1},
    {"student.family": "mlp", "student.width": 3, "pruning_ratio": 0.5},
]
"""The first is the most accurate, the last another family's; all too small to be good."""


@dataclass(frozen=True)
class Study:
    folder: Path
    url: str
    results: list[TrialResult]

    def artefacts(self, number: int) -> Path:
        return Path(trial_folder(str(self.folder / "artefacts" / "small"), number))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METASEARCH_HOME", str(folder / "home"))
        storage, results = study_of(folder, CONFIGS)
    return Study(folder, str(storage.url), results)


@pytest.fixture
def study(made: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study in the user's own storage, with its prepared data in the cache."""
    monkeypatch.setenv("METASEARCH_STORAGE", made.url)
    monkeypatch.setenv("METASEARCH_HOME", str(made.folder / "home"))
    return made


def test_the_best_of_the_front_by_the_first_objective_is_exported(
    metasearch: Run, study: Study, tmp_path: Path
) -> None:
    code, out, err = metasearch("export", "small", "--to", str(tmp_path / "new" / "bundle"), "--licence", "BSD")
    assert (code, out) == (0, f"{tmp_path / 'new' / 'bundle'}\n")
    bundle = read_bundle(tmp_path / "new" / "bundle")
    best = max(range(3), key=lambda number: study.results[number].metrics["val_accuracy"])
    assert bundle.provenance["trial"] == best
    assert bundle.metrics["val_accuracy"] == study.results[best].metrics["val_accuracy"]
    assert bundle.provenance["licence"] == "BSD"
    assert f"trial {best} of small: the best of 3 by val_accuracy" in err
    assert "class of the trained network for 100.00%" in err


def test_a_condition_and_a_number_choose_another_trial(metasearch: Run, study: Study, tmp_path: Path) -> None:
    code, out, err = metasearch(
        "export", "small", "--where", "quantize = 'none'", "--to", str(tmp_path / "a"), "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert (told["name"], told["int8"], told["bundle"]) == ("small-trial-1", False, str(tmp_path / "a"))
    assert told["files"] == dict(read_bundle(tmp_path / "a").files)
    code, _, err = metasearch("export", "small", "--trial", "2", "--to", str(tmp_path / "b"))
    assert (code, "trial 2 of small: as asked" in err) == (0, True)
    assert read_bundle(tmp_path / "b").config["student.family"] == "mlp"
    assert (tmp_path / "b" / MODEL).read_bytes() == (study.artefacts(2) / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["smal"], 3, "study 'smal': there is none"),
        (["small", "--trial", "9"], 3, "trial 9 of small: there is none"),
        (["small", "--trial", str(10**20)], 3, f"trial {10**20} of small: there is none"),
        (["small", "--where", "model_bytes < 1"], 4, "none of 3 complete trials satisfies all limits"),
        (["small", "--where", "quantize = 'none'", "--trial", "1"], 2, "--where: cannot stand beside --trial"),
        (["small", "--where", "wdth > 2"], 2, "wdth"),
        (["small", "--licence", "a\nb"], 2, "--licence: must be a text of at most 4096 characters, none of them a con"),
    ],
)
def test_what_cannot_be_chosen_is_one_line_and_nothing_written(
    arguments: list[str], code: int, message: str, metasearch: Run, study: Study, tmp_path: Path
) -> None:
    got, out, err = metasearch("export", *arguments, "--to", str(tmp_path / "bundle"))
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert message in err
    assert not (tmp_path / "bundle").exists()


def test_a_target_that_is_there_is_refused_before_anything_is_read(
    metasearch: Run, study: Study, tmp_path: Path
) -> None:
    code, _, err = metasearch("export", "nothing", "--to", str(tmp_path))
    assert (code, err) == (
        2,
        f"metasearch: --to: must not be there yet; --force replaces a bundle, got {str(tmp_path)!r}\n",
    )


@pytest.fixture
def kept_aside(study: Study, tmp_path: Path) -> Iterator[Path]:
    """A copy of the files of trial 1, which a test may spoil: they are put back."""
    aside = tmp_path / "aside"
    shutil.copytree(study.artefacts(1), aside)
    yield aside
    shutil.copytree(aside, study.artefacts(1), dirs_exist_ok=True)


def test_a_trial_whose_files_are_gone_is_rebuilt_where_asked(
    metasearch: Run, study: Study, kept_aside: Path, tmp_path: Path
) -> None:
    shutil.rmtree(study.artefacts(1))
    code, _, err = metasearch("export", "small", "--trial", "1", "--to", str(tmp_path / "bundle"))
    assert code == 3
    assert "student.safetensors is not there, kept for the front only: --rebuild runs its pipeline again" in err
    code, _, err = metasearch("export", "small", "--trial", "1", "--rebuild", "--to", str(tmp_path / "bundle"))
    assert code == 0, err
    rebuilt, before = onnx.load(tmp_path / "bundle" / MODEL), onnx.load(kept_aside / "model.onnx")
    assert [tuple(t.dims) for t in rebuilt.graph.initializer] == [tuple(t.dims) for t in before.graph.initializer]
    assert "its pipeline was run again" in (tmp_path / "bundle" / CARD).read_text()


def test_a_file_that_is_not_the_trials_own_is_refused(
    metasearch: Run, study: Study, kept_aside: Path, tmp_path: Path
) -> None:
    shutil.copyfile(study.artefacts(0) / "model.onnx", study.artefacts(1) / "model.onnx")
    code, _, err = metasearch("export", "small", "--trial", "1", "--to", str(tmp_path / "bundle"))
    assert (code, err.count("\n")) == (5, 2)
    assert "its SHA-256 differs" in err


def test_data_that_have_changed_are_refused(
    metasearch: Run, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metasearch import tasks

    load = tasks.load_task
    monkeypatch.setattr(tasks, "load_task", lambda source: load(replace(source, seed=1)))
    code, _, err = metasearch("export", "small", "--to", str(tmp_path / "bundle"))
    assert (code, err.splitlines()[-1].partition(", got")[0]) == (
        2, "metasearch: task digits: has changed since the study was made"
    )  # fmt: skip
