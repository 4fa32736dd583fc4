"""A study whose students start from other networks and train on a source task: prepared, run and shown."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from optuna.storages import RDBStorage
from optuna.trial import create_trial
from safetensors import safe_open

from metasearch.errors import InputError
from metasearch.models import NetworkSpec, build_network
from metasearch.models.weights import save_weights, write_tensors
from metasearch.records import TrialResult
from metasearch.report.database import open_database
from metasearch.report.finals import controls_frame
from metasearch.report.queries import best
from metasearch.search.artefacts import KeptFile, digest_of, kept_files, publish
from metasearch.search.controls import START_SEEDS
from metasearch.search.earlier import STUDENT_FILE
from metasearch.search.launch import Watcher, run_study
from metasearch.search.pipeline_worker import PipelineWorker, run_request
from metasearch.search.prepare import Options, prepare_study
from metasearch.search.runner import Resources
from metasearch.search.space import parse_space
from metasearch.search.starts import meta_learned
from metasearch.search.store import RESULT, create_study, description_of, load_study
from metasearch.search.worker import TrialRequest
from metasearch.tasks import TaskSource, load_task
from metasearch.teachers import Teacher, teacher_for
from tests.fakes import describe, new_storage

SOURCE = TaskSource("digits", max_train=100, augment="none")
NETWORK = "mlp:width=4,depth=1"
SPACE = """
objectives: [val_accuracy, model_bytes]
policies:
  learning_rate: {low: 0.001, high: 0.01}
  student.width: 3
parameters:
  student.family: mlp
  student.depth: 1
  student.init: {choices: [random, teacher_slice, prior_student, maml]}
  source_weight: {choices: [0, 0.5]}
  epochs: 1
  fine_tune_epochs: 0
"""


@pytest.fixture
def storage(tmp_path: Path) -> RDBStorage:
    return new_storage(f"sqlite:///{tmp_path / 'studies.db'}")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A weights file of a student of the task."""
    spec, task = NetworkSpec("mlp", 4, 1), load_task(SOURCE)
    model = build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=3)
    save_weights(model, tmp_path / "earlier.safetensors", spec=spec, task=task)
    return tmp_path / "earlier.safetensors"


def options(tmp_path: Path, **changes: object) -> Options:
    space = parse_space(SPACE, place="starts.yaml")
    artefacts = str(tmp_path / "artefacts")
    return Options(SOURCE, space, 4, "s", sampler="random", teacher=NETWORK, artefacts=artefacts, **changes)  # type: ignore[arg-type]  # the tests name real fields


def test_a_worker_elsewhere_has_the_teachers_network_the_files_and_the_source(student: Path) -> None:
    task = load_task(SOURCE)
    teacher = teacher_for(task, NETWORK, network=True)
    files = {"prior_student": KeptFile.at(str(student))}
    sent = PipelineWorker.of(SOURCE, teacher, device="cpu", threads=1, initial=files, joint=SOURCE)
    shared = pickle.loads(pickle.dumps(sent))()
    assert shared.teacher.network is not None
    assert teacher.network is not None
    mine, theirs = teacher.network.model.state_dict(), shared.teacher.network.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    base = {"student.family": "mlp", "student.width": 4, "student.depth": 1, "epochs": 1, "fine_tune_epochs": 0}
    for init in ("teacher_slice", "prior_student"):
        config = base | {"student.init": init, "source_weight": 0.5}
        steps = run_request(TrialRequest(0, config, 0), shared)
        next(steps)
        with pytest.raises(StopIteration) as ended:
            next(steps)
        assert ended.value.value.details["initialised"] == 1


def test_a_start_that_lies_at_a_url_is_fetched_by_its_digest_wherever_it_is_read(
    storage: RDBStorage, tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / STUDENT_FILE).write_bytes(student.read_bytes())
    folder = "memory://bucket/earlier/trial-00000"
    result = TrialResult({}, 0, {"val_accuracy": 0.9, "model_bytes": 10}, artefacts=publish(made, folder))
    earlier = create_study(storage, "earlier", describe(tmp_path, artefacts="memory://bucket"))
    earlier.add_trial(create_trial(values=[0.9, 10], user_attrs={RESULT: result.to_json()}))
    kept = {"place": f"{folder}/{STUDENT_FILE}", "digest": result.artefacts[STUDENT_FILE]}
    for text in ("earlier", kept["place"]):
        description, _ = prepare_study(storage, options(tmp_path, init_from=text), create=False)
        assert description.initial == {"prior_student": kept}
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path / "another node"))
    files = kept_files(description.initial)
    sent = PipelineWorker.of(
        SOURCE, Teacher("none", seed=0, logits={}, metrics={}), device="cpu", threads=1, initial=files
    )
    copy = pickle.loads(pickle.dumps(sent))().initial["prior_student"]
    assert copy.read_bytes() == student.read_bytes()
    assert copy.is_relative_to(tmp_path / "another node")


def test_meta_learned_files_at_urls_are_found_by_their_methods(student: Path) -> None:
    with safe_open(student, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        metadata = opened.metadata() | {"meta": json.dumps({"method": "maml"})}
    write_tensors(tensors, student, metadata=metadata)
    publish(student.parent, "memory://bucket/meta")
    url = "memory://bucket/meta/earlier.safetensors"
    assert meta_learned([url]) == {"maml": KeptFile(url, digest_of(student))}


def test_a_study_is_refused_before_it_is_made_where_its_files_or_source_do_not_fit(
    storage: RDBStorage, tmp_path: Path, student: Path
) -> None:
    small = TaskSource("digits", image_size=16)
    for change, message in (
        ({"meta": (str(student),)}, r"^--meta .*earlier\.safetensors: must be meta-learned by one of maml, "),
        ({"joint": small}, r"^--source digits: must have the task's inputs \(1, 8, 8\), got '\(1, 16, 16\)'$"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_study(storage, options(tmp_path, **change))


@pytest.mark.slow
def test_a_search_chooses_among_the_starts_that_it_was_given_and_shows_the_choice(
    storage: RDBStorage, tmp_path: Path, student: Path
) -> None:
    enqueue = tuple(
        {"student.init": init, "source_weight": 0.5} for init in ("teacher_slice", "prior_student", "random")
    )
    given = options(tmp_path, init_from=str(student), joint=SOURCE, enqueue=enqueue)
    description, name = prepare_study(storage, given)
    assert description.initial == {"prior_student": asdict(KeptFile.at(str(student)))}
    assert description_of(load_study(storage, name)) == description
    lines: list[str] = []

    class Heard(Watcher):
        def stage(self, message: str) -> None:
            lines.append(message)

    outcome = run_study(storage, name, resources=Resources(workers=1), watcher=Heard())
    assert outcome.failures == {}
    assert [line for line in lines if "leaves out" in line] == [
        "student.init leaves out maml: needs a --meta FILE of this method, which `metasearch meta-train` makes"
    ]
    database = open_database(str(storage.url))
    frame = best(database, name).table.frame()
    row = frame.iloc[0]
    assert row["student.init"] == "teacher_slice"
    assert row["initialised"] == 1
    roles = controls_frame(database, name)
    runs = roles[roles["of"] == row["number"]].set_index("seed")
    learned, random = (runs[runs["role"] == role]["test_accuracy"] for role in ("final", "random"))
    gains = learned - random
    assert row["start_pairs"] == len(gains) == START_SEEDS
    assert row["start_gain"] == pytest.approx(gains.mean())
    assert row["start_better"] == (gains > 0).sum()
