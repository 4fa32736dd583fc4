from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metasearch.bundle import again
from metasearch.bundle.again import run_again
from metasearch.pipeline import run_pipeline
from metasearch.teachers import teacher_for
from tests.bundles import SMALL
from tests.fakes import describe
from tests.synthetic import synthetic_task


def test_a_trial_run_again_is_what_it_was_also_where_it_learnt_from_labels_alone(tmp_path: Path) -> None:
    task, teacher = synthetic_task(), "mlp:width=4,depth=1"
    trial = run_pipeline(task, SMALL, teacher=teacher_for(task, teacher, seed=0), seed=2)
    found = run_again(describe(tmp_path, teacher=teacher), task, SMALL, seed=2)
    assert "teacher_agreement" in found.metrics
    assert {**found.metrics, "train_seconds": 0} == {**trial.metrics, "train_seconds": 0}


@pytest.mark.parametrize(
    ("asked", "there", "expected"), [("cpu", True, "cpu"), ("cuda", True, "cuda"), ("cuda", False, "cpu")]
)
def test_a_trial_is_run_again_on_the_device_of_its_study_where_that_is_there(
    asked: str, there: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    for name in ("teacher_for", "run_pipeline"):
        monkeypatch.setattr(again, name, lambda *args, device, **options: devices.append(device))
    run_again(describe(tmp_path, device=asked), synthetic_task(), SMALL, seed=0)
    assert devices == [expected, expected]
