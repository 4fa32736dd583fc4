from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metasearch.errors import NotFoundError
from metasearch.export import write_onnx
from metasearch.measure import accuracy, predict
from metasearch.models import NetworkSpec, build_network
from metasearch.models.module_network import deployable
from metasearch.report.database import open_database
from metasearch.report.page.facts import Facts, study_facts
from metasearch.report.page.predictions import Predictions, predictions
from metasearch.search.artefacts import digest_of
from metasearch.tasks import Task, TaskSource, load_task
from tests.report.studies import reported_study


def facts_of(tmp_path: Path, task: Task) -> Facts:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(url, tmp_path, trials=3, fingerprint=task.fingerprint)
    return study_facts(open_database(url), "ten")


def test_the_winners_own_file_is_what_is_judged(tmp_path: Path) -> None:
    task = load_task("digits")
    facts = facts_of(tmp_path, task)
    model = build_network(NetworkSpec("convnet", width=4, depth=2), input_shape=task.input_shape, classes=10, seed=0)
    network = deployable(model.eval(), normalisation=task.normalisation, input_shape=task.input_shape)
    file = tmp_path / "artefacts" / "ten" / "trial-00000" / "model.onnx"
    file.parent.mkdir(parents=True)
    write_onnx(network, file)
    kept = {"model.onnx": digest_of(file)}
    found = predictions(facts, 0, artefacts=kept)
    assert isinstance(found, Predictions)
    logits = predict(network, task.test.inputs, device=torch.device("cpu"))
    assert found.accuracy == pytest.approx(accuracy(logits, task.test.labels), abs=0.01)
    assert found.wrong_count == pytest.approx(len(task.test) * (1 - found.accuracy))
    assert len(found.by_class.rows) == 11
    other = replace(facts.head, attributes={"metasearch": facts.head.description | {"fingerprint": "another"}})
    seen = predictions(replace(facts, head=other), 0, artefacts=kept)
    assert seen == "the data of this name on this machine are other ones"
    file.write_bytes(b"another network")
    assert str(predictions(facts, 0, artefacts=kept)).startswith(f"its network is not to be had: {file}: is not what")


def test_data_that_are_not_prepared_are_not_prepared_for_a_report(tmp_path: Path, metasearch_home: Path) -> None:
    with pytest.raises(NotFoundError, match="not prepared on this machine"):
        load_task(TaskSource("digits"), prepare=False)
    assert not list(metasearch_home.rglob("*.npy"))
    task = load_task("digits")
    assert load_task(TaskSource("digits"), prepare=False).fingerprint == task.fingerprint
