"""What gc removes and what it must leave alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from metasearch.errors import StorageError
from metasearch.search.garbage import claim, collect
from metasearch.search.store import DESCRIPTION, StudyDescription
from tests.fakes import new_storage


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return new_storage(f"sqlite:///{tmp_path / 'studies.db'}")


def add_study(storage: RDBStorage, name: str, artefacts: Path) -> Path:
    """Create a study with one artefact folder, as a driver does; return the folder."""
    description = StudyDescription({}, "", "", "", ["macs"], [], 1, 0, "tpe", "", "cpu", str(artefacts))
    optuna.create_study(storage=storage, study_name=name).set_user_attr(DESCRIPTION, asdict(description))
    folder = artefacts / name
    claim(str(folder), storage)
    (folder / "trial-00000").mkdir()
    (folder / "trial-00000" / "weights").write_bytes(b"12345")
    return folder


def test_the_folder_of_a_study_that_is_gone_is_removed_and_its_size_told(
    storage: RDBStorage, metasearch_home: Path
) -> None:
    kept = add_study(storage, "kept", metasearch_home / "artefacts")
    gone = add_study(storage, "gone", metasearch_home / "artefacts")
    optuna.delete_study(study_name="gone", storage=storage)
    [(path, size)] = collect(storage, remove=True)
    assert path == gone
    assert size > 5
    assert not gone.exists()
    assert (kept / "trial-00000" / "weights").exists()


def test_what_stands_where_a_study_is_to_say_whose_it_is_is_told_in_a_line(storage: RDBStorage, tmp_path: Path) -> None:
    (tmp_path / "s" / "storage").mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"^{tmp_path}/s/storage: Is a directory$"):
        claim(str(tmp_path / "s"), storage)
    with pytest.raises(StorageError, match=r"studies\.db/s: must be writable"):
        claim(str(tmp_path / "studies.db" / "s"), storage)


def test_a_dry_run_removes_nothing(storage: RDBStorage, metasearch_home: Path) -> None:
    gone = add_study(storage, "gone", metasearch_home / "artefacts")
    optuna.delete_study(study_name="gone", storage=storage)
    assert [path for path, _ in collect(storage, remove=False)] == [gone]
    assert gone.exists()


def test_a_study_with_a_slash_in_its_name_keeps_its_artefacts(storage: RDBStorage, metasearch_home: Path) -> None:
    folder = add_study(storage, "team/study", metasearch_home / "artefacts")
    add_study(storage, "team", metasearch_home / "artefacts")
    optuna.delete_study(study_name="team", storage=storage)
    assert list(collect(storage, remove=True)) == []
    assert folder.exists()


def test_artefacts_of_another_storage_are_left_alone(
    storage: RDBStorage, metasearch_home: Path, tmp_path: Path
) -> None:
    other = new_storage(f"sqlite:///{tmp_path / 'other.db'}")
    folder = add_study(other, "theirs", metasearch_home / "artefacts")
    assert list(collect(storage, remove=True)) == []
    assert folder.exists()


def test_artefacts_in_a_chosen_folder_are_left_alone(storage: RDBStorage, tmp_path: Path) -> None:
    folder = add_study(storage, "gone", tmp_path / "chosen")
    optuna.delete_study(study_name="gone", storage=storage)
    assert list(collect(storage, remove=True)) == []
    assert folder.exists()


def test_a_home_folder_given_relatively_does_not_make_its_studies_strays(
    storage: RDBStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = add_study(storage, "kept", tmp_path / "home" / "artefacts")
    monkeypatch.setenv("METASEARCH_HOME", "home")
    assert list(collect(storage, remove=True)) == []
    assert folder.exists()


def test_the_cache_is_removed_entry_by_entry(storage: RDBStorage, metasearch_home: Path) -> None:
    for entry in ("tasks/one/data.npy", "teachers/two.safetensors"):
        file = metasearch_home / "cache" / entry
        file.parent.mkdir(parents=True)
        file.write_bytes(b"1234")
    found = dict(collect(storage, remove=True))
    assert {path.name: size for path, size in found.items()} == {"one": 4, "two.safetensors": 4}
    assert not any(path.exists() for path in found)
