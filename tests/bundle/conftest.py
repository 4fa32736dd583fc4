"""A small bundle of each kind, made once: tests change copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bundle.stand_ins import write_stand_in


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle of grey images, which no test may change."""
    return write_stand_in(tmp_path_factory.mktemp("stand-in") / "bundle").folder


@pytest.fixture
def stand_in(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the bundle of grey images."""
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))
